// Body: as q4_0. Head: scale and least.
fn piece(b: u32) -> Piece {
    let v = four(b * 4u);
    let d = heads(b);
    let mask = vec4<u32>(0x0f0f0f0fu);
    return Piece(v & mask, (v >> vec4<u32>(4u)) & mask, vec2<f32>(d.x, d.x), d.y);
}

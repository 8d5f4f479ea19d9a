// Body: 4 words of nibbles, the first sixteen weights in the low ones. Head: scale.
fn piece(b: u32) -> Piece {
    let v = four(b * 4u);
    let d = head(b);
    let mask = vec4<u32>(0x0f0f0f0fu);
    return Piece(less(v & mask, 8u), less((v >> vec4<u32>(4u)) & mask, 8u), vec2<f32>(d, d), 0.0);
}

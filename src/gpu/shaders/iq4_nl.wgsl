// Body: as q4_0. Head: scale.
fn piece(b: u32) -> Piece {
    let v = four(b * 4u);
    let d = head(b);
    return Piece(looked_up_four(v), looked_up_four(v >> vec4<u32>(4u)), vec2<f32>(d, d), 0.0);
}

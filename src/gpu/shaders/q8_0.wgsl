// Body: 8 words of signed bytes. Head: scale.
fn piece(b: u32) -> Piece {
    let d = head(b);
    return Piece(four(b * 8u), four(b * 8u + 4u), vec2<f32>(d, d), 0.0);
}

// Head: scale.
fn piece(b: u32) -> Piece {
    let d = head(b);
    return Piece(less(fives(b, 0u), 16u), less(fives(b, 1u), 16u), vec2<f32>(d, d), 0.0);
}

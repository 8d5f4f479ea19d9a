// Head: scale and least.
fn piece(b: u32) -> Piece {
    let d = heads(b);
    return Piece(fives(b, 0u), fives(b, 1u), vec2<f32>(d.x, d.x), d.y);
}

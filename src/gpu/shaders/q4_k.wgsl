// Body: 3 words of scales, then 32 words of nibbles: 8 words hold pieces 2n (low) and 2n + 1 (high). Head: scale and least of
// the scales.
fn piece(b: u32) -> Piece {
    let block = b / 8u;
    let s = b & 7u;
    let at = block * 35u;
    let d = heads(block) * six_bits(at, s);
    let start = at + 3u + 8u * (s / 2u);
    let shift = vec4<u32>(4u * (s & 1u));
    let mask = vec4<u32>(0x0f0f0f0fu);
    return Piece((four(start) >> shift) & mask, (four(start + 4u) >> shift) & mask, vec2<f32>(d.x, d.x), -d.y);
}

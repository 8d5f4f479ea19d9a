// Body: 3 words of scales, 8 words of fifth bits (bit s of a byte belongs to piece s), then nibbles as in q4_K.
fn piece(b: u32) -> Piece {
    let block = b / 8u;
    let s = b & 7u;
    let at = block * 43u;
    let d = heads(block) * six_bits(at, s);
    let start = at + 11u + 8u * (s / 2u);
    let shift = vec4<u32>(4u * (s & 1u));
    let mask = vec4<u32>(0x0f0f0f0fu);
    let ones = vec4<u32>(0x01010101u);
    let low = (four(at + 3u) >> vec4<u32>(s)) & ones;
    let high = (four(at + 7u) >> vec4<u32>(s)) & ones;
    let a = ((four(start) >> shift) & mask) | (low << vec4<u32>(4u));
    let c = ((four(start + 4u) >> shift) & mask) | (high << vec4<u32>(4u));
    return Piece(a, c, vec2<f32>(d.x, d.x), -d.y);
}

// Body: a word of eight scales' lower four bits, then nibbles as in iq4_nl. Head: scale of the scales, and their upper two bits.
fn piece(b: u32) -> Piece {
    let block = b / 8u;
    let s = b & 7u;
    let at = block * 33u;
    let word = w[p.heads + block];
    let six = ((w[at] >> (4u * s)) & 15u) | (((word >> (16u + 2u * s)) & 3u) << 4u);
    let d = unpack2x16float(word).x * f32(i32(six) - 32);
    let v = four(at + 1u + 4u * s);
    return Piece(looked_up_four(v), looked_up_four(v >> vec4<u32>(4u)), vec2<f32>(d, d), 0.0);
}

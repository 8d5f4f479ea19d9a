// Body: 32 words of nibbles, 16 words of upper bits, 4 words of signed scales, one for sixteen weights. Of the pieces of a half
// block (4 each), t has its nibbles in 8 words (t even: the first), low (t < 2) or high, and bits 2t, 2t + 1 of the half's upper
// bits. Head: scale of the scales.
fn piece(b: u32) -> Piece {
    let block = b / 8u;
    let n = (b & 7u) / 4u;
    let t = b & 3u;
    let at = block * 52u;
    let nibbles = at + 16u * n + 8u * (t & 1u);
    let bits = at + 32u + 8u * n;
    let shift = vec4<u32>(4u * (t / 2u));
    let upper = vec4<u32>(2u * t);
    let mask = vec4<u32>(0x0f0f0f0fu);
    let two = vec4<u32>(0x03030303u);
    let low = ((four(nibbles) >> shift) & mask) | (((four(bits) >> upper) & two) << vec4<u32>(4u));
    let high = ((four(nibbles + 4u) >> shift) & mask) | (((four(bits + 4u) >> upper) & two) << vec4<u32>(4u));
    let scales = unpack4xI8(w[at + 48u + 2u * n + t / 2u]);
    let d = head(block);
    let pair = select(scales.xy, scales.zw, (t & 1u) != 0u);
    return Piece(less(low, 32u), less(high, 32u), d * vec2<f32>(pair), 0.0);
}

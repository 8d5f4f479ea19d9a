// Scale and least of piece `s` of 8, from the 12 bytes at word `at` where q4_K and q5_K keep six bits of each.
fn six_bits(at: u32, s: u32) -> vec2<f32> {
    let shift = 8u * (s & 3u);
    let a = (w[at] >> shift) & 0xffu;
    let b = (w[at + 1u] >> shift) & 0xffu;
    if (s < 4u) {
        return vec2<f32>(f32(a & 63u), f32(b & 63u));
    }
    let c = (w[at + 2u] >> shift) & 0xffu;
    return vec2<f32>(f32((c & 15u) | ((a >> 6u) << 4u)), f32((c >> 4u) | ((b >> 6u) << 4u)));
}

// Body of q5_0 and q5_1: a word of fifth bits, then nibbles as in q4_0.
fn fives(b: u32, half: u32) -> vec4<u32> {
    let bits = w[b * 5u] >> (16u * half);
    let v = (four(b * 5u + 1u) >> vec4<u32>(4u * half)) & vec4<u32>(0x0f0f0f0fu);
    let fifth = vec4<u32>(spread(bits), spread(bits >> 4u), spread(bits >> 8u), spread(bits >> 12u));
    return v | (fifth << vec4<u32>(4u));
}

// Half precision, rounded to nearest, ties to even: what the CPU stores, whatever the device's own conversion does with the rest.
fn half_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let m = bits & 0x7fffffffu;
    if (m >= 0x47800000u) {
        return sign | select(0x7c00u, 0x7e00u, m > 0x7f800000u);
    }
    if (m < 0x38800000u) {
        // Beside one half, a number of f32 is a multiple of the smallest one of half precision.
        return sign | (bitcast<u32>(bitcast<f32>(m) + 0.5) - 0x3f000000u);
    }
    return sign | ((m + 0xc8000fffu + ((m >> 13u) & 1u)) >> 13u);
}

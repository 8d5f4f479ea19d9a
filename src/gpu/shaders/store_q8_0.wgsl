// As ggml's q8_0: the scale is rounded to half precision, the bytes are those of the scale before.
fn store(to: u32, is_key: bool, thread: u32) {
    for (var b = thread; b < UNITS / 8u; b += 64u) {
        var most = 0.0;
        for (var d = 32u * b; d < 32u * b + 32u; d++) {
            most = max(most, abs(turned[d]));
        }
        let scale = most / 127.0;
        let inverse = select(0.0, 1.0 / scale, scale >= 1.1754944e-38);
        for (var i = 0u; i < 8u; i++) {
            let at = 32u * b + 4u * i;
            let x = vec4<f32>(turned[at], turned[at + 1u], turned[at + 2u], turned[at + 3u]);
            let bytes = vec4<i32>(clamp(round(x * inverse), vec4<f32>(-127.0), vec4<f32>(127.0)));
            put(is_key, to + 8u * b + i, pack4xI8(bytes));
        }
        put(is_key, to + UNITS + b, bitcast<u32>(unpack2x16float(half_bits(scale)).x));
    }
}

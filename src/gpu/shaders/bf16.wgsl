fn numbers(b: u32) -> array<vec4<f32>, 8> {
    var out: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) {
        let x = w[b * 16u + 2u * i];
        let y = w[b * 16u + 2u * i + 1u];
        out[i] = bitcast<vec4<f32>>(vec4<u32>(x << 16u, x & 0xffff0000u, y << 16u, y & 0xffff0000u));
    }
    return out;
}

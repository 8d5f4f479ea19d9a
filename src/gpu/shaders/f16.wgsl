fn numbers(b: u32) -> array<vec4<f32>, 8> {
    var out: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) {
        let at = b * 16u + 2u * i;
        out[i] = vec4<f32>(unpack2x16float(w[at]), unpack2x16float(w[at + 1u]));
    }
    return out;
}

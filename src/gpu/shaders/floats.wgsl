// Weights of a block format as numbers: four at a time, of piece `b`.
fn numbers(b: u32) -> array<vec4<f32>, 8> {
    let v = piece(b);
    var out: array<vec4<f32>, 8>;
    for (var i = 0u; i < 4u; i++) {
        out[i] = v.scale.x * vec4<f32>(unpack4xI8(v.low[i])) + vec4<f32>(v.least);
        out[i + 4u] = v.scale.y * vec4<f32>(unpack4xI8(v.high[i])) + vec4<f32>(v.least);
    }
    return out;
}

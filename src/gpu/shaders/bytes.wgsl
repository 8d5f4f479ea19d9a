// A row's activations in signed bytes, 32 to a scale: d = max|x| / 127, q = round(x / d), ties to even, as `kernels` has it.

// Piece `at` of 32 values, written as eight words and (scale, scale · sum).
fn to_bytes(at: u32, x: ptr<function, array<vec4<f32>, 8>>) {
    var most = vec4<f32>(0.0);
    for (var i = 0u; i < 8u; i++) {
        most = max(most, abs((*x)[i]));
    }
    let d = max(max(most.x, most.y), max(most.z, most.w)) / 127.0;
    // Below the smallest normal number the inverse would be infinite: such a piece is zero.
    let inverse = select(0.0, 1.0 / d, d >= 1.1754944e-38);
    var words: array<u32, 8>;
    var sum = vec4<i32>(0);
    for (var i = 0u; i < 8u; i++) {
        let q = vec4<i32>(clamp(round((*x)[i] * inverse), vec4<f32>(-127.0), vec4<f32>(127.0)));
        sum += q;
        words[i] = pack4xI8(q);
    }
    x_words[2u * at] = vec4<u32>(words[0], words[1], words[2], words[3]);
    x_words[2u * at + 1u] = vec4<u32>(words[4], words[5], words[6], words[7]);
    x_scales[at] = vec2<f32>(d, d * f32(sum.x + sum.y + sum.z + sum.w));
}

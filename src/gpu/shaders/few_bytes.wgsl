// Products with activations in signed bytes: 8 words and (scale, scale · sum) per piece.
@group(0) @binding(6) var<storage, read> x_words: array<vec4<u32>>;
@group(0) @binding(7) var<storage, read> x_scales: array<vec2<f32>>;

fn products(start: u32, at: u32, e: u32, x: ptr<function, array<u32, MOST>>, sums: ptr<function, Sums>) {
    let v = piece(start);
    for (var c = 0u; c < MOST; c++) {
        let place = (*x)[c] + at;
        let a = x_words[2u * place];
        let b = x_words[2u * place + 1u];
        let scale = x_scales[place];
        let low = dot4(v.low.x, a.x) + dot4(v.low.y, a.y) + dot4(v.low.z, a.z) + dot4(v.low.w, a.w);
        let high = dot4(v.high.x, b.x) + dot4(v.high.y, b.y) + dot4(v.high.z, b.z) + dot4(v.high.w, b.w);
        (*sums).each_of[e * MOST + c] += (f32(low) * v.scale.x + f32(high) * v.scale.y) * scale.x + v.least * scale.y;
    }
}

// Products with activations in f32.
@group(0) @binding(6) var<storage, read> x_values: array<vec4<f32>>;

fn products(start: u32, at: u32, e: u32, x: ptr<function, array<u32, MOST>>, sums: ptr<function, Sums>) {
    let v = numbers(start);
    for (var c = 0u; c < MOST; c++) {
        let place = 8u * ((*x)[c] + at);
        var sum = 0.0;
        for (var i = 0u; i < 8u; i++) {
            sum += dot(v[i], x_values[place + i]);
        }
        (*sums).each_of[e * MOST + c] += sum;
    }
}

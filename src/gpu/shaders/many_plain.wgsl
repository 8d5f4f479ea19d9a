// Weights and rows as numbers. Tile is what shared memory holds of a weight: f32, or f16 where there is such a thing and the weights
// have no more to tell.
@group(0) @binding(6) var<storage, read> x_values: array<vec4<f32>>;

var<workgroup> w_tile: array<Tile, 2048>; // [column][weight row]
var<workgroup> x_tile: array<f32, 1024>; // [column][row]

fn bring(thread: u32, own: u32, other: u32) {
    let v = numbers(own);
    for (var i = 0u; i < 8u; i++) {
        for (var l = 0u; l < 4u; l++) {
            w_tile[(4u * i + l) * 64u + thread] = Tile(v[i][l]);
        }
    }
    let half = thread & 1u;
    for (var i = 4u * half; i < 4u * half + 4u; i++) {
        let values = x_values[8u * other + i];
        for (var l = 0u; l < 4u; l++) {
            x_tile[(4u * i + l) * 32u + thread / 2u] = values[l];
        }
    }
}

fn multiply(tx: u32, ty: u32, sums: ptr<function, array<f32, 32>>) {
    for (var i = 0u; i < 32u; i++) {
        var a: array<f32, 4>;
        for (var c = 0u; c < 4u; c++) {
            a[c] = x_tile[i * 32u + ty + 8u * c];
        }
        for (var r = 0u; r < 8u; r++) {
            let weight = f32(w_tile[i * 64u + tx + 8u * r]);
            for (var c = 0u; c < 4u; c++) {
                (*sums)[r * 4u + c] += weight * a[c];
            }
        }
    }
}

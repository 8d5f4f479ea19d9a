// Weights and rows in signed bytes.
@group(0) @binding(6) var<storage, read> x_words: array<vec4<u32>>;
@group(0) @binding(7) var<storage, read> x_scales: array<vec2<f32>>;

var<workgroup> w_tile: array<u32, 512>; // [word][weight row]
var<workgroup> w_scale: array<vec4<f32>, 64>; // scales, least
var<workgroup> x_tile: array<u32, 256>; // [word][row]
var<workgroup> x_scale: array<vec2<f32>, 32>;

fn bring(thread: u32, own: u32, other: u32) {
    let v = piece(own);
    for (var i = 0u; i < 4u; i++) {
        w_tile[i * 64u + thread] = v.low[i];
        w_tile[(i + 4u) * 64u + thread] = v.high[i];
    }
    w_scale[thread] = vec4<f32>(v.scale, v.least, 0.0);
    let half = thread & 1u;
    let words = x_words[2u * other + half];
    for (var i = 0u; i < 4u; i++) {
        x_tile[(i + 4u * half) * 32u + thread / 2u] = words[i];
    }
    if (half == 0u) {
        x_scale[thread / 2u] = x_scales[other];
    }
}

fn multiply(tx: u32, ty: u32, sums: ptr<function, array<f32, 32>>) {
    for (var half = 0u; half < 2u; half++) {
        var whole: array<i32, 32>;
        for (var j = 0u; j < 32u; j++) {
            whole[j] = 0;
        }
        for (var i = 4u * half; i < 4u * half + 4u; i++) {
            var a: array<u32, 4>;
            for (var c = 0u; c < 4u; c++) {
                a[c] = x_tile[i * 32u + ty + 8u * c];
            }
            for (var r = 0u; r < 8u; r++) {
                let word = w_tile[i * 64u + tx + 8u * r];
                for (var c = 0u; c < 4u; c++) {
                    whole[r * 4u + c] += dot4(word, a[c]);
                }
            }
        }
        for (var r = 0u; r < 8u; r++) {
            let scale = w_scale[tx + 8u * r];
            let own = select(scale.x, scale.y, half != 0u);
            // It belongs to the whole piece, and is counted with the first half.
            let least = select(scale.z, 0.0, half != 0u);
            for (var c = 0u; c < 4u; c++) {
                let other = x_scale[ty + 8u * c];
                (*sums)[r * 4u + c] += f32(whole[r * 4u + c]) * own * other.x + least * other.y;
            }
        }
    }
}

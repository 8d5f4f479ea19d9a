// A norm of a row, or a copy, from one place to another. Rust: `Builder::norm` in builder.rs.
struct Params {
    width: u32,
    stride: u32,
    source_list: u32,
    target_list: u32,
    flags: u32,
    // In `vectors`.
    weight: u32,
    bias: u32,
    eps: f32,
}

// Without it: a copy.
const NORM: u32 = 1u;
// LayerNorm, with `bias`.
const LAYER: u32 = 2u;
// The target is the source too.
const IN_PLACE: u32 = 4u;
// The target's values are added.
const ADD: u32 = 8u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> vectors: array<f32>;
@group(0) @binding(3) var<storage, read> source: array<f32>;
@group(0) @binding(4) var<storage, read_write> target_rows: array<f32>;

fn value(at: u32, start: u32, to: u32) -> f32 {
    if ((p.flags & IN_PLACE) != 0u) {
        return target_rows[to + at];
    }
    return source[start + at];
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let start = listed(p.source_list, group.x) * p.stride;
    let to = listed(p.target_list, group.x) * p.stride;
    let width = f32(p.width);
    var mean = 0.0;
    var scale = 1.0;
    if ((p.flags & LAYER) != 0u) {
        var sum = vec2<f32>(0.0);
        for (var i = thread; i < p.width; i += THREADS) {
            sum.x += value(i, start, to);
        }
        mean = total(thread, sum).x / width;
    }
    if ((p.flags & NORM) != 0u) {
        var sum = vec2<f32>(0.0);
        for (var i = thread; i < p.width; i += THREADS) {
            let x = value(i, start, to) - mean;
            sum.x += x * x;
        }
        scale = 1.0 / sqrt(total(thread, sum).x / width + p.eps);
    }
    for (var i = thread; i < p.width; i += THREADS) {
        var x = value(i, start, to);
        if ((p.flags & NORM) != 0u) {
            x = (x - mean) * scale * vectors[p.weight + i];
        }
        if ((p.flags & LAYER) != 0u) {
            x += vectors[p.bias + i];
        }
        if ((p.flags & ADD) != 0u) {
            x += target_rows[to + i];
        }
        target_rows[to + i] = x;
    }
}

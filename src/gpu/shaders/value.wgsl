// Values by token id: v += 2·sigmoid(W·x[..32])·table[id], per value head, x the normed input of attention.
struct Params {
    dim: u32,
    x_stride: u32,
    stride: u32,
    list: u32,
    // W, in `vectors`.
    gate: u32,
    // Where this block's rows begin in `tables`, and their stride.
    table: u32,
    table_stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> vectors: array<f32>;
@group(0) @binding(3) var<storage, read> x: array<f32>;
@group(0) @binding(4) var<storage, read> tables: array<f32>;
@group(0) @binding(5) var<storage, read_write> v: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = group.y;
    let row = listed(p.list, i);
    var sum = 0.0;
    for (var j = 0u; j < 32u; j++) {
        sum += vectors[p.gate + group.x * 32u + j] * x[i * p.x_stride + j];
    }
    let gate = 2.0 * sigmoid(sum);
    for (var d = thread; d < p.dim; d += 64u) {
        let at = group.x * p.dim + d;
        v[i * p.stride + at] += gate * tables[p.table + row * p.table_stride + at];
    }
}

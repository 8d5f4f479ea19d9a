// What the blocks of a pass take in: other + factor · state, element by element, for injections without a matrix.
struct Params {
    width: u32,
    stride: u32,
    list: u32,
    // In `vectors`; without FACTOR: 1.
    factor: u32,
    flags: u32,
}

const FACTOR: u32 = 1u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> vectors: array<f32>;
@group(0) @binding(3) var<storage, read> latent: array<f32>;
@group(0) @binding(4) var<storage, read> other: array<f32>;
@group(0) @binding(5) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = group.x * 64u + thread;
    if (i < p.width) {
        let at = listed(p.list, group.y) * p.stride + i;
        var v = latent[at];
        if ((p.flags & FACTOR) != 0u) {
            v *= vectors[p.factor + i];
        }
        x[group.y * p.stride + i] = other[at] + v;
    }
}

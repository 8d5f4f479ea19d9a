// Latent states of rows that enter a loop.
struct Params {
    width: u32,
    stride: u32,
    flags: u32,
    // In `vectors`.
    initial_inner: u32,
}

// The state is the constant input; without it, what the host sent.
const FROM_STREAM: u32 = 1u;
const INNER: u32 = 2u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> vectors: array<f32>;
@group(0) @binding(3) var<storage, read> input: array<f32>;
@group(0) @binding(4) var<storage, read> sent: array<f32>;
@group(0) @binding(5) var<storage, read_write> latent: array<f32>;
@group(0) @binding(6) var<storage, read_write> delta: array<f32>;
@group(0) @binding(7) var<storage, read_write> inner: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = group.x * 64u + thread;
    if (i < p.width && group.y < flow[0]) {
        let at = group.y * p.stride + i;
        if ((p.flags & FROM_STREAM) != 0u) {
            latent[at] = input[at];
        } else {
            latent[at] = sent[at];
        }
        delta[at] = 0.0;
        if ((p.flags & INNER) != 0u) {
            inner[at] = vectors[p.initial_inner + i];
        }
    }
}

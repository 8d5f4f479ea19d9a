// Rows of activations to signed bytes, a piece per thread.
struct Params {
    // Pieces per row.
    pieces: u32,
    count: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> x_words: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> x_scales: array<vec2<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let at = group.x * 64u + thread;
    if (group.y < flow[p.count] && at < p.pieces) {
        let place = group.y * p.pieces + at;
        var v: array<vec4<f32>, 8>;
        for (var i = 0u; i < 8u; i++) {
            v[i] = x[8u * place + i];
        }
        to_bytes(place, &v);
    }
}

// The end of a loop step: the new latent state s_k of a row, its step Δ_k, and what exit rules are told of them
// (`kernels::LatentSums`, with the gate behind).
struct Params {
    width: u32,
    stride: u32,
    list: u32,
    // Is there a gate? Where it is in `vectors`, and its bias.
    gated: u32,
    gate: u32,
    gate_bias: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> vectors: array<f32>;
@group(0) @binding(3) var<storage, read> x: array<f32>;
@group(0) @binding(4) var<storage, read_write> latent: array<f32>;
@group(0) @binding(5) var<storage, read_write> delta: array<f32>;
// Per row: |s|², |Δ|², |Δ'|², |Δ − Δ'|², Δ·Δ', s·s', |s'|², gate; of the step before with a dash.
@group(0) @binding(6) var<storage, read_write> statistics: array<vec4<f32>>;

var<workgroup> parts: array<array<vec4<f32>, 2>, 128>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = listed(p.list, group.x);
    let start = group.x * p.stride;
    let to = row * p.stride;
    var a = vec4<f32>(0.0);
    var b = vec4<f32>(0.0);
    for (var i = thread; i < p.width; i += 128u) {
        let s = x[start + i];
        let before = latent[to + i];
        let earlier = delta[to + i];
        let step = s - before;
        let change = step - earlier;
        latent[to + i] = s;
        delta[to + i] = step;
        a += vec4<f32>(s * s, step * step, earlier * earlier, change * change);
        b += vec4<f32>(step * earlier, s * before, before * before, 0.0);
        if (p.gated != 0u) {
            b.w += s * vectors[p.gate + i];
        }
    }
    parts[thread] = array<vec4<f32>, 2>(a, b);
    workgroupBarrier();
    for (var half = 64u; half > 0u; half /= 2u) {
        if (thread < half) {
            parts[thread][0] += parts[thread + half][0];
            parts[thread][1] += parts[thread + half][1];
        }
        workgroupBarrier();
    }
    if (thread == 0u) {
        statistics[2u * row] = parts[0][0];
        statistics[2u * row + 1u] = parts[0][1] + vec4<f32>(0.0, 0.0, 0.0, p.gate_bias);
    }
}

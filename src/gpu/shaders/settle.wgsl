// The end of a loop step: the new latent state s_k of a row, its step Δ_k, and what exit rules are told of them
// (`kernels::LatentSums`, with the gate behind).
struct Params {
    width: u32,
    stride: u32,
    list: u32,
    flags: u32,
    // In `vectors`.
    weight: u32,
    bias: u32,
    gate: u32,
    eps: f32,
    gate_bias: f32,
}

const NORM: u32 = 1u;
const LAYER: u32 = 2u;
const GATE: u32 = 4u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> vectors: array<f32>;
@group(0) @binding(3) var<storage, read> x: array<f32>;
@group(0) @binding(4) var<storage, read_write> latent: array<f32>;
@group(0) @binding(5) var<storage, read_write> delta: array<f32>;
// Per row: |s|², |Δ|², |Δ'|², |Δ − Δ'|², Δ·Δ', s·s', |s'|², gate; of the step before with a dash.
@group(0) @binding(6) var<storage, read_write> statistics: array<vec4<f32>>;

var<workgroup> parts: array<array<vec4<f32>, 2>, 128>;

fn total(thread: u32, a: vec4<f32>, b: vec4<f32>) -> array<vec4<f32>, 2> {
    parts[thread] = array<vec4<f32>, 2>(a, b);
    workgroupBarrier();
    for (var half = 64u; half > 0u; half /= 2u) {
        if (thread < half) {
            parts[thread][0] += parts[thread + half][0];
            parts[thread][1] += parts[thread + half][1];
        }
        workgroupBarrier();
    }
    let all = parts[0];
    workgroupBarrier();
    return all;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = listed(p.list, group.x);
    let start = group.x * p.stride;
    let to = row * p.stride;
    let width = f32(p.width);
    var mean = 0.0;
    var scale = 1.0;
    if ((p.flags & LAYER) != 0u) {
        var sum = 0.0;
        for (var i = thread; i < p.width; i += 128u) {
            sum += x[start + i];
        }
        mean = total(thread, vec4<f32>(sum), vec4<f32>(0.0))[0].x / width;
    }
    if ((p.flags & NORM) != 0u) {
        var sum = 0.0;
        for (var i = thread; i < p.width; i += 128u) {
            let v = x[start + i] - mean;
            sum += v * v;
        }
        scale = 1.0 / sqrt(total(thread, vec4<f32>(sum), vec4<f32>(0.0))[0].x / width + p.eps);
    }
    var a = vec4<f32>(0.0);
    var b = vec4<f32>(0.0);
    for (var i = thread; i < p.width; i += 128u) {
        var s = x[start + i];
        if ((p.flags & NORM) != 0u) {
            s = (s - mean) * scale * vectors[p.weight + i];
        }
        if ((p.flags & LAYER) != 0u) {
            s += vectors[p.bias + i];
        }
        let before = latent[to + i];
        let earlier = delta[to + i];
        let step = s - before;
        let change = step - earlier;
        latent[to + i] = s;
        delta[to + i] = step;
        a += vec4<f32>(s * s, step * step, earlier * earlier, change * change);
        b += vec4<f32>(step * earlier, s * before, before * before, 0.0);
        if ((p.flags & GATE) != 0u) {
            b.w += s * vectors[p.gate + i];
        }
    }
    let all = total(thread, a, b);
    if (thread == 0u) {
        statistics[2u * row] = all[0];
        statistics[2u * row + 1u] = all[1] + vec4<f32>(0.0, 0.0, 0.0, p.gate_bias);
    }
}

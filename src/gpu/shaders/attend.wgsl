// A query head of a row against the keys and values it sees, 64 at a time, with a running softmax.
//
// Keys are read from the plane of the present loop step. A position that has left its loop after n steps shows the keys of its
// last step to all later ones: nothing is copied for it, the plane is chosen here (`depths`).
//
// Rust puts before this: UNITS (a head in fours, rounded up), GROUPS (how many sets of UNITS threads share the values), and how
// keys and values are stored.
struct Params {
    heads: u32,
    kv_heads: u32,
    dim: u32,
    q_stride: u32,
    list: u32,
    slots: u32,
    passes: u32,
    pass_of_step: u32,
    sequences: u32,
    context: u32,
    // Where this loop's depths begin in `depths`; 0xffffffff: outside any loop.
    depths: u32,
    gated: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> places: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> q: array<f32>;
@group(0) @binding(4) var<storage, read> keys: array<u32>;
@group(0) @binding(5) var<storage, read> values: array<u32>;
// Per loop, sequence and position: steps after which it left; 0xffffffff: it has not.
@group(0) @binding(6) var<storage, read> depths: array<u32>;
@group(0) @binding(7) var<storage, read> gates: array<f32>;
@group(0) @binding(8) var<storage, read_write> attended: array<f32>;

var<workgroup> query: array<vec4<f32>, UNITS>;
var<workgroup> weights: array<f32, 64>;
var<workgroup> rows: array<u32, 64>;
var<workgroup> sums: array<vec4<f32>, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = group.y;
    let place = places[listed(p.list, i)];
    let sequence = place.z;
    let seen = place.y;
    let start = i * p.q_stride + group.x * p.dim;
    let kv_head = group.x / (p.heads / p.kv_heads);
    for (var u = thread; u < UNITS; u += 64u) {
        var v = vec4<f32>(0.0);
        for (var l = 0u; l < 4u; l++) {
            if (4u * u + l < p.dim) {
                v[l] = q[start + 4u * u + l];
            }
        }
        query[u] = v;
    }
    workgroupBarrier();
    let unit = thread % UNITS;
    let share = thread / UNITS;
    let slot = flow[3] % p.slots;
    var largest = -3.0e38;
    var total = 0.0;
    var sum = vec4<f32>(0.0);
    for (var base = 0u; base < seen; base += 64u) {
        let key = base + thread;
        var score = -3.0e38;
        var row = 0u;
        if (key < seen) {
            var own = slot;
            if (p.depths != 0xffffffffu) {
                own = min(slot, depths[p.depths + sequence * p.context + key] - 1u);
            }
            let plane = own * p.passes + p.pass_of_step;
            row = (((plane * p.sequences + sequence) * p.kv_heads + kv_head) * p.context + key) * kv_words(UNITS);
            var products = 0.0;
            for (var u = 0u; u < UNITS; u++) {
                products += dot(query[u], key_unit(row, u));
            }
            score = products * p.scale;
        }
        weights[thread] = score;
        rows[thread] = row;
        workgroupBarrier();
        let here = min(64u, seen - base);
        var most = largest;
        for (var t = 0u; t < here; t++) {
            most = max(most, weights[t]);
        }
        workgroupBarrier();
        weights[thread] = exp(score - most);
        workgroupBarrier();
        let shrink = exp(largest - most);
        largest = most;
        total *= shrink;
        for (var t = 0u; t < here; t++) {
            total += weights[t];
        }
        sum *= shrink;
        if (share < GROUPS) {
            for (var t = share; t < here; t += GROUPS) {
                sum += weights[t] * value_unit(rows[t], unit);
            }
        }
        workgroupBarrier();
    }
    sums[thread] = sum;
    workgroupBarrier();
    if (share == 0u) {
        var all = vec4<f32>(0.0);
        for (var g = 0u; g < GROUPS; g++) {
            all += sums[g * UNITS + unit];
        }
        all /= total;
        for (var l = 0u; l < 4u; l++) {
            if (4u * unit + l < p.dim) {
                let at = start + 4u * unit + l;
                var v = all[l];
                if (p.gated != 0u) {
                    v *= sigmoid(gates[at]);
                }
                attended[at] = v;
            }
        }
    }
}

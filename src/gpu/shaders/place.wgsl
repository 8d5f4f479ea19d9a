// Queries, keys and values of a row, a head to a workgroup: rotation, norm, and the write to the cache.
//
// Rust puts before this: UNITS (a head in fours, rounded up), and how keys and values are stored.
struct Params {
    heads: u32,
    kv_heads: u32,
    dim: u32,
    // Strides of a row of queries, and of keys and values.
    q_stride: u32,
    kv_stride: u32,
    list: u32,
    flags: u32,
    eps: f32,
    // Where keys and values go: see `plane`.
    slots: u32,
    passes: u32,
    pass_of_step: u32,
    sequences: u32,
    context: u32,
}

const INTERLEAVED: u32 = 1u;
const HALVES: u32 = 2u;
const UNIT_NORM: u32 = 4u;

@group(0) @binding(0) var<uniform> p: Params;
// Per row of the chunk: position, positions seen, sequence.
@group(0) @binding(2) var<storage, read> places: array<vec4<u32>>;
// Per row of the chunk: cosine and sine per pair.
@group(0) @binding(3) var<storage, read> angles: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> q: array<f32>;
@group(0) @binding(5) var<storage, read> k: array<f32>;
@group(0) @binding(6) var<storage, read> v: array<f32>;
@group(0) @binding(7) var<storage, read_write> keys: array<u32>;
@group(0) @binding(8) var<storage, read_write> values: array<u32>;

var<workgroup> head: array<f32, 256>;
var<workgroup> turned: array<f32, 256>;
var<workgroup> squares: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = group.y;
    let row = listed(p.list, i);
    let place = places[row];
    // Heads in order: queries, keys, values.
    let is_query = group.x < p.heads;
    let is_key = !is_query && group.x < p.heads + p.kv_heads;
    let number = select(select(group.x - p.heads - p.kv_heads, group.x - p.heads, is_key), group.x, is_query);
    let start = select(i * p.kv_stride, i * p.q_stride, is_query) + number * p.dim;
    for (var d = thread; d < 4u * UNITS; d += 64u) {
        var x = 0.0;
        if (d < p.dim) {
            if (is_query) {
                x = q[start + d];
            } else if (is_key) {
                x = k[start + d];
            } else {
                x = v[start + d];
            }
        }
        head[d] = x;
        turned[d] = x;
    }
    workgroupBarrier();
    if (is_query || is_key) {
        let pairs = p.dim / 2u;
        if ((p.flags & (INTERLEAVED | HALVES)) != 0u) {
            for (var j = thread; j < pairs; j += 64u) {
                let angle = angles[row * pairs + j];
                let interleaved = (p.flags & INTERLEAVED) != 0u;
                let a = select(j, 2u * j, interleaved);
                let b = select(j + pairs, 2u * j + 1u, interleaved);
                turned[a] = head[a] * angle.x - head[b] * angle.y;
                turned[b] = head[b] * angle.x + head[a] * angle.y;
            }
        }
        workgroupBarrier();
        if ((p.flags & UNIT_NORM) != 0u) {
            var sum = 0.0;
            for (var d = thread; d < p.dim; d += 64u) {
                sum += turned[d] * turned[d];
            }
            squares[thread] = sum;
            workgroupBarrier();
            var all = 0.0;
            for (var t = 0u; t < 64u; t++) {
                all += squares[t];
            }
            let scale = 1.0 / sqrt(all / f32(p.dim) + p.eps);
            workgroupBarrier();
            for (var d = thread; d < p.dim; d += 64u) {
                turned[d] *= scale;
            }
        }
        workgroupBarrier();
    }
    if (is_query) {
        for (var d = thread; d < p.dim; d += 64u) {
            q[start + d] = turned[d];
        }
    } else {
        let plane = (flow[3] % p.slots) * p.passes + p.pass_of_step;
        let at = ((plane * p.sequences + place.z) * p.kv_heads + number) * p.context + place.x;
        store(at * kv_words(UNITS), is_key, thread);
    }
}

fn put(is_key: bool, at: u32, word: u32) {
    if (is_key) {
        keys[at] = word;
    } else {
        values[at] = word;
    }
}

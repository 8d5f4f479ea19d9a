// Sums over a workgroup of THREADS, which Rust puts before this.
var<workgroup> parts: array<vec2<f32>, THREADS>;

// The sums of `mine` of every thread.
fn total(thread: u32, mine: vec2<f32>) -> vec2<f32> {
    parts[thread] = mine;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if (thread < half) {
            parts[thread] += parts[thread + half];
        }
        workgroupBarrier();
    }
    let all = parts[0];
    workgroupBarrier();
    return all;
}

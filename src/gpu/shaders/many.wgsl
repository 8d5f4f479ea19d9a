// Many rows times a matrix: a workgroup computes 64 weight rows times 32 rows, a piece at a time from shared memory; a thread 8
// times 4 of them. What is in shared memory, and how it is multiplied, is in many_bytes.wgsl and many_plain.wgsl.
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let count = flow[p.count];
    let row = group.x * 64u;
    let first = group.y * 32u;
    let tx = thread % 8u;
    let ty = thread / 8u;
    // A thread brings a weight row and half a row of the input. Those behind the last are the last, and are not written.
    let own = min(row + thread, p.rows - 1u) * p.pieces;
    let other = min(first + thread / 2u, max(count, 1u) - 1u) * p.pieces;
    var sums: array<f32, 32>;
    for (var j = 0u; j < 32u; j++) {
        sums[j] = 0.0;
    }
    for (var at = 0u; at < p.pieces; at++) {
        bring(thread, own + at, other + at);
        workgroupBarrier();
        multiply(tx, ty, &sums);
        workgroupBarrier();
    }
    for (var r = 0u; r < 8u; r++) {
        let to = row + tx + 8u * r;
        for (var c = 0u; c < 4u; c++) {
            let i = first + ty + 8u * c;
            if (i < count && to < p.rows) {
                finish(i, to, sums[r * 4u + c]);
            }
        }
    }
}

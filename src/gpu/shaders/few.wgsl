// Up to MOST rows times a matrix, which is read once. TEAM threads share a weight row; a workgroup has TEAMS of them, and a team
// EACH rows at once, so that what is loaded of the input serves them all.
//
// Rust puts before this: MOST, TEAM, TEAMS, EACH, and `products`.

var<workgroup> parts: array<f32, MOST * EACH * WIDE>;

struct Sums {
    each_of: array<f32, MOST * EACH>,
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32SUBGROUP_INPUTS) {
    let count = flow[p.count];
    let first = group.y * MOST;
    let lane = thread % TEAM;
    let team = thread / TEAM;
    let row = (group.x * TEAMS + team) * EACH;
    var sums: Sums;
    for (var j = 0u; j < MOST * EACH; j++) {
        sums.each_of[j] = 0.0;
    }
    var x: array<u32, MOST>;
    for (var c = 0u; c < MOST; c++) {
        // A row that is not there is computed as the last that is, and not written.
        x[c] = min(first + c, max(count, 1u) - 1u) * p.pieces;
    }
    for (var at = lane; at < p.pieces; at += TEAM) {
        for (var e = 0u; e < EACH; e++) {
            // Rows behind the last are the last, likewise.
            let start = min(row + e, p.rows - 1u) * p.pieces + at;
            products(start, at, e, &x, &sums);
        }
    }
    gather(thread, &sumsSUBGROUP_ARGUMENTS);
    // One thread per sum.
    for (var j = thread; j < TEAMS * MOST * EACH; j += 64u) {
        let c = j % MOST;
        let e = (j / MOST) % EACH;
        let t = j / (MOST * EACH);
        var sum = 0.0;
        for (var l = 0u; l < gathered(); l++) {
            sum += parts[(t * gathered() + l) * MOST * EACH + e * MOST + c];
        }
        let to = (group.x * TEAMS + t) * EACH + e;
        if (first + c < count && to < p.rows) {
            finish(first + c, to, sum);
        }
    }
}

// Sums of whole subgroups to shared memory. The team is the whole workgroup, so any size of subgroup will do.
const WIDE: u32 = 64u;
var<workgroup> groups: u32;

fn gathered() -> u32 {
    return groups;
}

fn gather(thread: u32, sums: ptr<function, Sums>, place: u32, id: u32, count: u32) {
    // The loop before this ends sooner for some threads than for others.
    workgroupBarrier();
    for (var j = 0u; j < MOST * EACH; j++) {
        let sum = subgroupAdd((*sums).each_of[j]);
        if (place == 0u) {
            parts[id * MOST * EACH + j] = sum;
        }
    }
    if (thread == 0u) {
        groups = count;
    }
    workgroupBarrier();
}

// Every thread's sums to shared memory.
const WIDE: u32 = 64u;

fn gathered() -> u32 {
    return TEAM;
}

fn gather(thread: u32, sums: ptr<function, Sums>) {
    for (var j = 0u; j < MOST * EACH; j++) {
        parts[thread * MOST * EACH + j] = (*sums).each_of[j];
    }
    workgroupBarrier();
}

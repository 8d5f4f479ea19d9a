fn store(to: u32, is_key: bool, thread: u32) {
    for (var d = thread; d < 4u * UNITS; d += 64u) {
        put(is_key, to + d, bitcast<u32>(turned[d]));
    }
}

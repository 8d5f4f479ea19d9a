fn store(to: u32, is_key: bool, thread: u32) {
    for (var d = thread; d < 2u * UNITS; d += 64u) {
        put(is_key, to + d, half_bits(turned[2u * d]) | (half_bits(turned[2u * d + 1u]) << 16u));
    }
}

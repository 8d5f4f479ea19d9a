// What all kernels share: where the rows of a chunk stand. Rust: `Flow` in buffers.rs.
//
// Word 0: rows of the chunk. 1: rows in the loop. 2: rows to read out. 3: steps done. 4: rows whose logits are wanted.
// 5: row + 1 of the first state that is not finite, 6: its step. 7: the logits belong to the row's last state.
// Then lists of row numbers, and steps per loop and row.

@group(0) @binding(1) var<storage, read> flow: array<u32>;

// Row `i` of a list that begins at word `list`; 0 is no list: the rows in order.
fn listed(list: u32, i: u32) -> u32 {
    if (list == 0u) {
        return i;
    }
    return flow[list + i];
}

// Beyond 80 the exponential is as good as infinite, and may not be more.
fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(min(-x, 80.0)));
}

// 32 weights of a block format: signed bytes, four to a word, with a scale for either half; plus `least`.
struct Piece {
    low: vec4<u32>,
    high: vec4<u32>,
    scale: vec2<f32>,
    least: f32,
}

// The half-precision head of block `b`, and the pair of them.
fn head(b: u32) -> f32 {
    let pair = unpack2x16float(w[p.heads + b / 2u]);
    return select(pair.x, pair.y, (b & 1u) != 0u);
}

fn heads(b: u32) -> vec2<f32> {
    return unpack2x16float(w[p.heads + b]);
}

fn four(at: u32) -> vec4<u32> {
    return vec4<u32>(w[at], w[at + 1u], w[at + 2u], w[at + 3u]);
}

// Byte-wise v - n for bytes v below 128 and n at most 128: no byte borrows from its neighbour.
fn less(v: vec4<u32>, n: u32) -> vec4<u32> {
    return ((v | vec4<u32>(0x80808080u)) - vec4<u32>(n * 0x01010101u)) ^ vec4<u32>(0x80808080u);
}

// The lowest four bits of n, each to the lowest bit of a byte.
fn spread(n: u32) -> u32 {
    return ((n & 0xfu) * 0x00204081u) & 0x01010101u;
}

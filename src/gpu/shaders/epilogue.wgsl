// What becomes of a product before it is written. Rust: `Then` in builder.rs.

struct Params {
    // Weight rows of this part of the matrix, and the output column of the first.
    rows: u32,
    first: u32,
    // Pieces of 32 weights per row.
    pieces: u32,
    // Word at which the heads of the blocks begin.
    heads: u32,
    // Strides of a row, in values.
    out_stride: u32,
    other_stride: u32,
    // Which word of `flow` counts the rows, and the list that says where a row's other values are.
    count: u32,
    other_list: u32,
    flags: u32,
    // In `vectors`.
    bias: u32,
}

const BIAS: u32 = 1u;
const RATE: u32 = 2u;
const ADD: u32 = 4u;
const SILU: u32 = 8u;
const RELU: u32 = 16u;
const GELU: u32 = 32u;
const RESIDUAL: u32 = 64u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> vectors: array<f32>;
@group(0) @binding(3) var<storage, read> w: array<u32>;
@group(0) @binding(4) var<storage, read> other: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

fn finish(i: u32, row: u32, product: f32) {
    let column = p.first + row;
    let at = i * p.out_stride + column;
    var v = product;
    if ((p.flags & BIAS) != 0u) {
        v += vectors[p.bias + column];
    }
    if ((p.flags & RATE) != 0u) {
        v *= vectors[p.bias + column];
    }
    if ((p.flags & ADD) != 0u) {
        v += other[listed(p.other_list, i) * p.other_stride + column];
    }
    if ((p.flags & SILU) != 0u) {
        let gate = other[i * p.other_stride + column];
        v *= gate * sigmoid(gate);
    }
    if ((p.flags & RELU) != 0u) {
        let positive = max(v, 0.0);
        v = 0.5 * positive * positive;
    }
    if ((p.flags & GELU) != 0u) {
        // tanh is 1 in f32 long before 10, and some drivers overflow behind it.
        let inner = 0.7978845608 * (v + 0.044715 * v * v * v);
        v = 0.5 * v * (1.0 + tanh(clamp(inner, -10.0, 10.0)));
    }
    if ((p.flags & RESIDUAL) != 0u) {
        v += out[at];
    }
    out[at] = v;
}

//! What a transformer block is made of, whatever family it comes from.

use super::Vector;
use super::repack::Panels;
use crate::files::Bytes;
use crate::gguf::TensorType;
use crate::kernels::{Acts, Form, MatMul};
use std::ops::Range;
use std::sync::Arc;

/// A weight matrix in place: `rows` rows of `cols` values, multiplied as `y = W·x`.
#[derive(Clone)]
pub struct Matrix {
    /// Name of its tensor.
    pub name: Arc<str>,
    /// Storage format.
    pub ty: TensorType,
    /// Output size.
    pub rows: usize,
    /// Input size.
    pub cols: usize,
    pub(super) row_bytes: usize,
    /// What `data` is a part of: usually the whole file.
    pub(super) bytes: Bytes,
    pub(super) data: Range<usize>,
    pub(super) multiply: MatMul,
    pub(super) panels: Option<Panels>,
}

impl Matrix {
    /// The form of activations that it multiplies.
    pub(super) fn form(&self) -> Form {
        Form::of(self.ty)
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        self.data.len() as u64
    }

    /// `out[c * rows + r]` = weight row `rows.start + r` · activation row `c`.
    pub(super) fn product(&self, rows: &Range<usize>, acts: Acts<'_>, out: &mut [f32]) {
        match &self.panels {
            Some(panels) => panels.product(rows, acts, out),
            None => (self.multiply)(self.stored(rows.clone()), rows.len(), acts, out),
        }
    }

    /// The stored bytes of some rows, read from the file and not through its map: no page of it stays in memory.
    ///
    /// # Errors
    /// They cannot be read.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut Vec<u8>) -> Result<(), crate::files::Error> {
        out.resize(rows.len() * self.row_bytes, 0);
        self.bytes.read_at(self.data.start + rows.start * self.row_bytes, out)
    }

    /// The stored bytes of some rows.
    pub(super) fn stored(&self, rows: Range<usize>) -> &[u8] {
        &self.bytes[self.data.clone()][rows.start * self.row_bytes..rows.end * self.row_bytes]
    }
}

/// A matrix with an optional bias `[rows]`.
#[derive(Clone)]
pub struct Linear {
    /// The matrix.
    pub weight: Matrix,
    /// Added to its product.
    pub bias: Option<Vector>,
}

impl From<Matrix> for Linear {
    fn from(weight: Matrix) -> Self {
        Self { weight, bias: None }
    }
}

/// A norm over a row.
#[derive(Clone)]
pub struct Norm {
    /// `x / sqrt(mean(x²) + eps) · weight`, or, with a bias, LayerNorm: `(x − mean) / sqrt(var + eps) · weight + bias`.
    pub weight: Vector,
    /// Makes it a LayerNorm.
    pub bias: Option<Vector>,
    /// Inside the root.
    pub eps: f32,
}

impl Norm {
    /// An RMS norm.
    pub fn rms(weight: Vector, eps: f32) -> Self {
        Self { weight, bias: None, eps }
    }

    /// An RMS norm over `len` values without weights.
    pub fn weightless(len: usize, eps: f32) -> Self {
        // Times one is exact, so this is no approximation of "no weights".
        Self::rms(Vector::ones(len), eps)
    }
}

/// What follows a half of a block, f: attention or MLP.
#[derive(Clone)]
pub enum PostNorm {
    /// `x + f(x)`.
    None,
    /// `norm(x + f(x))`, the sandwich of Huginn.
    Sum(Norm),
    /// `x + norm(f(x))`, as in Ouro.
    Branch(Norm),
}

/// One transformer block: `x = post_attn(attn(attn_norm x))`, `x = post_ffn(mlp(ffn_norm x))`, each with its residual as
/// [`PostNorm`] says.
pub struct Block {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// `[D]`.
    pub attn_norm: Norm,
    /// `[heads · head_dim, D]`; the bias comes before the rotation.
    pub q: Linear,
    /// `[kv_heads · head_dim, D]`; the bias comes before the rotation.
    pub k: Linear,
    /// `[kv_heads · head_dim, D]`.
    pub v: Linear,
    /// Epsilon of a weightless RMS norm over every query and key head, after the rotation.
    pub qk_norm: Option<f32>,
    /// What is added to the values of a token whatever its place.
    pub value_embedding: Option<ValueEmbedding>,
    /// `[heads · head_dim, D]`: attention outputs are multiplied with the sigmoid of its product with the normed input.
    pub attn_gate: Option<Matrix>,
    /// `[D, heads · head_dim]`.
    pub attn_output: Linear,
    /// After attention.
    pub post_attn: PostNorm,
    /// `[D]`.
    pub ffn_norm: Norm,
    /// The second half.
    pub mlp: Mlp,
    /// After the MLP.
    pub post_ffn: PostNorm,
}

impl Block {
    /// D: width of the stream that it reads and writes.
    pub fn width(&self) -> usize {
        self.q.weight.cols
    }

    /// All its matrices that are multiplied.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let mlp = [self.mlp.gate.as_ref(), Some(&self.mlp.up), Some(&self.mlp.down)];
        let attention = [&self.q, &self.k, &self.v, &self.attn_output];
        let linear = attention.into_iter().chain(mlp.into_iter().flatten()).map(|l| &l.weight);
        linear.chain(&self.attn_gate)
    }
}

/// The second half of a block.
pub struct Mlp {
    /// `[F, D]`, for the activation that has one.
    pub gate: Option<Linear>,
    /// `[F, D]`.
    pub up: Linear,
    /// `[D, F]`.
    pub down: Linear,
    /// What happens between them.
    pub activation: Activation,
}

impl Mlp {
    /// `down(silu(gate x) · up x)`.
    pub fn gated(gate: Matrix, up: Matrix, down: Matrix) -> Self {
        Self { gate: Some(gate.into()), up: up.into(), down: down.into(), activation: Activation::GatedSilu }
    }
}

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `silu(gate x) · up x`, with silu(x) = x · sigmoid(x).
    GatedSilu,
    /// `0.5 · max(up x, 0)²`.
    HalfReluSquared,
    /// GELU of `up x` by its tanh approximation, as GPT-2 has it.
    GeluTanh,
}

/// Values by token id: `v += 2·sigmoid(W·x[..32])·table[id]`, per value head, x the normed input of attention.
pub struct ValueEmbedding {
    /// `[V, kv_heads · head_dim]`: gathered, never multiplied.
    pub table: Matrix,
    /// `[kv_heads, 32]`: W.
    pub gate: Vector,
}

impl ValueEmbedding {
    /// Leading values of the input that the gate sees.
    pub const GATE_INPUTS: usize = 32;
}

/// Rotary position embedding over whole heads.
#[derive(Debug, Clone)]
pub struct Rope {
    /// Which values form a pair.
    pub style: RopeStyle,
    /// `[head_dim / 2]`: angle per position of every pair.
    pub frequencies: Vec<f32>,
}

/// Which two values of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// `x[2i]` and `x[2i + 1]`.
    Interleaved,
    /// `x[i]` and `x[i + head_dim / 2]` ("rotate half").
    Halves,
}

impl Rope {
    /// The plain frequencies `base^(−2i / head_dim)`: powers and quotients in f32, as the references compute them.
    pub fn new(style: RopeStyle, base: f32, head_dim: usize) -> Self {
        let frequency = |i: usize| 1.0 / libm::powf(base, (2 * i) as f32 / head_dim as f32);
        Self { style, frequencies: (0..head_dim / 2).map(frequency).collect() }
    }
}

//! What a looped model is made of, whatever family it comes from.

use super::Vector;
use crate::gguf::TensorType;
use crate::kernels::{self, Form, Kernels, MatMul};
use std::ops::Range;

/// Which blocks run once and which are looped.
///
/// A token's way is prelude (once) → core (looped: inject, then all core blocks) → coda (once). Blocks are numbered through:
/// prelude, then core, then coda.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopPlan {
    /// Blocks before the loop; may be empty.
    pub prelude: Range<usize>,
    /// Blocks of the loop; at least one.
    pub core: Range<usize>,
    /// Blocks after the loop; may be empty.
    pub coda: Range<usize>,
}

impl LoopPlan {
    /// A plan of `prelude`, `core` and `coda` blocks, in this order.
    pub fn new(prelude: usize, core: usize, coda: usize) -> Self {
        let (a, b) = (prelude, prelude + core);
        Self { prelude: 0..a, core: a..b, coda: b..b + coda }
    }

    /// Number of physical blocks.
    pub fn blocks(&self) -> usize {
        self.coda.end
    }

    /// Block executions per token at a depth of `steps`.
    pub fn effective_depth(&self, steps: usize) -> usize {
        self.prelude.len() + self.core.len() * steps + self.coda.len()
    }
}

/// Sizes and constants of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, or empty.
    pub name: String,
    /// Width of the residual stream and of the latent state, D.
    pub width: usize,
    /// Rows of the embedding table and of the head, V. May exceed the tokenizer's vocabulary (padding).
    pub vocab: usize,
    /// Positions the model was trained for.
    pub context: usize,
    /// Values per attention head.
    pub head_dim: usize,
    /// Epsilon inside every RMS norm.
    pub norm_eps: f32,
    /// Base of the rotary angles.
    pub rope_base: f32,
    /// Factor on token embeddings.
    pub embedding_scale: f32,
    /// Loop steps the model uses by default (the mean of its training distribution).
    pub mean_steps: usize,
    /// Deepest loop that the model supports, where there is such a limit.
    pub max_steps: Option<usize>,
    /// Standard deviation of a random initial state, after all scaling.
    pub state_std: f32,
}

/// A weight matrix in place: `rows` rows of `cols` values, multiplied as `y = W·x`.
#[derive(Clone)]
pub struct Matrix {
    /// Storage format.
    pub ty: TensorType,
    /// Output size.
    pub rows: usize,
    /// Input size.
    pub cols: usize,
    pub(super) row_bytes: usize,
    pub(super) data: Range<usize>,
    pub(super) multiply: MatMul,
}

impl Matrix {
    /// The form of activations that it multiplies.
    pub(super) fn form(&self) -> Form {
        Form::of(self.ty)
    }

    pub(super) fn new(
        kernels: &Kernels,
        ty: TensorType,
        rows: usize,
        cols: usize,
        data: Range<usize>,
    ) -> Result<Self, kernels::Error> {
        let multiply = kernels.matmul(ty)?;
        Ok(Self { ty, rows, cols, row_bytes: data.len() / rows, data, multiply })
    }
}

/// One transformer block with norms before and after each half ("sandwich"):
/// `x = post_attn_norm(attn(attn_norm(x)) + x)`, `x = post_ffn_norm(mlp(ffn_norm(x)) + x)`,
/// `mlp(x) = down(silu(gate x) · up x)`.
pub struct Block {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// `[D]`.
    pub attn_norm: Vector,
    /// `[heads · head_dim, D]`.
    pub q: Matrix,
    /// `[kv_heads · head_dim, D]`.
    pub k: Matrix,
    /// `[kv_heads · head_dim, D]`.
    pub v: Matrix,
    /// `[heads · head_dim]`, added before the rotation.
    pub q_bias: Option<Vector>,
    /// `[kv_heads · head_dim]`, added before the rotation.
    pub k_bias: Option<Vector>,
    /// `[D, heads · head_dim]`.
    pub attn_output: Matrix,
    /// `[D]`.
    pub post_attn_norm: Vector,
    /// `[D]`.
    pub ffn_norm: Vector,
    /// `[F, D]`.
    pub gate: Matrix,
    /// `[F, D]`.
    pub up: Matrix,
    /// `[D, F]`.
    pub down: Matrix,
    /// `[D]`.
    pub post_ffn_norm: Vector,
}

/// How the prelude's output e enters each loop step: `x = W_s·s + (W_e·e + b)`.
///
/// The published form is one matrix over the concatenation `[s, e]`; the second term does not change over the loop and is
/// computed once per token.
pub struct Adapter {
    /// `[D, D]`, multiplies the state.
    pub state: Matrix,
    /// `[D, D]`, multiplies the prelude's output.
    pub input: Matrix,
    /// `[D]`.
    pub bias: Option<Vector>,
}

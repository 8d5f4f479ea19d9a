//! What is looped, and how: a model as a list of segments.

use super::{Linear, Matrix, Norm, Vector};
use std::ops::Range;
use std::sync::OnceLock;

/// The way of a token through the physical blocks: segments, each run once or looped, one after the other.
///
/// Between two segments stands the residual stream of every row. A looped segment makes a latent state of it (or of noise),
/// steps until every row of the chunk has left, and hands its state on as the stream.
pub struct LoopPlan {
    /// In the order in which a token passes them. At least one is looped.
    pub segments: Vec<Segment>,
}

/// A part of the plan.
pub enum Segment {
    /// Blocks that run once.
    Once(Range<usize>),
    /// Blocks that are looped.
    Looped(Box<Looped>),
}

/// A looped segment.
///
/// One step is: `x = inject(s, e)`, then the passes over block stacks, of which the last makes the new state s.
pub struct Looped {
    /// Norm of the stream that enters, which makes the constant input e of it; `None`: e is the stream.
    pub entry_norm: Option<Norm>,
    /// Where s_0 comes from.
    pub start: Start,
    /// What a step makes of state and input.
    pub injection: Injection,
    /// The stacks that a step runs, in order. The last one writes the state.
    pub passes: Vec<StackPass>,
    /// Norm that ends every pass.
    pub norm: Option<Norm>,
    /// The learned exit gate, if there is one.
    pub gate: Option<ExitGate>,
    /// Norm of the state on its way out of the loop.
    pub readout_norm: Option<Norm>,
    /// `[D, S]`, from the state (after its norm) to the stream, where there is such a projection.
    pub readout: Option<Matrix>,
}

/// The initial latent state of a looped segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// What the session's [`InitialState`](super::InitialState) says.
    Initial,
    /// The stream that enters.
    Stream,
}

/// What the blocks of a loop step take in, from the state s and the constant input e.
pub enum Injection {
    /// `x = s`.
    None,
    /// `x = W_s·s + (W_e·e + b)`. The published form is one matrix over the concatenation `[s, e]`; the second term does not
    /// change over the loop and is computed once per token.
    Linear {
        /// `[S, S]`.
        state: Matrix,
        /// `[S, D]`, with its bias.
        input: Linear,
    },
    /// `x = s ⊙ exp(−dt·A) + dt ⊙ (B·e)` with `dt = softplus(dt_bias)`, `A = exp(a_log)`: the discretised linear system of Parcae
    /// (arXiv 2604.12946). The second term is constant over the loop.
    Diagonal {
        /// `[S, D]`: B.
        input: Matrix,
        /// What depends on `a_log` and `dt_bias`.
        rates: Rates,
    },
    /// `x = s + z`, the sum of the state and the inner state that all passes but the last write.
    Inner {
        /// `[S]`: z before the first pass.
        initial: Vector,
    },
}

/// Decay and input rate of [`Injection::Diagonal`], computed at first use.
pub struct Rates {
    /// `[S]`: logarithm of A.
    pub a_log: Vector,
    /// `[S]`: dt before the softplus.
    pub dt_bias: Vector,
    values: OnceLock<RateValues>,
}

struct RateValues {
    decay: Box<[f32]>,
    rate: Box<[f32]>,
}

impl Rates {
    /// From the published parameters, `[S]` each.
    pub fn new(a_log: Vector, dt_bias: Vector) -> Self {
        Self { a_log, dt_bias, values: OnceLock::new() }
    }

    fn values(&self) -> &RateValues {
        self.values.get_or_init(|| {
            // As torch's softplus: the identity above 20.
            let softplus = |x: f32| if x > 20.0 { x } else { libm::log1pf(libm::expf(x)) };
            let rate: Box<[f32]> = self.dt_bias.iter().map(|&x| softplus(x)).collect();
            let decay = self.a_log.iter().zip(&rate).map(|(&a, &dt)| libm::expf(-dt * libm::expf(a))).collect();
            RateValues { decay, rate }
        })
    }

    /// `[S]`: exp(−dt·A), the factor of the state.
    pub fn decay(&self) -> &[f32] {
        &self.values().decay
    }

    /// `[S]`: dt, the factor of B·e.
    pub fn rate(&self) -> &[f32] {
        &self.values().rate
    }
}

/// One run over a stack of blocks within a loop step. Every pass over the same blocks in a step has keys and values of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackPass {
    /// The blocks.
    pub blocks: Range<usize>,
    /// How many passes of the same step went over these blocks before.
    pub nth: usize,
}

/// A learned exit gate: λ = sigmoid(w·s + b) after every step.
pub struct ExitGate {
    /// `[S]`.
    pub weight: Vector,
    /// b.
    pub bias: f32,
}

impl LoopPlan {
    /// The plan prelude → one loop → coda; empty parts are left out.
    pub fn around(prelude: Range<usize>, looped: Looped, coda: Range<usize>) -> Self {
        let once = |blocks: Range<usize>| (!blocks.is_empty()).then_some(Segment::Once(blocks));
        let segments = [once(prelude), Some(Segment::Looped(Box::new(looped))), once(coda)];
        Self { segments: segments.into_iter().flatten().collect() }
    }

    /// The looped segments, in order.
    pub fn loops(&self) -> impl Iterator<Item = &Looped> {
        self.segments.iter().filter_map(|s| match s {
            Segment::Looped(l) => Some(&**l),
            Segment::Once(_) => None,
        })
    }

    /// The segments after the last looped one.
    pub fn coda(&self) -> &[Segment] {
        let after = self.segments.iter().rposition(|s| matches!(s, Segment::Looped(_))).map_or(0, |i| i + 1);
        &self.segments[after..]
    }

    /// Block executions per token at a depth of `steps` in every loop.
    pub fn effective_depth(&self, steps: usize) -> usize {
        self.segments
            .iter()
            .map(|s| match s {
                Segment::Once(blocks) => blocks.len(),
                Segment::Looped(l) => l.passes.iter().map(|p| p.blocks.len()).sum::<usize>() * steps,
            })
            .sum()
    }
}

impl Looped {
    /// A plain loop over `blocks` without injection: s_0 is the stream, and a step is one pass.
    pub fn plain(blocks: Range<usize>) -> Self {
        Self {
            entry_norm: None,
            start: Start::Stream,
            injection: Injection::None,
            passes: vec![StackPass { blocks, nth: 0 }],
            norm: None,
            gate: None,
            readout_norm: None,
            readout: None,
        }
    }

    /// Physical blocks of the loop, each once, in the order of their first pass.
    pub fn blocks(&self) -> impl Iterator<Item = usize> {
        self.passes.iter().filter(|p| p.nth == 0).flat_map(|p| p.blocks.clone())
    }

    /// How often a step runs a block.
    pub fn passes_over(&self, block: usize) -> usize {
        self.passes.iter().filter(|p| p.blocks.contains(&block)).count()
    }
}

/// Depth of one looped segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Steps that the model uses by default (the mean of its training distribution).
    pub mean_steps: usize,
    /// Deepest loop that the model supports, where there is such a limit.
    pub max_steps: Option<usize>,
}

/// Sizes and constants of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, or empty.
    pub name: String,
    /// Width of the residual stream outside the loop, D.
    pub width: usize,
    /// Width of the latent state and of the blocks in the loop, S; mostly D.
    pub state_width: usize,
    /// Rows of the embedding table and of the head, V. May exceed the tokenizer's vocabulary (padding).
    pub vocab: usize,
    /// Positions the model was trained for.
    pub context: usize,
    /// Values per attention head.
    pub head_dim: usize,
    /// Factor on token embeddings.
    pub embedding_scale: f32,
    /// Depth of every looped segment, in order.
    pub loops: Vec<Depth>,
    /// Standard deviation of a random initial state, after all scaling.
    pub state_std: f32,
    /// Was the model trained with prompts whose tokens see each other in both directions?
    pub prefix_lm: bool,
    /// Does a loop have a learned exit gate?
    pub exit_gate: bool,
}

impl Config {
    /// Default steps of the deepest loop.
    pub fn mean_steps(&self) -> usize {
        self.loops.iter().map(|l| l.mean_steps).max().unwrap_or(1)
    }

    /// Deepest loop that the model supports in any segment; `None` where one has no limit.
    pub fn max_steps(&self) -> Option<usize> {
        self.loops.iter().map(|l| l.max_steps).try_fold(1, |most, n| n.map(|n| most.max(n)))
    }
}

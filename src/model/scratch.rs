//! Everything a forward pass writes, allocated once per session.

use super::layers::{UNIT, gcd};
use super::{Block, Config, Injection, Matrix, Model};
use crate::kernels::{ATTEND_ROWS, Acts, AttendScratch, ByteScale, Form, Kernels, LatentSums, Q8_BLOCK, WideScale};
use crate::team::Buffer;

/// Up to this many rows every worker normalises and quantises for itself, which saves a barrier; above, the work is shared.
pub(super) const OWN_ROWS: usize = 4;
/// Activation rows per tile of a matrix product.
pub(super) const TILE_COLUMNS: usize = 128;
/// Weight rows per tile, where a region has no unit of its own.
pub(super) const TILE_ROWS: usize = 32;

/// Activation rows in every form, `[rows][k]`, for any k up to the largest.
pub(super) struct ActBuffer {
    f: Buffer<f32>,
    q: Buffer<i8>,
    scales: Buffer<ByteScale>,
    wide: Buffer<i16>,
    high: Buffer<i8>,
    low: Buffer<i8>,
    wide_scales: Buffer<WideScale>,
}

impl ActBuffer {
    /// Memory is taken only by the forms that are used: pages come when they are touched.
    fn new(rows: usize, k: usize) -> Self {
        let blocks = rows * k.div_ceil(Q8_BLOCK);
        Self {
            f: Buffer::new(rows * k),
            q: Buffer::new(rows * k),
            scales: Buffer::new(blocks),
            wide: Buffer::new(rows * k),
            high: Buffer::new(rows * k),
            low: Buffer::new(rows * k),
            wide_scales: Buffer::new(blocks),
        }
    }

    /// The f32 form of row `i`, to write.
    ///
    /// # Safety
    /// As [`Buffer::write`], for this row.
    #[expect(clippy::mut_from_ref, reason = "as Buffer::write")]
    pub(super) unsafe fn f32_row(&self, i: usize, k: usize) -> &mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.f.write(i * k..(i + 1) * k) }
    }

    /// Writes the quantised forms that are asked for of row `i`, whose values are `x`.
    ///
    /// # Safety
    /// As [`Buffer::write`], for this row.
    pub(super) unsafe fn quantize(&self, kernels: &Kernels, i: usize, x: &[f32], forms: Forms) {
        let (a, b) = (i * x.len()..(i + 1) * x.len(), i * (x.len() / Q8_BLOCK)..(i + 1) * (x.len() / Q8_BLOCK));
        // SAFETY: passed on to the caller.
        unsafe {
            if forms.bytes {
                (kernels.quantize_row)(x, self.q.write(a.clone()), self.scales.write(b.clone()));
            }
            if forms.wide {
                let (high, low) = (self.high.write(a.clone()), self.low.write(a.clone()));
                (kernels.quantize_row_wide)(x, self.wide.write(a), high, low, self.wide_scales.write(b));
            }
        }
    }

    /// Rows `from..from + rows` to read.
    ///
    /// # Safety
    /// As [`Buffer::read`], for these rows.
    pub(super) unsafe fn rows(&self, from: usize, rows: usize, k: usize) -> Acts<'_> {
        let (a, b) = (from * k..(from + rows) * k, from * (k / Q8_BLOCK)..(from + rows) * (k / Q8_BLOCK));
        // SAFETY: passed on to the caller.
        unsafe {
            Acts {
                rows,
                k,
                f: self.f.read(a.clone()),
                q: self.q.read(a.clone()),
                scales: self.scales.read(b.clone()),
                wide: self.wide.read(a.clone()),
                high: self.high.read(a.clone()),
                low: self.low.read(a),
                wide_scales: self.wide_scales.read(b),
            }
        }
    }
}

/// Buffers of one worker; no other worker touches them.
pub(super) struct Own {
    /// `[OWN_ROWS][width]`: the residual stream, where it is not shared.
    pub x: Buffer<f32>,
    /// One row of the stream or of values, for what comes between two steps of a computation.
    pub row: Buffer<f32>,
    /// Up to [`OWN_ROWS`] rows.
    pub acts: ActBuffer,
    /// `[TILE_COLUMNS][largest unit of weight rows]`, twice.
    pub tile: [Buffer<f32>; 2],
    /// One element.
    pub attend: Buffer<AttendScratch>,
    /// `[ATTEND_ROWS][head_dim]`: queries that are computed together, and their outputs.
    pub attend_rows: [Buffer<f32>; 2],
    /// `[ATTEND_ROWS]`: how many positions each of them sees.
    pub seen: Buffer<usize>,
}

/// Buffers of a pass. Rows are rows of the chunk where not said otherwise; "active" rows are those still in the loop, moved
/// together. D is the width of the stream, S of the latent state; "width" is whichever is at work.
pub(super) struct Scratch {
    /// `[rows][width]`, active: the residual stream at the start of a half block.
    pub x: Buffer<f32>,
    /// `[rows][width]`, active: the stream, or what a half block made, as the norm that is due takes it.
    pub y: Buffer<f32>,
    /// `[rows][D]`: the constant input e of the loop at work.
    pub prelude: Buffer<f32>,
    /// `[rows][S]`: what the injection adds in every step.
    pub input: Buffer<f32>,
    /// `[rows][S]`: the latent state s.
    pub state: Buffer<f32>,
    /// `[rows][S]`: the inner state z; empty in models without one.
    pub inner: Buffer<f32>,
    /// `[rows][S]`: the latest step Δ.
    pub delta: Buffer<f32>,
    /// `[rows]`: statistics of the latest step.
    pub sums: Buffer<LatentSums>,
    /// `[rows]`: logits of the exit gate.
    pub gates: Buffer<f32>,
    /// `[rows][heads · head_dim]`, active: queries, then attention outputs.
    pub q: Buffer<f32>,
    pub attended: Buffer<f32>,
    /// `[rows][heads · head_dim]`, active: gates of attention outputs; empty in models without them.
    pub attn_gates: Buffer<f32>,
    /// `[rows][F]`, active.
    pub hidden: Buffer<f32>,
    pub acts: ActBuffer,
    /// `[rows][head_dim / 2]`.
    pub cos: Buffer<f32>,
    pub sin: Buffer<f32>,
    /// `[rows wanted][V]`.
    pub logits: Buffer<f32>,
    pub own: Vec<Own>,
}

impl Scratch {
    pub(super) fn new(model: &Model, rows: usize, workers: usize) -> Self {
        let &Config { width: d, state_width, head_dim, vocab, .. } = model.config();
        let blocks = model.blocks();
        let widest = |f: &dyn Fn(&Block) -> usize| blocks.iter().map(f).max().unwrap_or(0);
        let width = widest(&Block::width).max(d).max(state_width);
        let heads = widest(&|b| b.heads * head_dim);
        let gated = widest(&|b| if b.attn_gate.is_some() { b.heads * head_dim } else { 0 });
        let hidden = widest(&|b| b.mlp.up.weight.rows);
        let values = widest(&|b| b.kv_heads * head_dim);
        let inner = model.plan().loops().any(|l| matches!(l.injection, Injection::Inner { .. }));
        let k = [width, heads, hidden].into_iter().max().unwrap_or(0);
        let tile = TILE_COLUMNS * (head_dim * UNIT / gcd(UNIT, head_dim)).max(TILE_ROWS);
        let own = || Own {
            x: Buffer::new(OWN_ROWS * width),
            row: Buffer::new(width.max(values)),
            acts: ActBuffer::new(OWN_ROWS, k),
            tile: [Buffer::new(tile), Buffer::new(tile)],
            attend: Buffer::from(vec![AttendScratch::new(head_dim)]),
            attend_rows: [Buffer::new(ATTEND_ROWS * head_dim), Buffer::new(ATTEND_ROWS * head_dim)],
            seen: Buffer::new(ATTEND_ROWS),
        };
        Self {
            x: Buffer::new(rows * width),
            y: Buffer::new(rows * width),
            prelude: Buffer::new(rows * d),
            input: Buffer::new(rows * state_width),
            state: Buffer::new(rows * state_width),
            inner: Buffer::new(if inner { rows * state_width } else { 0 }),
            delta: Buffer::new(rows * state_width),
            sums: Buffer::new(rows),
            gates: Buffer::new(rows),
            q: Buffer::new(rows * heads),
            attended: Buffer::new(rows * heads),
            attn_gates: Buffer::new(rows * gated),
            hidden: Buffer::new(rows * hidden),
            acts: ActBuffer::new(rows, k),
            cos: Buffer::new(rows * head_dim / 2),
            sin: Buffer::new(rows * head_dim / 2),
            logits: Buffer::new(vocab),
            own: std::iter::repeat_with(own).take(workers).collect(),
        }
    }
}

/// Which forms of its input a group of matrices needs.
#[derive(Clone, Copy)]
pub(super) struct Forms {
    pub plain: bool,
    pub bytes: bool,
    pub wide: bool,
}

impl Forms {
    pub(super) fn of(matrices: &[&Matrix]) -> Self {
        let any = |form| matrices.iter().any(|m| m.form() == form);
        Self { plain: any(Form::Plain), bytes: any(Form::Bytes), wide: any(Form::Wide) }
    }
}

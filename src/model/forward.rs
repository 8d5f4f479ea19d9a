//! One pass of a chunk of rows through the model: embedding → prelude → [inject → core blocks → policy]* → coda → logits.
//!
//! The whole pass is one job of the team. Every worker runs [`Pass::run`]; between two barriers each buffer is either read by
//! anyone or written in disjoint parts, and every `SAFETY` comment below names the part. A block takes five such regions:
//! (norm + quantise) q, k, v + rotation + KV write → attention → output projection + residual → (norm + quantise) gate, up
//! and activation → down projection + residual.

use super::kv::KvCache;
use super::policy::{DepthPolicy, LatentStats, Verdict};
use super::scratch::{ActBuffer, Forms, OWN_ROWS, Own, Scratch, TILE_COLUMNS, TILE_ROWS};
use super::session::Row;
use super::{Block, Error, InitialState, Matrix, Model};
use crate::kernels::{Acts, KvType};
use crate::team::{Buffer, Worker};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// A pass over one chunk. Worker 0 alone touches `control` between the barriers that surround a decision.
pub(super) struct Pass<'a, 'c> {
    pub model: &'a Model,
    pub scratch: &'a Scratch,
    pub kv: &'a KvCache,
    pub kv_type: KvType,
    pub slots: usize,
    /// The rows of the chunk; positions of a sequence ascend by one.
    pub rows: &'a [Row],
    pub initial: &'a InitialState,
    /// Where the rows' states come from: the loop, or a caller who wants them read out.
    pub task: Task,
    /// Chunk rows whose logits are wanted, ascending; row `i` of the logits belongs to `wanted[i]`.
    pub wanted: &'a [usize],
    /// May a policy read out a row inside the loop? Only where the chunk is that row.
    pub readout_exits: bool,
    pub cancel: &'a AtomicBool,
    /// One element.
    pub control: &'a Buffer<Control<'c>>,
}

/// What a pass does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Everything, from tokens to logits.
    Full,
    /// Coda and head for states that are already in [`Scratch::state`].
    ReadOut,
}

/// What worker 0 decides and the others read.
pub(super) struct Control<'a> {
    pub policy: &'a mut dyn DepthPolicy,
    /// Chunk rows still in the loop.
    pub active: Vec<usize>,
    /// Rows that left at the latest decision: (chunk row, steps done).
    pub left: Vec<(usize, usize)>,
    /// Steps done, per chunk row.
    pub steps: &'a mut [usize],
    /// The policy asks for logits before it decides about the only row.
    pub read_out: bool,
    /// The logits belong to the row's present state.
    pub logits_fresh: bool,
    pub error: Option<Error>,
}

/// Rows that a region takes as input, with the norm that is still due.
#[derive(Clone, Copy)]
struct Source<'a> {
    buffer: &'a Buffer<f32>,
    /// Row `i` of the region is row `index[i]` of the buffer; `None`: row `i`.
    index: Option<&'a [usize]>,
    /// The norm that makes the residual stream of it.
    due: Option<&'a [f32]>,
}

impl<'a> Source<'a> {
    fn plain(buffer: &'a Buffer<f32>) -> Self {
        Source { buffer, index: None, due: None }
    }

    fn due(self, due: Option<&'a [f32]>) -> Self {
        Source { due, ..self }
    }

    fn at(self, index: &'a [usize]) -> Self {
        Source { index: Some(index), ..self }
    }
}

impl Pass<'_, '_> {
    /// The whole pass, as one worker. A failure is left in [`Control::error`].
    pub(super) fn run(&self, w: &Worker<'_>) {
        let all = &self.scratch.indices[..self.rows.len()];
        self.rotation(w);
        if self.task == Task::Full {
            self.embed(w);
        }
        w.barrier();
        if self.task == Task::Full {
            let end = self.prelude(w, all);
            self.inject_constant(w, end, all);
            self.start(w);
            while self.keep_looping(w) {
                // SAFETY: worker 0 writes `control` only inside `decide`, behind the barrier; the list is given back before it.
                self.core_step(w, unsafe { &self.control.read(0..1)[0].active });
                w.barrier();
                self.decide(w);
            }
        }
        // SAFETY: as above; the last decision was followed by a barrier.
        let control = unsafe { &self.control.read(0..1)[0] };
        if control.error.is_none() && !control.logits_fresh {
            self.read_out(w, all, self.wanted);
        }
    }

    /// Cosines and sines of every row's position, angles as f32 products as in the reference.
    fn rotation(&self, w: &Worker<'_>) {
        let half = self.model.config().head_dim / 2;
        for i in w.share(self.rows.len()) {
            let at = i * half..(i + 1) * half;
            // SAFETY: shares of the rows are disjoint, and nobody reads the table before the next barrier.
            let (cos, sin) = unsafe { (self.scratch.cos.write(at.clone()), self.scratch.sin.write(at)) };
            for ((c, s), f) in cos.iter_mut().zip(sin).zip(self.model.inverse_frequencies()) {
                let angle = self.rows[i].position as f32 * f;
                (*c, *s) = (libm::cosf(angle), libm::sinf(angle));
            }
        }
    }

    /// Token embeddings, scaled, into `y`.
    fn embed(&self, w: &Worker<'_>) {
        let d = self.model.config().width;
        for i in w.share(self.rows.len()) {
            // SAFETY: shares of the rows are disjoint, and nobody reads `y` before the barrier.
            let y = unsafe { self.scratch.y.write(i * d..(i + 1) * d) };
            self.model.embedding(self.rows[i].token, y);
        }
    }

    /// The blocks before the loop, for all rows. What is left is in `y`, with a norm due.
    fn prelude(&self, w: &Worker<'_>, all: &[usize]) -> Option<&[f32]> {
        let mut due = None;
        for b in self.model.plan().prelude.clone() {
            due = self.block(w, b, Source::plain(&self.scratch.y).due(due), all, None);
        }
        due
    }

    /// The prelude's output, and what the adapter makes of it: constant over the loop.
    fn inject_constant(&self, w: &Worker<'_>, due: Option<&[f32]>, all: &[usize]) {
        let d = self.model.config().width;
        let (kernels, eps) = (self.model.kernels(), self.model.config().norm_eps);
        let s = self.scratch;
        for i in w.share(all.len()) {
            let at = i * d..(i + 1) * d;
            // SAFETY: nobody writes `y` in this region; rows of `prelude` are written by shares and read after the barrier.
            let (y, e) = unsafe { (s.y.read(at.clone()), s.prelude.write(at)) };
            match due {
                Some(weight) => (kernels.rms_norm)(y, weight, eps, e),
                None => e.copy_from_slice(y),
            }
        }
        w.barrier();
        let adapter = self.model.adapter();
        let entered = self.enter(w, Source::plain(&s.prelude), None, all.len(), &[&adapter.input]);
        self.project(w, &adapter.input, entered.acts, all.len(), |i, at, out| {
            // SAFETY: a worker writes only its own share of the columns of `input`, which is read after a barrier.
            let input = unsafe { s.input.write(i * d + at.start..i * d + at.end) };
            input.copy_from_slice(out);
            if let Some(bias) = &adapter.bias {
                for (x, b) in input.iter_mut().zip(&bias[at]) {
                    *x += b;
                }
            }
        });
    }

    /// Initial states, and the policy's first look.
    fn start(&self, w: &Worker<'_>) {
        let d = self.model.config().width;
        for i in w.share(self.rows.len()) {
            let at = i * d..(i + 1) * d;
            // SAFETY: shares of the rows are disjoint; read after the barrier.
            let (state, delta) = unsafe { (self.scratch.state.write(at.clone()), self.scratch.delta.write(at)) };
            self.initial.fill(self.model.config(), &self.rows[i], state);
            delta.fill(0.0);
        }
        w.barrier();
        if w.id() == 0 {
            // SAFETY: only worker 0 touches `control` before the next barrier, and nobody writes states or preludes.
            let control = unsafe { &mut self.control.write(0..1)[0] };
            for (i, row) in self.rows.iter().enumerate() {
                // SAFETY: as above.
                let (e, s) = unsafe {
                    (self.scratch.prelude.read(i * d..(i + 1) * d), self.scratch.state.read(i * d..(i + 1) * d))
                };
                control.policy.begin(i, row, e, s);
            }
        }
        w.barrier();
    }

    fn keep_looping(&self, _: &Worker<'_>) -> bool {
        // SAFETY: every caller stands behind the barrier that ended the latest decision.
        let control = unsafe { &self.control.read(0..1)[0] };
        control.error.is_none() && !control.active.is_empty()
    }

    /// Inject, then all core blocks: one loop step of the active rows, which may stand at different steps. A barrier must follow.
    fn core_step(&self, w: &Worker<'_>, active: &[usize]) {
        let (s, d) = (self.scratch, self.model.config().width);
        let adapter = self.model.adapter();
        let n = active.len();
        let entered = self.enter(w, Source::plain(&s.state).at(active), None, n, &[&adapter.state]);
        self.project(w, &adapter.state, entered.acts, n, |i, at, out| {
            let row = active[i] * d;
            // SAFETY: a worker writes only its own share of the columns of `y`; `input` is not written during the loop.
            let (y, input) =
                unsafe { (s.y.write(i * d + at.start..i * d + at.end), s.input.read(row + at.start..row + at.end)) };
            y.copy_from_slice(out);
            (self.model.kernels().add)(input, y);
        });
        w.barrier();
        // SAFETY: worker 0 writes `control` only inside `decide`.
        let steps = unsafe { &*self.control.read(0..1)[0].steps };
        let mut due = None;
        for b in self.model.plan().core.clone() {
            due = self.block(w, b, Source::plain(&s.y).due(due), active, Some(steps));
        }
        // The norm that ends the step makes the new state; the statistics ride along.
        let kernels = self.model.kernels();
        for i in w.share(n) {
            let (from, to) = (i * d..(i + 1) * d, active[i] * d..(active[i] + 1) * d);
            // SAFETY: nobody writes `y` here; `x` is free between blocks; shares of the active rows are disjoint.
            unsafe {
                let mut new = s.y.read(from.clone());
                if let Some(weight) = due {
                    let x = s.x.write(from);
                    (kernels.rms_norm)(new, weight, self.model.config().norm_eps, x);
                    new = x;
                }
                s.sums.write(active[i]..active[i] + 1)[0] =
                    (kernels.latent_sums)(new, s.state.write(to.clone()), s.delta.write(to));
            }
        }
    }

    /// Worker 0 asks the policy about every active row; rows that leave fill their KV slots forward.
    fn decide(&self, w: &Worker<'_>) {
        if w.id() == 0 {
            self.ask_policy();
        }
        w.barrier();
        // SAFETY: worker 0 is done with `control` until the next barrier.
        if unsafe { self.control.read(0..1)[0].read_out } {
            self.read_out(w, &[0], &[0]);
            w.barrier();
            if w.id() == 0 {
                self.ask_policy_again();
            }
            w.barrier();
        }
        // SAFETY: as above.
        let control = unsafe { &self.control.read(0..1)[0] };
        let core = self.model.plan().core.clone();
        for i in w.share(control.left.len() * core.len()) {
            let ((row, steps), block) = (control.left[i / core.len()], core.start + i % core.len());
            let Row { sequence, position, .. } = self.rows[row];
            // SAFETY: shares of (row, block) are disjoint, and nobody attends before the next barrier.
            unsafe { self.kv.fill_forward(block, sequence, position, steps) };
        }
        // No barrier: the next region that reads these keys lies behind one, and `control` is next written behind several.
    }

    fn ask_policy(&self) {
        let d = self.model.config().width;
        // SAFETY: called by worker 0 while all others wait at the barrier that follows.
        let control = unsafe { &mut self.control.write(0..1)[0] };
        control.left.clear();
        control.read_out = false;
        control.logits_fresh = false;
        if self.cancel.load(Ordering::Relaxed) {
            control.error = Some(Error::Cancelled);
            return;
        }
        let max = control.policy.max_steps();
        let Control { policy, active, left, steps, read_out, error, .. } = control;
        active.retain(|&i| {
            let row = &self.rows[i];
            steps[i] += 1;
            // SAFETY: as above: only worker 0 is not waiting.
            let (sums, latent) =
                unsafe { (&self.scratch.sums.read(i..i + 1)[0], self.scratch.state.read(i * d..(i + 1) * d)) };
            if !sums.state.is_finite() {
                error.get_or_insert(Error::NotFinite { position: row.position, step: steps[i] });
                return false;
            }
            let verdict = policy.after_step(i, row, &LatentStats::new(steps[i], sums), latent);
            *read_out |= verdict == Verdict::ReadOut && self.readout_exits && self.rows.len() == 1;
            let leaves = verdict == Verdict::Leave || steps[i] >= max;
            if leaves && !*read_out {
                left.push((i, steps[i]));
            }
            !leaves || *read_out
        });
    }

    /// The second question about the only row, with its logits at hand.
    fn ask_policy_again(&self) {
        // SAFETY: called by worker 0 while all others wait at the barrier that follows.
        let (control, sums, logits) = unsafe {
            let vocab = self.model.config().vocab;
            (&mut self.control.write(0..1)[0], &self.scratch.sums.read(0..1)[0], self.scratch.logits.read(0..vocab))
        };
        let step = control.steps[0];
        let leaves = control.policy.after_readout(0, &self.rows[0], &LatentStats::new(step, sums), logits);
        if leaves || step >= control.policy.max_steps() {
            control.left.push((0, step));
            control.active.clear();
            // The work of this read-out is the row's final one, if its logits are wanted at all.
            control.logits_fresh = self.wanted == [0];
        }
    }

    /// Coda and head: the logits of the chunk rows `wanted`, from the states of `rows`.
    fn read_out(&self, w: &Worker<'_>, rows: &[usize], wanted: &[usize]) {
        let s = self.scratch;
        let readout_norm = self.model.readout_norm();
        let mut source = Source::plain(&s.state).due(readout_norm);
        for b in self.model.plan().coda.clone() {
            let due = self.block(w, b, source, rows, None);
            source = Source::plain(&s.y).due(due);
        }
        if wanted.is_empty() {
            return;
        }
        let (head, vocab) = (self.model.head(), self.model.config().vocab);
        let entered = self.enter(w, source.at(wanted), Some(self.model.output_norm()), wanted.len(), &[head]);
        self.project(w, head, entered.acts, wanted.len(), |i, at, out| {
            // SAFETY: a worker writes only its own share of the columns of the logits.
            unsafe { s.logits.write(i * vocab + at.start..i * vocab + at.end) }.copy_from_slice(out);
        });
    }

    /// One block for the active rows. It reads `source` (with its norm due) and leaves the sum that its last norm takes in `y`;
    /// gives that norm. `steps` (per chunk row) selects the KV slot; `None` is a block outside the loop.
    fn block<'b>(
        &'b self,
        w: &Worker<'_>,
        b: usize,
        source: Source<'_>,
        active: &[usize],
        steps: Option<&[usize]>,
    ) -> Option<&'b [f32]> {
        let block = &self.model.blocks()[b];
        let (s, n, d) = (self.scratch, active.len(), self.model.config().width);
        let slot = |row: usize| steps.map_or(0, |steps| steps[row] % self.slots);

        let entered = self.enter(w, source, Some(&block.attn_norm), n, &[&block.q, &block.k, &block.v]);
        self.qkv(w, b, block, entered.acts, active, &slot);
        w.barrier();

        self.attention(w, b, block, active, &slot);
        w.barrier();

        // Attention outputs are read here and written behind the next barrier but three; the residual x is untouched since.
        let attended = self.enter(w, Source::plain(&s.attended), None, n, &[&block.attn_output]);
        let residual = |x: &Buffer<f32>, i: usize, at: Range<usize>, out: &[f32]| {
            let at = i * d + at.start..i * d + at.end;
            // SAFETY: a worker writes only its own share of the columns of `y`; x is only read until the barrier.
            let (x, y) = unsafe { (x.read(at.clone()), s.y.write(at)) };
            y.copy_from_slice(out);
            (self.model.kernels().add)(x, y);
        };
        self.project(w, &block.attn_output, attended.acts, n, |i, at, out| residual(entered.x, i, at, out));
        w.barrier();

        let source = Source::plain(&s.y).due(Some(&block.post_attn_norm));
        let entered = self.enter(w, source, Some(&block.ffn_norm), n, &[&block.gate, &block.up]);
        self.gate_up(w, block, entered.acts, n);
        w.barrier();

        let hidden = self.enter(w, Source::plain(&s.hidden), None, n, &[&block.down]);
        self.project(w, &block.down, hidden.acts, n, |i, at, out| residual(entered.x, i, at, out));
        w.barrier();
        Some(&block.post_ffn_norm)
    }

    /// Prepares the input of a region: `x` = the source with its due norm, then `pre` and quantisation as the matrices need.
    ///
    /// For a few rows every worker does this for itself. For more, the rows are shared out and a barrier follows.
    fn enter<'b>(
        &'b self,
        w: &Worker<'_>,
        source: Source<'_>,
        pre: Option<&[f32]>,
        n: usize,
        matrices: &[&Matrix],
    ) -> Entered<'b> {
        let k = matrices[0].cols;
        let forms = Forms::of(matrices);
        let own = &self.scratch.own[w.id()];
        let alone = n <= OWN_ROWS;
        let entered = if alone {
            Entered { x: &own.x, acts: &own.acts }
        } else {
            Entered { x: &self.scratch.x, acts: &self.scratch.acts }
        };
        let (kernels, eps) = (self.model.kernels(), self.model.config().norm_eps);
        for i in if alone { 0..n } else { w.share(n) } {
            let row = source.index.map_or(i, |index| index[i]);
            // SAFETY: the source is not written in this region. Its own buffers a worker has to itself; of the shared ones it
            // writes only its share of the rows, and they are read behind the barrier below. The readers of their former
            // contents are behind the barrier that ended the previous region.
            unsafe {
                let mut x = source.buffer.read(row * k..(row + 1) * k);
                if let Some(weight) = source.due {
                    let out = entered.x.write(i * k..(i + 1) * k);
                    (kernels.rms_norm)(x, weight, eps, out);
                    x = out;
                } else if pre.is_some() {
                    // The residual stream itself: keep it, a later region adds to it.
                    let out = entered.x.write(i * k..(i + 1) * k);
                    out.copy_from_slice(x);
                }
                if let Some(weight) = pre {
                    let out = entered.acts.f32_row(i, k);
                    (kernels.rms_norm)(x, weight, eps, out);
                    x = out;
                } else if forms.plain {
                    entered.acts.f32_row(i, k).copy_from_slice(x);
                }
                entered.acts.quantize(kernels, i, x, forms);
            }
        }
        if !alone {
            w.barrier();
        }
        entered
    }

    /// A matrix product: this worker's share of the weight rows times all `n` activation rows, in tiles that `done` takes:
    /// (activation row, weight rows, products).
    fn project(
        &self,
        w: &Worker<'_>,
        m: &Matrix,
        acts: &ActBuffer,
        n: usize,
        mut done: impl FnMut(usize, Range<usize>, &[f32]),
    ) {
        let own = &self.scratch.own[w.id()];
        let rows = share_of_rows(w, m.rows);
        for r in rows.clone().step_by(TILE_ROWS) {
            let r = r..(r + TILE_ROWS).min(rows.end);
            self.tiles(m, acts, n, r, own, 0, &mut done);
        }
    }

    /// The weight rows `r` times all activation rows, `TILE_COLUMNS` at a time.
    #[expect(clippy::too_many_arguments, reason = "the inside of `project` and `qkv`")]
    fn tiles(
        &self,
        m: &Matrix,
        acts: &ActBuffer,
        n: usize,
        r: Range<usize>,
        own: &Own,
        tile: usize,
        done: &mut impl FnMut(usize, Range<usize>, &[f32]),
    ) {
        let weights = self.model.rows(m, r.clone());
        for c in (0..n).step_by(TILE_COLUMNS) {
            let columns = (n - c).min(TILE_COLUMNS);
            // SAFETY: the activations were finished behind a barrier, or are this worker's own; so is the tile.
            let (acts, out): (Acts<'_>, _) =
                unsafe { (acts.rows(c, columns, m.cols), own.tile[tile].write(0..columns * r.len())) };
            (m.multiply)(weights, r.len(), acts, out);
            for (j, out) in out.chunks_exact(r.len()).enumerate() {
                done(c + j, r.clone(), out);
            }
        }
    }

    /// Queries, keys and values by whole heads: bias, rotation, and the write to the cache.
    fn qkv(
        &self,
        w: &Worker<'_>,
        b: usize,
        block: &Block,
        acts: &ActBuffer,
        active: &[usize],
        slot: &dyn Fn(usize) -> usize,
    ) {
        let (s, hd) = (self.scratch, self.model.config().head_dim);
        let (kernels, own) = (self.model.kernels(), &s.own[w.id()]);
        let store = kernels.store_kv(self.kv_type);
        let width = block.heads * hd;
        for unit in w.share(block.heads + 2 * block.kv_heads) {
            let (matrix, bias, head, part) = if unit < block.heads {
                (&block.q, &block.q_bias, unit, None)
            } else if unit < block.heads + block.kv_heads {
                (&block.k, &block.k_bias, unit - block.heads, Some(&self.kv.keys))
            } else {
                (&block.v, &None, unit - block.heads - block.kv_heads, Some(&self.kv.values))
            };
            let rotated = unit < block.heads + block.kv_heads;
            self.tiles(matrix, acts, active.len(), head * hd..(head + 1) * hd, own, 0, &mut |i, at, out| {
                // SAFETY: the second tile is this worker's own.
                let x = unsafe { own.tile[1].write(0..hd) };
                x.copy_from_slice(out);
                if let Some(bias) = bias {
                    (kernels.add)(&bias[at], x);
                }
                let row = active[i];
                if rotated {
                    let angles = row * (hd / 2)..(row + 1) * (hd / 2);
                    // SAFETY: the table was finished before the first barrier of the pass.
                    let (cos, sin) = unsafe { (s.cos.read(angles.clone()), s.sin.read(angles)) };
                    (kernels.rope_interleaved)(x, cos, sin);
                }
                let Row { sequence, position, .. } = self.rows[row];
                match part {
                    // SAFETY: a head of a row is written by one worker; it is read behind the barrier that follows.
                    None => unsafe { s.q.write(i * width + head * hd..i * width + (head + 1) * hd) }.copy_from_slice(x),
                    Some(part) => {
                        let at = self.kv.rows(b, slot(row), sequence, head, position..position + 1);
                        // SAFETY: as above, in the cache.
                        store(x, unsafe { part.write(at) });
                    }
                }
            });
        }
    }

    /// Every (row, query head) against the positions up to its own.
    fn attention(&self, w: &Worker<'_>, b: usize, block: &Block, active: &[usize], slot: &dyn Fn(usize) -> usize) {
        let (s, hd) = (self.scratch, self.model.config().head_dim);
        let attend = self.model.kernels().attend(self.kv_type);
        let scale = 1.0 / (hd as f32).sqrt();
        let group = block.heads / block.kv_heads;
        // SAFETY: this worker's own.
        let scratch = unsafe { &mut s.own[w.id()].attend.write(0..1)[0] };
        // Heads outermost: the rows of a chunk share a head's keys while they are in the cache.
        for unit in w.share(block.heads * active.len()) {
            let (head, i) = (unit / active.len(), unit % active.len());
            let Row { sequence, position, .. } = self.rows[active[i]];
            let seen = self.kv.rows(b, slot(active[i]), sequence, head / group, 0..position + 1);
            let at = (i * block.heads + head) * hd..(i * block.heads + head + 1) * hd;
            // SAFETY: queries and cache are only read in this region; each output is written by one worker.
            let (q, keys, values, out) = unsafe {
                let (k, v) = (&self.kv.keys, &self.kv.values);
                (s.q.read(at.clone()), k.read(seen.clone()), v.read(seen), s.attended.write(at))
            };
            attend(q, keys, values, scale, scratch, out);
        }
    }

    /// Gate and up projections of the same rows, and the activation, into `hidden`.
    fn gate_up(&self, w: &Worker<'_>, block: &Block, acts: &ActBuffer, n: usize) {
        let (s, own) = (self.scratch, &self.scratch.own[w.id()]);
        let f = block.gate.rows;
        let rows = share_of_rows(w, f);
        for r in rows.clone().step_by(TILE_ROWS) {
            let r = r..(r + TILE_ROWS).min(rows.end);
            for c in (0..n).step_by(TILE_COLUMNS) {
                let columns = (n - c).min(TILE_COLUMNS);
                let len = columns * r.len();
                // SAFETY: the activations were finished behind a barrier, or are this worker's own; so are the tiles.
                let (acts, gate, up) = unsafe {
                    (acts.rows(c, columns, block.gate.cols), own.tile[0].write(0..len), own.tile[1].write(0..len))
                };
                (block.gate.multiply)(self.model.rows(&block.gate, r.clone()), r.len(), acts, gate);
                (block.up.multiply)(self.model.rows(&block.up, r.clone()), r.len(), acts, up);
                for (j, (gate, up)) in gate.chunks_exact(r.len()).zip(up.chunks_exact(r.len())).enumerate() {
                    let row = (c + j) * f;
                    // SAFETY: a worker writes only its own share of the columns of `hidden`.
                    let out = unsafe { s.hidden.write(row + r.start..row + r.end) };
                    (self.model.kernels().silu_mul)(gate, up, out);
                }
            }
        }
    }
}

/// This worker's share of a matrix's rows, in the eights that kernels compute at once.
fn share_of_rows(w: &Worker<'_>, rows: usize) -> Range<usize> {
    const UNIT: usize = 8;
    let units = w.share(rows.div_ceil(UNIT));
    units.start * UNIT..(units.end * UNIT).min(rows)
}

/// Where [`Pass::enter`] left its results.
struct Entered<'a> {
    /// The residual stream, if a norm was due or follows.
    x: &'a Buffer<f32>,
    acts: &'a ActBuffer,
}

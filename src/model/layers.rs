//! The inside of a block, for all active rows at once.
//!
//! A block takes five regions between barriers: (norm + quantise) q, k, v, gate + rotation + KV write → attention → output
//! projection + residual → (norm + quantise) MLP's first half + activation → second half + residual.

use super::forward::Pass;
use super::scratch::{ActBuffer, Forms, OWN_ROWS, Own, TILE_COLUMNS, TILE_ROWS};
use super::session::Row;
use super::{Activation, Block, Linear, Matrix, Mlp, Norm, PostNorm, RopeStyle, ValueEmbedding};
use crate::kernels::{ATTEND_ROWS, Acts, Attention};
use crate::team::{Buffer, Worker};
use std::ops::Range;

/// What makes the residual stream of rows that a region finds in a buffer.
#[derive(Clone, Copy)]
pub(super) enum Due<'a> {
    /// They are the stream.
    Nothing,
    /// A norm of them is.
    Norm(&'a Norm),
    /// The stream x from before (in [`Pass::stream`]) plus a norm of them is.
    Branch(&'a Norm),
}

/// Rows that a region takes as input.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    buffer: &'a Buffer<f32>,
    /// Row `i` of the region is row `index[i]` of the buffer; `None`: row `i`.
    index: Option<&'a [usize]>,
    /// Only these of them are taken; `None`: all.
    only: Option<&'a [usize]>,
    pub(super) due: Due<'a>,
}

impl<'a> Source<'a> {
    pub(super) fn plain(buffer: &'a Buffer<f32>) -> Self {
        Source { buffer, index: None, only: None, due: Due::Nothing }
    }

    pub(super) fn due(self, due: Due<'a>) -> Self {
        Source { due, ..self }
    }

    pub(super) fn at(self, index: &'a [usize]) -> Self {
        Source { index: Some(index), ..self }
    }

    /// Some of these rows.
    pub(super) fn only(self, rows: &'a [usize]) -> Self {
        Source { only: Some(rows), ..self }
    }

    /// Where row `i` of the region is, `k` wide.
    fn row(&self, i: usize, k: usize) -> Range<usize> {
        let row = self.only.map_or(i, |only| only[i]);
        let row = self.index.map_or(row, |index| index[row]);
        row * k..(row + 1) * k
    }
}

/// Where [`Pass::enter`] left its results.
pub(super) struct Entered<'a> {
    /// The residual stream, if a norm was due or follows.
    x: &'a Buffer<f32>,
    pub(super) acts: &'a ActBuffer,
}

impl Pass<'_, '_> {
    /// One block for the active rows. It reads `source` and leaves in `y` what its result says is due. `at` (steps done per chunk
    /// row, and the pass of the step) selects the keys and values; `None` is a block outside the loop.
    pub(super) fn block<'b>(
        &'b self,
        w: &Worker<'_>,
        b: usize,
        source: Source<'_>,
        active: &[usize],
        at: Option<(&[usize], usize)>,
    ) -> Due<'b> {
        let block = &self.model.blocks()[b];
        let (s, n, d) = (self.scratch, active.len(), block.width());
        let plane = |row: usize| at.map_or(0, |(steps, pass)| self.kv.plane(b, steps[row], pass));

        let mut inputs = [&block.q.weight; 4];
        inputs[1] = &block.k.weight;
        inputs[2] = &block.v.weight;
        inputs[3] = block.attn_gate.as_ref().unwrap_or(inputs[0]);
        let entered = self.enter(w, source, Some(&block.attn_norm), n, &inputs);
        self.qkv(w, b, block, entered.acts, active, &plane);
        w.barrier();

        self.attention(w, b, block, active, &plane);
        w.barrier();

        // Attention outputs are read here and written behind the next barrier but three; the residual x is untouched since.
        let attended = self.enter(w, Source::plain(&s.attended), None, n, &[&block.attn_output.weight]);
        let half = |linear: &Linear, post: &PostNorm, i: usize, at: Range<usize>, out: &[f32]| {
            let to = i * d + at.start..i * d + at.end;
            // SAFETY: a worker writes only the columns that it computes of `y`.
            let y = unsafe { s.y.write(to.clone()) };
            y.copy_from_slice(out);
            if let Some(bias) = &linear.bias {
                (self.model.kernels().add)(&bias[at], y);
            }
            if !matches!(post, PostNorm::Branch(_)) {
                // SAFETY: x is only read until the barrier.
                (self.model.kernels().add)(unsafe { self.stream(w, n).read(to) }, y);
            }
        };
        self.project(w, &block.attn_output.weight, attended.acts, n, |i, at, out| {
            half(&block.attn_output, &block.post_attn, i, at, out);
        });
        w.barrier();

        let source = Source::plain(&s.y).due(due(&block.post_attn));
        let first = block.mlp.gate.as_ref().unwrap_or(&block.mlp.up);
        let entered = self.enter(w, source, Some(&block.ffn_norm), n, &[&first.weight, &block.mlp.up.weight]);
        self.mlp(w, &block.mlp, entered.acts, n);
        w.barrier();

        let hidden = self.enter(w, Source::plain(&s.hidden), None, n, &[&block.mlp.down.weight]);
        self.project(w, &block.mlp.down.weight, hidden.acts, n, |i, at, out| {
            half(&block.mlp.down, &block.post_ffn, i, at, out);
        });
        w.barrier();
        due(&block.post_ffn)
    }

    /// The residual stream at the start of a half block, of `n` rows.
    fn stream(&self, w: &Worker<'_>, n: usize) -> &Buffer<f32> {
        if n <= OWN_ROWS { &self.scratch.own[w.id()].x } else { &self.scratch.x }
    }

    /// Row `i` of the stream that `source` makes, `k` wide, in the region behind the one that wrote it, for the worker whose share
    /// of the `n` rows it is. It holds until the worker's next call.
    pub(super) fn settled(&self, w: &Worker<'_>, source: Source<'_>, i: usize, n: usize, k: usize) -> &[f32] {
        // SAFETY: nobody writes the source, or the stream, in this region; the row is this worker's own.
        unsafe {
            let from = source.buffer.read(source.row(i, k));
            let row = self.scratch.own[w.id()].row.write(0..k);
            match source.due {
                Due::Nothing => row.copy_from_slice(from),
                Due::Norm(norm) => self.norm(norm, from, row),
                Due::Branch(norm) => {
                    self.norm(norm, from, row);
                    (self.model.kernels().add)(self.stream(w, n).read(i * k..(i + 1) * k), row);
                }
            }
            row
        }
    }

    /// Prepares the input of a region: `x` = the stream that the source makes, then `pre` and quantisation as the matrices need.
    ///
    /// For a few rows every worker does this for itself. For more, the rows are shared out and a barrier follows.
    pub(super) fn enter<'b>(
        &'b self,
        w: &Worker<'_>,
        source: Source<'_>,
        pre: Option<&Norm>,
        n: usize,
        matrices: &[&Matrix],
    ) -> Entered<'b> {
        let k = matrices[0].cols;
        let forms = Forms::of(matrices);
        let own = &self.scratch.own[w.id()];
        let alone = n <= OWN_ROWS;
        let acts = if alone { &own.acts } else { &self.scratch.acts };
        let entered = Entered { x: self.stream(w, n), acts };
        let kernels = self.model.kernels();
        let plain = forms.plain || self.inputs.is_some();
        for i in if alone { 0..n } else { w.share(n) } {
            // SAFETY: the source is not written in this region. Its own buffers a worker has to itself; of the shared ones it
            // writes only its share of the rows, and they are read behind the barrier below. The readers of their former
            // contents are behind the barrier that ended the previous region.
            unsafe {
                let mut x = source.buffer.read(source.row(i, k));
                // A plain input leaves the stream alone: a later region adds to it.
                let stream = || entered.x.write(i * k..(i + 1) * k);
                match source.due {
                    Due::Nothing if pre.is_none() => {}
                    Due::Nothing => stream().copy_from_slice(x),
                    Due::Norm(norm) => {
                        let out = stream();
                        self.norm(norm, x, out);
                        x = out;
                    }
                    Due::Branch(norm) => {
                        let (row, out) = (own.row.write(0..k), stream());
                        self.norm(norm, x, row);
                        (kernels.add)(row, out);
                        x = out;
                    }
                }
                if let Some(norm) = pre {
                    let out = entered.acts.f32_row(i, k);
                    self.norm(norm, x, out);
                    x = out;
                } else if plain {
                    entered.acts.f32_row(i, k).copy_from_slice(x);
                }
                entered.acts.quantize(kernels, i, x, forms);
            }
        }
        if !alone {
            w.barrier();
        }
        if let Some(inputs) = self.inputs {
            // SAFETY: the activations were finished behind the barrier, or are this worker's own.
            let x = unsafe { entered.acts.rows(0, n, k).f };
            for (i, m) in matrices.iter().enumerate() {
                // Where a block lacks one of its matrices, another stands there twice.
                if !matrices[..i].iter().any(|before| std::ptr::eq(*before, *m)) {
                    inputs.add(w, m, x);
                }
            }
        }
        entered
    }

    /// A matrix product: this worker's part of the weight rows times all `n` activation rows, in tiles that `done` takes:
    /// (activation row, weight rows, products).
    pub(super) fn project(
        &self,
        w: &Worker<'_>,
        m: &Matrix,
        acts: &ActBuffer,
        n: usize,
        mut done: impl FnMut(usize, Range<usize>, &[f32]),
    ) {
        let own = &self.scratch.own[w.id()];
        for r in tiles_of_rows(w, m.rows) {
            self.tiles(m, acts, n, r, own, &mut done);
        }
    }

    /// The weight rows `r` times all activation rows, `TILE_COLUMNS` at a time.
    fn tiles(
        &self,
        m: &Matrix,
        acts: &ActBuffer,
        n: usize,
        r: Range<usize>,
        own: &Own,
        done: &mut impl FnMut(usize, Range<usize>, &[f32]),
    ) {
        for c in (0..n).step_by(TILE_COLUMNS) {
            let columns = (n - c).min(TILE_COLUMNS);
            // SAFETY: the activations were finished behind a barrier, or are this worker's own; so is the tile.
            let (acts, out): (Acts<'_>, _) =
                unsafe { (acts.rows(c, columns, m.cols), own.tile[0].write(0..columns * r.len())) };
            m.product(&r, acts, out);
            for (j, out) in out.chunks_exact(r.len()).enumerate() {
                done(c + j, r.clone(), out);
            }
        }
    }

    /// Queries, keys, values and gates by whole heads: bias, rotation, and the write to the cache.
    fn qkv(
        &self,
        w: &Worker<'_>,
        b: usize,
        block: &Block,
        acts: &ActBuffer,
        active: &[usize],
        plane: &dyn Fn(usize) -> usize,
    ) {
        let (s, hd) = (self.scratch, self.model.config().head_dim);
        let (kernels, own) = (self.model.kernels(), &s.own[w.id()]);
        let store = kernels.store_kv(self.kv_type);
        let (q, kv, width) = (block.heads, block.kv_heads, block.heads * hd);
        let gates = if block.attn_gate.is_some() { q } else { 0 };
        // Heads are taken so many at a time that they are whole panels.
        let together = UNIT / gcd(UNIT, hd);
        let units = |heads: usize| heads.div_ceil(together);
        for unit in w.units(units(q) + 2 * units(kv) + units(gates)) {
            let (part, heads, unit) = match unit {
                u if u < units(q) => (Head::Query, q, u),
                u if u < units(q) + units(kv) => (Head::Key, kv, u - units(q)),
                u if u < units(q) + 2 * units(kv) => (Head::Value, kv, u - units(q) - units(kv)),
                u => (Head::Gate, gates, u - units(q) - 2 * units(kv)),
            };
            let heads = unit * together..((unit + 1) * together).min(heads);
            let linear = match part {
                Head::Query => Some(&block.q),
                Head::Key => Some(&block.k),
                Head::Value => Some(&block.v),
                Head::Gate => None,
            };
            let Some(matrix) = linear.map(|l| &l.weight).or(block.attn_gate.as_ref()) else { continue };
            let bias = linear.and_then(|l| l.bias.as_ref());
            self.tiles(matrix, acts, active.len(), heads.start * hd..heads.end * hd, own, &mut |i, _, out| {
                for (head, out) in heads.clone().zip(out.chunks_exact(hd)) {
                    let at = head * hd..(head + 1) * hd;
                    // SAFETY: the second tile is this worker's own.
                    let x = unsafe { own.tile[1].write(0..hd) };
                    x.copy_from_slice(out);
                    if let Some(bias) = bias {
                        (kernels.add)(&bias[at.clone()], x);
                    }
                    let row = active[i];
                    let Row { sequence, position, token } = self.rows[row];
                    if matches!(part, Head::Query | Head::Key) {
                        self.rotate(row, x);
                        if let Some(eps) = block.qk_norm {
                            self.unit_norm(x, eps);
                        }
                    }
                    if let (Head::Value, Some(embedding)) = (part, &block.value_embedding) {
                        // SAFETY: the activations were finished behind a barrier, or are this worker's own; so is the row.
                        let (input, values) =
                            unsafe { (acts.rows(i, 1, matrix.cols).f, own.row.write(0..embedding.table.cols)) };
                        let values = self.model.table_part(&embedding.table, token as usize, at, values);
                        add_value_embedding(embedding, head, input, values, x);
                    }
                    let own_row = i * width + head * hd..i * width + (head + 1) * hd;
                    // SAFETY: a head of a row is written by one worker; it is read behind the barrier that follows.
                    unsafe {
                        match part {
                            Head::Query => s.q.write(own_row).copy_from_slice(x),
                            Head::Gate => s.attn_gates.write(own_row).copy_from_slice(x),
                            Head::Key | Head::Value => {
                                let cache = if part == Head::Key { &self.kv.keys } else { &self.kv.values };
                                let to = self.kv.rows(b, plane(row), sequence, head, position..position + 1);
                                store(x, cache.write(to));
                            }
                        }
                    }
                }
            });
        }
    }

    /// Rotates a query or key head of a chunk row to its position.
    fn rotate(&self, row: usize, x: &mut [f32]) {
        let Some(rope) = self.model.rope() else { return };
        let half = rope.frequencies.len();
        let angles = row * half..(row + 1) * half;
        // SAFETY: the table was finished before the first barrier of the pass.
        let (cos, sin) = unsafe { (self.scratch.cos.read(angles.clone()), self.scratch.sin.read(angles)) };
        match rope.style {
            RopeStyle::Interleaved => (self.model.kernels().rope_interleaved)(x, cos, sin),
            RopeStyle::Halves => (self.model.kernels().rope_halves)(x, cos, sin),
        }
    }

    /// An RMS norm without weights, in place.
    fn unit_norm(&self, x: &mut [f32], eps: f32) {
        let mean = (self.model.kernels().dot)(x, x) / x.len() as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        x.iter_mut().for_each(|x| *x *= scale);
    }

    /// Every (row, query head) against the positions that the row sees, and the gate on what comes out.
    ///
    /// The query heads of a key head are taken row by row, so that neighbours read the same keys and see about as many; a
    /// worker has a run of these, of its part of the cost, and takes as many at a time as may be computed together.
    fn attention(&self, w: &Worker<'_>, b: usize, block: &Block, active: &[usize], plane: &dyn Fn(usize) -> usize) {
        let (s, hd) = (self.scratch, self.model.config().head_dim);
        let (kernels, own) = (self.model.kernels(), &s.own[w.id()]);
        let (group, scale) = (block.heads / block.kv_heads, 1.0 / (hd as f32).sqrt());
        let per_head = active.len() * group;
        let source = |i: usize| (plane(active[i]), self.rows[active[i]].sequence);
        // Heads outermost: the rows of a chunk share a head's keys while they are in the cache.
        let mut run = self.share_of_queries(w, block, active);
        while !run.is_empty() {
            let (head, from) = (run.start / per_head, run.start % per_head);
            let from_source = source(from / group);
            let n = (from..per_head.min(from + run.len()).min(from + ATTEND_ROWS))
                .take_while(|query| source(query / group) == from_source)
                .count();
            let at = |j: usize| {
                let (i, nth) = ((from + j) / group, (from + j) % group);
                let query = i * block.heads + head * group + nth;
                query * hd..(query + 1) * hd
            };
            // SAFETY: queries, gates and cache are only read in this region; each output is written by one worker. The rest is
            // this worker's own.
            unsafe {
                let (q, out) = (own.attend_rows[0].write(0..n * hd), own.attend_rows[1].write(0..n * hd));
                let seen = own.seen.write(0..n);
                let mut most = 0;
                for (j, (q, seen)) in q.chunks_exact_mut(hd).zip(&mut *seen).enumerate() {
                    q.copy_from_slice(s.q.read(at(j)));
                    *seen = self.sees[active[(from + j) / group]];
                    most = most.max(*seen);
                }
                let (plane, sequence) = from_source;
                let rows = self.kv.rows(b, plane, sequence, head, 0..most);
                let (keys, values) = (self.kv.keys.read(rows.clone()), self.kv.values.read(rows));
                let attention = Attention { kv: self.kv_type, dim: hd, scale, q, seen, keys, values };
                (kernels.attend)(attention, &mut own.attend.write(0..1)[0], out);
                for (j, from) in out.chunks_exact(hd).enumerate() {
                    let out = s.attended.write(at(j));
                    out.copy_from_slice(from);
                    if block.attn_gate.is_some() {
                        (kernels.sigmoid_mul)(s.attn_gates.read(at(j)), out);
                    }
                }
            }
            run.start += n;
        }
    }

    /// This worker's run of queries, counted key head by key head and in each row by row: shares cost about the same.
    fn share_of_queries(&self, w: &Worker<'_>, block: &Block, active: &[usize]) -> Range<usize> {
        /// What a query costs whatever it sees, in keys.
        const BASE: usize = 32;
        let group = block.heads / block.kv_heads;
        let cost = |i: usize| (self.sees[active[i]] + BASE) * group;
        let head = (0..active.len()).map(cost).sum::<usize>().max(1);
        let start = |worker: usize| {
            let goal = (head * block.kv_heads) as u128 * worker as u128 / w.count() as u128;
            let (heads, mut left) = ((goal / head as u128) as usize, (goal % head as u128) as usize);
            let mut queries = 0;
            for i in 0..active.len() {
                if left < cost(i) {
                    queries += left * group / cost(i);
                    break;
                }
                left -= cost(i);
                queries += group;
            }
            heads * active.len() * group + queries
        };
        start(w.id())..start(w.id() + 1)
    }

    /// The first half of an MLP: gate and up projections of the same rows, and the activation, into `hidden`.
    fn mlp(&self, w: &Worker<'_>, mlp: &Mlp, acts: &ActBuffer, n: usize) {
        let (s, own) = (self.scratch, &self.scratch.own[w.id()]);
        let (kernels, f) = (self.model.kernels(), mlp.up.weight.rows);
        let product = |linear: &Linear, r: &Range<usize>, acts: Acts<'_>, out: &mut [f32]| {
            linear.weight.product(r, acts, out);
            if let Some(bias) = &linear.bias {
                out.chunks_exact_mut(r.len()).for_each(|out| (kernels.add)(&bias[r.clone()], out));
            }
        };
        for r in tiles_of_rows(w, f) {
            for c in (0..n).step_by(TILE_COLUMNS) {
                let columns = (n - c).min(TILE_COLUMNS);
                let len = columns * r.len();
                // SAFETY: the activations were finished behind a barrier, or are this worker's own; so are the tiles.
                let (acts, gate, up) = unsafe {
                    let acts = acts.rows(c, columns, mlp.up.weight.cols);
                    (acts, own.tile[0].write(0..len), own.tile[1].write(0..len))
                };
                if let Some(linear) = &mlp.gate {
                    product(linear, &r, acts, gate);
                }
                product(&mlp.up, &r, acts, up);
                for (j, (gate, up)) in gate.chunks_exact(r.len()).zip(up.chunks_exact(r.len())).enumerate() {
                    let row = (c + j) * f;
                    // SAFETY: a worker writes only the columns that it computes of `hidden`.
                    let out = unsafe { s.hidden.write(row + r.start..row + r.end) };
                    match mlp.activation {
                        Activation::GatedSilu => (kernels.silu_mul)(gate, up, out),
                        Activation::HalfReluSquared => {
                            out.copy_from_slice(up);
                            (kernels.half_relu_squared)(out);
                        }
                        Activation::GeluTanh => {
                            out.copy_from_slice(up);
                            (kernels.gelu_tanh)(out);
                        }
                    }
                }
            }
        }
    }
}

/// What a unit of work in [`Pass::qkv`] computes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Head {
    Query,
    Key,
    Value,
    Gate,
}

fn due(post: &PostNorm) -> Due<'_> {
    match post {
        PostNorm::None => Due::Nothing,
        PostNorm::Sum(norm) => Due::Norm(norm),
        PostNorm::Branch(norm) => Due::Branch(norm),
    }
}

/// `x += 2·sigmoid(w · input[..32]) · values`, for one value head.
fn add_value_embedding(embedding: &ValueEmbedding, head: usize, input: &[f32], values: &[f32], x: &mut [f32]) {
    const N: usize = ValueEmbedding::GATE_INPUTS;
    let weight = &embedding.gate[head * N..(head + 1) * N];
    let dot: f32 = weight.iter().zip(input).map(|(w, x)| w * x).sum();
    let gate = 2.0 / (1.0 + libm::expf(-dot));
    x.iter_mut().zip(values).for_each(|(x, v)| *x += gate * v);
}

/// Weight rows that kernels compute at once: those of the largest panel.
pub(super) const UNIT: usize = 16;

pub(super) fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The tiles of a matrix's rows that this worker computes. Tiles of a large matrix are handed out several at a time.
fn tiles_of_rows(w: &Worker<'_>, rows: usize) -> impl Iterator<Item = Range<usize>> {
    /// Units of a large matrix, about; and tiles in a unit at most.
    const UNITS: usize = 64;
    const MOST: usize = 4;
    let unit = (rows / (UNITS * TILE_ROWS)).clamp(1, MOST) * TILE_ROWS;
    w.units(rows.div_ceil(unit)).flat_map(move |i| {
        let of = i * unit..((i + 1) * unit).min(rows);
        of.clone().step_by(TILE_ROWS).map(move |r| r..(r + TILE_ROWS).min(of.end))
    })
}

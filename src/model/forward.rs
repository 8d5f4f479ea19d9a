//! One pass of a chunk of rows through the model: embedding → segments of blocks, each run once or as
//! [inject → passes over its blocks → policy]* → head.
//!
//! The whole pass is one job of the team. Every worker runs [`Pass::run`]; between two barriers each buffer is either read by
//! anyone or written in disjoint parts, and every `SAFETY` comment below names the part. What happens inside a block is in
//! [`layers`](super::layers).

use super::kv::KvCache;
use super::layers::{Due, Source};
use super::plan::Start;
use super::policy::{self, DepthPolicy, LatentStats, Verdict};
use super::scratch::Scratch;
use super::session::Row;
use super::waypoints::Place;
use super::{Error, InitialState, Injection, InputSquares, Looped, Model, Norm, Segment, Waypoints};
use crate::kernels::KvType;
use crate::team::{Buffer, Worker};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// A pass over one chunk. Worker 0 alone touches `control` between the barriers that surround a decision.
pub(super) struct Pass<'a, 'c> {
    pub model: &'a Model,
    pub scratch: &'a Scratch,
    pub kv: &'a KvCache,
    pub kv_type: KvType,
    /// The rows of the chunk; positions of a sequence ascend by one.
    pub rows: &'a [Row],
    /// Per row of the chunk: how many positions of its sequence it sees, from the first on.
    pub sees: &'a [usize],
    pub initial: &'a InitialState,
    /// What is done.
    pub task: Task,
    /// The chunk rows that it is done with, by place in `rows`; those of a sequence ascend.
    pub which: &'a [usize],
    /// Whose logits are wanted, by place in `which`, ascending; row `i` of the logits belongs to `wanted[i]`.
    pub wanted: &'a [usize],
    /// Per row of the chunk: may a policy read it out inside the last loop?
    pub readable: &'a [bool],
    pub cancel: &'a AtomicBool,
    /// Who wants to know what matrices are multiplied with.
    pub inputs: Option<&'a InputSquares>,
    /// Who wants to know where the stream is between blocks.
    pub waypoints: Option<&'a Waypoints>,
    /// One element.
    pub control: &'a Buffer<Control<'c>>,
}

/// What a pass does. The last three are the parts of a whole one, for rows that stay in flight from one to the next
/// ([`flight`](super::flight)): what they leave in [`Scratch`] is found there again.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Task {
    /// Everything, from tokens to logits.
    Full,
    /// What follows the last loop, for states that a caller has put into [`Scratch::state`].
    ReadOut,
    /// From tokens to the first step of the only loop.
    Enter(Entry),
    /// So many steps of the only loop, or fewer: it ends with the first that a row leaves with, or is asked about.
    Step(usize),
    /// What follows the only loop, for states that rows in flight have.
    Land,
}

/// How rows enter the loop.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Entry {
    /// With their initial states; otherwise with the states that they have.
    pub fresh: bool,
    /// How much of the constant input that they had is kept; new rows had zeros.
    pub blend: f32,
}

impl Entry {
    /// A token at a new place.
    pub(super) const FRESH: Self = Self { fresh: true, blend: 0.0 };
}

/// What worker 0 decides and the others read.
pub(super) struct Control<'a> {
    pub policy: &'a mut dyn DepthPolicy,
    /// Chunk rows still in the loop.
    pub active: Vec<usize>,
    /// Rows that left at the latest decision: (chunk row, steps done).
    pub left: Vec<(usize, usize)>,
    /// Steps done in the loop at work, per chunk row.
    pub steps: &'a mut [usize],
    /// `[rows][loops]`: steps done, in each of the loops so far.
    pub depths: &'a mut [usize],
    /// The policy asks for logits before it decides about these rows: the only one of a whole pass, or some in flight.
    pub asked: Vec<usize>,
    /// Rows in flight whose states are not finite any more.
    pub failed: Vec<usize>,
    /// The logits belong to the row's present state.
    pub logits_fresh: bool,
    pub error: Option<Error>,
}

/// A looped segment at work.
#[derive(Clone, Copy)]
struct AtWork<'a> {
    looped: &'a Looped,
    /// Which of the plan's segments.
    segment: usize,
    /// Which of the model's loops.
    number: usize,
    /// Is it the last one?
    last: bool,
}

impl Pass<'_, '_> {
    /// The whole pass, as one worker. A failure is left in [`Control::error`].
    pub(super) fn run(&self, w: &Worker<'_>) {
        let all = self.which;
        let plan = self.model.plan();
        let loops = plan.loops().count();
        match self.task {
            Task::Full | Task::Enter(_) => {
                self.rotation(w);
                self.embed(w);
                w.barrier();
            }
            Task::ReadOut | Task::Land => {
                if self.task == Task::ReadOut {
                    self.rotation(w);
                    w.barrier();
                }
                if let Some(looped) = plan.loops().last() {
                    let source = self.leave_loop(w, looped, all);
                    self.read_out(w, source, all, self.wanted);
                }
                return;
            }
            Task::Step(steps) => return self.step(w, steps),
        }
        let mut source = Source::plain(&self.scratch.y);
        let mut number = 0;
        for (s, segment) in plan.segments[..plan.segments.len() - plan.coda().len()].iter().enumerate() {
            source = match segment {
                Segment::Once(blocks) => self.once(w, s, blocks.clone(), source, all),
                Segment::Looped(looped) => {
                    let at = AtWork { looped, segment: s, number, last: number + 1 == loops };
                    self.enter_loop(w, at, source, all);
                    if matches!(self.task, Task::Enter(_)) {
                        return;
                    }
                    while self.keep_looping() {
                        // SAFETY: worker 0 writes `control` only inside `decide`, behind the barrier; the list is given back
                        // before it.
                        self.core_step(w, at, unsafe { &self.control.read(0..1)[0].active });
                        w.barrier();
                        self.decide(w, at);
                    }
                    number += 1;
                    // SAFETY: the last decision was followed by a barrier, and the next write to `control` is behind another.
                    let control = unsafe { &self.control.read(0..1)[0] };
                    if control.error.is_some() || control.logits_fresh {
                        return;
                    }
                    self.leave_loop(w, looped, all)
                }
            };
        }
        self.read_out(w, source, all, self.wanted);
    }

    /// Up to `steps` steps of the only loop, for rows in flight.
    fn step(&self, w: &Worker<'_>, steps: usize) {
        let segments = self.model.plan().segments.iter().enumerate();
        let mut loops = segments.filter_map(|(s, segment)| match segment {
            Segment::Looped(looped) => Some((s, looped)),
            Segment::Once(_) => None,
        });
        let Some((segment, looped)) = loops.next() else { return };
        let at = AtWork { looped, segment, number: 0, last: true };
        for _ in 0..steps {
            // SAFETY: the latest decision, if any, is behind a barrier.
            let control = unsafe { &self.control.read(0..1)[0] };
            let undecided = control.left.is_empty() && control.asked.is_empty() && control.failed.is_empty();
            if !(undecided && self.keep_looping()) {
                break;
            }
            // SAFETY: as in `run`.
            self.core_step(w, at, unsafe { &self.control.read(0..1)[0].active });
            w.barrier();
            self.decide(w, at);
        }
    }

    /// Cosines and sines of every row's position, angles as f32 products as in the references.
    fn rotation(&self, w: &Worker<'_>) {
        let Some(rope) = self.model.rope() else { return };
        let half = rope.frequencies.len();
        for i in w.share(self.which.len()).map(|i| self.which[i]) {
            let at = i * half..(i + 1) * half;
            // SAFETY: shares of the rows are disjoint, and nobody reads the table before the next barrier.
            let (cos, sin) = unsafe { (self.scratch.cos.write(at.clone()), self.scratch.sin.write(at)) };
            for ((c, s), f) in cos.iter_mut().zip(sin).zip(&rope.frequencies) {
                let angle = self.rows[i].position as f32 * f;
                (*c, *s) = (libm::cosf(angle), libm::sinf(angle));
            }
        }
    }

    /// Token embeddings, scaled, with learned positions where the model has them, into `y`.
    fn embed(&self, w: &Worker<'_>) {
        let d = self.model.config().width;
        for i in w.share(self.which.len()) {
            // SAFETY: shares of the rows are disjoint, and nobody reads `y` before the barrier; the row is this worker's own.
            let (y, own) =
                unsafe { (self.scratch.y.write(i * d..(i + 1) * d), self.scratch.own[w.id()].row.write(0..d)) };
            let row = &self.rows[self.which[i]];
            self.model.embedding(row.token, y);
            if let Some(table) = self.model.positions() {
                self.model.table_row(table, row.position, own);
                (self.model.kernels().add)(own, y);
            }
        }
    }

    /// Blocks outside any loop, for all rows.
    fn once<'s>(
        &'s self,
        w: &Worker<'_>,
        segment: usize,
        blocks: Range<usize>,
        mut source: Source<'s>,
        all: &[usize],
    ) -> Source<'s> {
        for b in blocks {
            self.note(w, b, source, all, |_| (segment, 0, 0));
            let due = self.block(w, b, source, all, None);
            source = Source::plain(&self.scratch.y).due(due);
        }
        if let Some(points) = self.waypoints {
            let width = self.model.config().width;
            for i in w.share(all.len()).filter(|&i| points.watches(all[i])) {
                let stream = self.settled(w, source, i, all.len(), width);
                // SAFETY: shares of the rows are disjoint; the latest to touch a row was this worker, or is behind a barrier.
                unsafe { points.leave(all[i], stream) };
            }
        }
        source
    }

    /// Tells who wants to know that the rows of `source` enter block `b`, in the region behind the one that wrote them.
    fn note(&self, w: &Worker<'_>, b: usize, source: Source<'_>, active: &[usize], place: impl Fn(usize) -> Place) {
        let Some(points) = self.waypoints else { return };
        let (n, width) = (active.len(), self.model.blocks()[b].width());
        for i in w.share(n).filter(|&i| points.watches(active[i])) {
            let (row, stream) = (active[i], self.settled(w, source, i, n, width));
            // SAFETY: shares of the rows are disjoint; whoever touched a row before is behind a barrier, or has the same share.
            unsafe { points.enter(row, place(row), b, stream) };
        }
    }

    /// The constant input of a loop and what the injection makes of it, initial states, and the policy's first look.
    fn enter_loop(&self, w: &Worker<'_>, at: AtWork<'_>, source: Source<'_>, all: &[usize]) {
        let (config, s) = (self.model.config(), self.scratch);
        let (d, ds) = (config.width, config.state_width);
        let n = all.len();
        let entry = if let Task::Enter(entry) = self.task { entry } else { Entry::FRESH };
        for i in w.share(n) {
            let stream = self.settled(w, source, i, n, d);
            // SAFETY: shares of the rows are disjoint, and `prelude` and `x` are read after the barrier (`settled` reads row `i` of
            // `x` in this same share).
            let (e, new) = unsafe { (s.prelude.write(all[i] * d..(all[i] + 1) * d), s.x.write(i * d..(i + 1) * d)) };
            match &at.looped.entry_norm {
                Some(norm) => self.norm(norm, stream, new),
                None => new.copy_from_slice(stream),
            }
            if entry.blend == 0.0 {
                e.copy_from_slice(new);
            } else if entry.fresh {
                e.iter_mut().zip(new).for_each(|(e, new)| *e = (1.0 - entry.blend) * *new);
            } else {
                e.iter_mut().zip(new).for_each(|(e, new)| *e = entry.blend * *e + (1.0 - entry.blend) * *new);
            }
        }
        w.barrier();
        let constant = match &at.looped.injection {
            Injection::None | Injection::Inner { .. } => None,
            Injection::Linear { input, .. } => Some((&input.weight, input.bias.as_deref(), None)),
            Injection::Diagonal { input, rates } => Some((input, None, Some(rates.rate()))),
        };
        if let Some((matrix, bias, rate)) = constant {
            let entered = self.enter(w, Source::plain(&s.prelude).at(all), None, n, &[matrix]);
            self.project(w, matrix, entered.acts, n, |i, at, out| {
                let row = all[i] * ds;
                // SAFETY: a worker writes only the columns that it computes of `input`, which is read after a barrier.
                let input = unsafe { s.input.write(row + at.start..row + at.end) };
                input.copy_from_slice(out);
                if let Some(rate) = rate {
                    input.iter_mut().zip(&rate[at.clone()]).for_each(|(x, r)| *x *= r);
                }
                if let Some(bias) = bias {
                    (self.model.kernels().add)(&bias[at], input);
                }
            });
        }
        for row in w.share(n).map(|i| all[i]) {
            let to = row * ds..(row + 1) * ds;
            // SAFETY: shares of the rows are disjoint; all of this is read after the barrier, and `prelude` was finished behind
            // the one before.
            unsafe {
                match at.looped.start {
                    _ if !entry.fresh => {}
                    Start::Initial => self.initial.fill(config, &self.rows[row], s.state.write(to.clone())),
                    Start::Stream => s.state.write(to.clone()).copy_from_slice(s.prelude.read(to.clone())),
                }
                if let Injection::Inner { initial } = &at.looped.injection {
                    s.inner.write(to.clone()).copy_from_slice(initial);
                }
                s.delta.write(to).fill(0.0);
            }
        }
        w.barrier();
        if w.id() == 0 {
            // SAFETY: only worker 0 touches `control` before the next barrier, and nobody writes states or inputs.
            let control = unsafe { &mut self.control.write(0..1)[0] };
            control.active.clear();
            control.active.extend_from_slice(all);
            for &i in all {
                control.steps[i] = 0;
                // SAFETY: as above.
                let (e, state) = unsafe { (s.prelude.read(i * d..(i + 1) * d), s.state.read(i * ds..(i + 1) * ds)) };
                control.policy.begin(i, &self.rows[i], at.number, e, state);
            }
        }
        w.barrier();
    }

    fn keep_looping(&self) -> bool {
        // SAFETY: every caller stands behind the barrier that ended the latest decision.
        let control = unsafe { &self.control.read(0..1)[0] };
        control.error.is_none() && !control.active.is_empty()
    }

    /// One loop step of the active rows, which may stand at different steps. A barrier must follow.
    fn core_step(&self, w: &Worker<'_>, at: AtWork<'_>, active: &[usize]) {
        let AtWork { looped, segment, .. } = at;
        let (s, d, n) = (self.scratch, self.model.config().state_width, active.len());
        for (p, pass) in looped.passes.iter().enumerate() {
            let mut source = self.inject(w, looped, active);
            // SAFETY: worker 0 writes `control` only inside `decide`.
            let steps = unsafe { &*self.control.read(0..1)[0].steps };
            for b in pass.blocks.clone() {
                self.note(w, b, source, active, |row| (segment, steps[row] + 1, p));
                let due = self.block(w, b, source, active, Some((steps, pass.nth)));
                source = Source::plain(&s.y).due(due);
            }
            let last = p + 1 == looped.passes.len();
            for i in w.share(n) {
                let mut new = self.settled(w, source, i, n, d);
                if let Some(points) = self.waypoints {
                    // SAFETY: shares of the rows are disjoint, and whoever touched a row before is behind a barrier.
                    unsafe { points.leave(active[i], new) };
                }
                if let Some(norm) = &looped.norm {
                    // SAFETY: row `i` of the shared stream has had its last reader, `settled`, in this same share of the rows.
                    let out = unsafe { s.x.write(i * d..(i + 1) * d) };
                    self.norm(norm, new, out);
                    new = out;
                }
                let row = active[i];
                let to = row * d..(row + 1) * d;
                // SAFETY: shares of the active rows are disjoint, and the states are read behind the barrier.
                unsafe {
                    if last {
                        s.sums.write(row..row + 1)[0] =
                            (self.model.kernels().latent_sums)(new, s.state.write(to.clone()), s.delta.write(to));
                        if let Some(gate) = &looped.gate {
                            s.gates.write(row..row + 1)[0] = (self.model.kernels().dot)(new, &gate.weight) + gate.bias;
                        }
                    } else {
                        s.inner.write(to).copy_from_slice(new);
                    }
                }
            }
            if !last {
                w.barrier();
            }
        }
    }

    /// What the blocks of a pass take in, from state and constant input.
    fn inject<'s>(&'s self, w: &Worker<'_>, looped: &'s Looped, active: &'s [usize]) -> Source<'s> {
        let (s, d, n) = (self.scratch, self.model.config().state_width, active.len());
        let kernels = self.model.kernels();
        match &looped.injection {
            Injection::None => return Source::plain(&s.state).at(active),
            Injection::Linear { state, .. } => {
                let entered = self.enter(w, Source::plain(&s.state).at(active), None, n, &[state]);
                self.project(w, state, entered.acts, n, |i, at, out| {
                    let row = active[i] * d;
                    // SAFETY: a worker writes only the columns that it computes of `y`; `input` is not written during the loop.
                    let (y, input) = unsafe {
                        (s.y.write(i * d + at.start..i * d + at.end), s.input.read(row + at.start..row + at.end))
                    };
                    y.copy_from_slice(out);
                    (kernels.add)(input, y);
                });
            }
            Injection::Diagonal { .. } | Injection::Inner { .. } => {
                for i in w.share(n) {
                    let from = active[i] * d..(active[i] + 1) * d;
                    // SAFETY: shares of the rows are disjoint, and states and inputs are not written in this region.
                    let (y, state) = unsafe { (s.y.write(i * d..(i + 1) * d), s.state.read(from.clone())) };
                    if let Injection::Diagonal { rates, .. } = &looped.injection {
                        // SAFETY: as above.
                        y.copy_from_slice(unsafe { s.input.read(from) });
                        (kernels.add_product)(rates.decay(), state, y);
                    } else {
                        // SAFETY: as above.
                        y.copy_from_slice(unsafe { s.inner.read(from) });
                        (kernels.add)(state, y);
                    }
                }
            }
        }
        w.barrier();
        Source::plain(&s.y)
    }

    /// The stream that the states of `rows` make on their way out of the loop.
    fn leave_loop<'s>(&'s self, w: &Worker<'_>, looped: &'s Looped, rows: &'s [usize]) -> Source<'s> {
        let (s, d, n) = (self.scratch, self.model.config().width, rows.len());
        let norm = looped.readout_norm.as_ref();
        let Some(readout) = &looped.readout else {
            return Source::plain(&s.state).at(rows).due(norm.map_or(Due::Nothing, Due::Norm));
        };
        let entered = self.enter(w, Source::plain(&s.state).at(rows), norm, n, &[readout]);
        self.project(w, readout, entered.acts, n, |i, at, out| {
            // SAFETY: a worker writes only the columns that it computes of `y`, which is free between segments.
            unsafe { s.y.write(i * d + at.start..i * d + at.end) }.copy_from_slice(out);
        });
        w.barrier();
        Source::plain(&s.y)
    }

    /// Worker 0 asks the policy about every active row; rows that leave fill their KV slots forward.
    fn decide(&self, w: &Worker<'_>, at: AtWork<'_>) {
        if w.id() == 0 {
            self.ask_policy(at);
        }
        w.barrier();
        // SAFETY: worker 0 is done with `control` until the next barrier.
        let asked = unsafe { !self.control.read(0..1)[0].asked.is_empty() };
        if asked && self.task == Task::Full {
            let source = self.leave_loop(w, at.looped, &[0]);
            self.read_out(w, source, &[0], &[0]);
            w.barrier();
            if w.id() == 0 {
                self.ask_policy_again(at);
            }
            w.barrier();
        }
        // SAFETY: as above.
        let control = unsafe { &self.control.read(0..1)[0] };
        let blocks = at.looped.blocks().count();
        for i in w.share(control.left.len() * blocks) {
            let (row, steps) = control.left[i / blocks];
            let Some(block) = at.looped.blocks().nth(i % blocks) else { continue };
            let Row { sequence, position, .. } = self.rows[row];
            // SAFETY: shares of (row, block) are disjoint, and nobody attends before the next barrier.
            unsafe { self.kv.fill_forward(block, sequence, position, steps) };
        }
        // No barrier: the next region that reads these keys lies behind one, and `control` is next written behind several.
    }

    fn gate(&self, at: AtWork<'_>, row: usize) -> f32 {
        // SAFETY: called by worker 0 while nobody writes the gates.
        at.looped.gate.as_ref().map_or(f32::NAN, |_| unsafe { self.scratch.gates.read(row..row + 1)[0] })
    }

    /// Steps after which every row leaves this loop.
    fn most_steps(&self, at: AtWork<'_>, policy: &dyn DepthPolicy) -> usize {
        policy::most_steps(policy, self.model.config(), at.number)
    }

    fn ask_policy(&self, at: AtWork<'_>) {
        let d = self.model.config().state_width;
        // SAFETY: called by worker 0 while all others wait at the barrier that follows.
        let control = unsafe { &mut self.control.write(0..1)[0] };
        control.left.clear();
        control.asked.clear();
        control.failed.clear();
        control.logits_fresh = false;
        if self.cancel.load(Ordering::Relaxed) {
            control.error = Some(Error::Cancelled);
            return;
        }
        let max = self.most_steps(at, control.policy);
        let Control { policy, active, left, steps, depths, asked, failed, error, .. } = control;
        let loops = self.model.config().loops.len();
        active.retain(|&i| {
            let row = &self.rows[i];
            steps[i] += 1;
            depths[i * loops + at.number] += 1;
            // SAFETY: as above: only worker 0 is not waiting.
            let (sums, latent) =
                unsafe { (&self.scratch.sums.read(i..i + 1)[0], self.scratch.state.read(i * d..(i + 1) * d)) };
            if !sums.state.is_finite() {
                if self.task == Task::Full {
                    error.get_or_insert(Error::NotFinite { position: row.position, step: steps[i] });
                } else {
                    failed.push(i);
                }
                return false;
            }
            let stats = LatentStats::new(at.number, steps[i], sums, self.gate(at, i));
            let verdict = policy.after_step(i, row, &stats, latent);
            if verdict == Verdict::ReadOut && self.readable[i] && at.last {
                asked.push(i);
                return true;
            }
            let leaves = verdict == Verdict::Leave || steps[i] >= max;
            if leaves {
                left.push((i, steps[i]));
            }
            !leaves
        });
    }

    /// The second question about the only row, with its logits at hand.
    fn ask_policy_again(&self, at: AtWork<'_>) {
        // SAFETY: called by worker 0 while all others wait at the barrier that follows.
        let (control, sums, logits) = unsafe {
            let vocab = self.model.config().vocab;
            (&mut self.control.write(0..1)[0], &self.scratch.sums.read(0..1)[0], self.scratch.logits.read(0..vocab))
        };
        let step = control.steps[0];
        let stats = LatentStats::new(at.number, step, sums, self.gate(at, 0));
        let leaves = control.policy.after_readout(0, &self.rows[0], &stats, logits);
        if leaves || step >= self.most_steps(at, control.policy) {
            control.left.push((0, step));
            control.active.clear();
            // The work of this read-out is the row's final one, if its logits are wanted at all.
            control.logits_fresh = self.wanted == [0];
        }
    }

    /// What follows the last loop, and the head: the logits of the chunk rows `wanted`, from the stream of `rows`.
    fn read_out<'s>(&'s self, w: &Worker<'_>, mut source: Source<'s>, rows: &[usize], wanted: &'s [usize]) {
        let s = self.scratch;
        let plan = self.model.plan();
        let before = plan.segments.len() - plan.coda().len();
        for (i, segment) in plan.coda().iter().enumerate() {
            if let Segment::Once(blocks) = segment {
                source = self.once(w, before + i, blocks.clone(), source, rows);
            }
        }
        if wanted.is_empty() {
            return;
        }
        let (head, d) = (self.model.head(), self.model.config().width);
        if let Due::Branch(_) = source.due {
            // Its residual belongs to all rows in order; only some are wanted.
            for i in w.share(rows.len()) {
                let stream = self.settled(w, source, i, rows.len(), d);
                // SAFETY: shares of the rows are disjoint.
                unsafe { s.y.write(i * d..(i + 1) * d) }.copy_from_slice(stream);
            }
            w.barrier();
            source = Source::plain(&s.y);
        }
        let entered = self.enter(w, source.only(wanted), self.model.output_norm(), wanted.len(), &[head]);
        let vocab = head.rows;
        self.project(w, head, entered.acts, wanted.len(), |i, at, out| {
            // SAFETY: a worker writes only the columns that it computes of the logits.
            unsafe { s.logits.write(i * vocab + at.start..i * vocab + at.end) }.copy_from_slice(out);
        });
    }

    /// `out` = norm of `x`.
    pub(super) fn norm(&self, norm: &Norm, x: &[f32], out: &mut [f32]) {
        let kernels = self.model.kernels();
        match &norm.bias {
            None => (kernels.rms_norm)(x, &norm.weight, norm.eps, out),
            Some(bias) => (kernels.layer_norm)(x, &norm.weight, bias, norm.eps, out),
        }
    }
}

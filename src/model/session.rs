//! Everything that changes while a model runs.

use super::device::{self, DeviceError, DeviceOutput, DevicePass, DeviceSession, Recorded};
use super::flight::Flight;
use super::forward::{Control, Pass, Task};
use super::kv::{KvCache, KvRequest, KvShape};
use super::policy::{self, DepthPolicy};
use super::scratch::Scratch;
use super::{Device, Error, InitialState, InputSquares, Model, WaypointOptions, Waypoints};
use crate::cores;
use crate::kernels::KvType;
use crate::team::{Buffer, Team};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows per chunk beyond which scratch memory grows and nothing gets faster.
const MOST_CHUNK_ROWS: usize = 4096;
/// Rows per chunk where nobody says.
const CHUNK_ROWS: usize = 64;

/// One token at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Which of the session's sequences.
    pub sequence: usize,
    /// Position in it, from 0.
    pub position: usize,
    /// Token id.
    pub token: u32,
}

/// Which rows of a batch get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// No row.
    None,
    /// The last row.
    Last,
    /// Every row.
    All,
}

/// Tokens to run: the next positions of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Which sequence is continued.
    pub sequence: usize,
    /// The tokens, at least one.
    pub tokens: &'a [u32],
    /// Rows whose logits are wanted.
    pub logits: Logits,
    /// Run token by token and let the policy read out logits inside the loop ([`super::Verdict::ReadOut`]).
    pub readout_exits: bool,
    /// The tokens see each other in both directions, as the prompts of a prefix model do ([`super::Config::prefix_lm`]), and
    /// everything before them. They must fit into one chunk.
    pub both_ways: bool,
}

impl<'a> Batch<'a> {
    /// The next tokens of sequence 0, causal, with the logits of the last one.
    pub fn next(tokens: &'a [u32]) -> Self {
        Self { sequence: 0, tokens, logits: Logits::Last, readout_exits: false, both_ways: false }
    }
}

/// How a session is set up. [`SessionOptions::default`] suits a laptop.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Worker threads; `None`: one per physical performance core that the process may use, as far as the system tells, and
    /// no more than one per 512 KiB of core weights.
    pub threads: Option<NonZeroUsize>,
    /// Positions per sequence; `None`: what the model was trained for, if it fits `kv_budget`.
    pub context: Option<usize>,
    /// KV cache storage.
    pub kv_type: KvType,
    /// Loop steps with keys and values of their own; `None`: all, if they fit `kv_budget`.
    pub kv_slots: Option<usize>,
    /// Deepest loop that the session will be asked for; `None`: the model's mean. Deeper calls share slots.
    pub steps: Option<usize>,
    /// Bytes that the KV cache may take.
    pub kv_budget: u64,
    /// Independent sequences.
    pub sequences: usize,
    /// Rows that go through the model together; 1 is token by token. Results do not depend on it. Never more than the
    /// context or 4096 ([`Session::chunk_rows`]). `None`: 64, or as many as there can be for a prefix model, whose prompts must
    /// fit (memory is taken by the rows that are used).
    pub chunk_rows: Option<usize>,
    /// Initial latent states.
    pub initial: InitialState,
    /// Run where the model's weights are ([`Model::place_on`]), which is the CPU for most.
    pub on_device: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            threads: None,
            context: None,
            kv_type: KvType::F16,
            kv_slots: None,
            steps: None,
            kv_budget: 2 << 30,
            sequences: 1,
            chunk_rows: None,
            initial: InitialState::Noise { seed: 0 },
            on_device: true,
        }
    }
}

/// What a pass gave.
#[derive(Debug)]
pub struct Output<'a> {
    /// Loop steps of every row, in order; in a model with several loops their sum.
    pub steps: &'a [usize],
    /// `[rows][loops]`: loop steps of every row in each of the model's loops.
    pub loop_steps: &'a [usize],
    /// `[rows wanted][V]`.
    pub logits: &'a [f32],
    vocab: usize,
}

impl<'a> Output<'a> {
    /// Logits of the last row that was asked for, `[V]`; empty if none was.
    pub fn last(&self) -> &'a [f32] {
        &self.logits[self.logits.len().saturating_sub(self.vocab)..]
    }
}

/// A running model: KV cache, latent states, scratch, threads. All of it is allocated at the start; a pass on the CPU allocates
/// nothing but the box with its decisions.
///
/// A session of a model that was [placed on a device](Model::place_on) runs there. What the CPU would need is allocated all the same,
/// but no page of it is touched (and so none is taken) before the device fails; then the session runs its tokens again, to the
/// depths they had, goes on here, and says so ([`take_notice`](Self::take_notice)).
pub struct Session {
    pub(super) model: Arc<Model>,
    team: Team,
    pub(super) kv: KvCache,
    shape: KvShape,
    pub(super) scratch: Scratch,
    initial: InitialState,
    chunk_rows: usize,
    depth: usize,
    /// Tokens held, per sequence.
    pub(super) held: Vec<Vec<u32>>,
    /// Positions that see each other in both directions, per sequence, ascending.
    both_ways: Vec<Vec<Range<usize>>>,
    chunk: Places,
    pub(super) flight: Flight,
    all_steps: Vec<usize>,
    all_loop_steps: Vec<usize>,
    all_logits: Vec<f32>,
    pub(super) decided: Decided,
    cancel: Arc<AtomicBool>,
    inputs: Option<InputSquares>,
    /// Threads that passes may use, of those that there are.
    most: usize,
    waypoints: Option<Waypoints>,
    pub(super) on_device: Option<OnDevice>,
    /// Why the device was left, until somebody asks.
    notice: Option<String>,
}

/// The part of a session that is on a device.
pub(super) struct OnDevice {
    name: String,
    /// The cache that there is room for, there and here.
    shape: KvShape,
    session: Box<dyn DeviceSession>,
    output: DeviceOutput,
    /// Per sequence, `[positions held][loops]`: how deep each went, should it have to be run again.
    depths: Vec<Vec<u32>>,
    max_steps: Vec<usize>,
    /// Why it is of no use any more. It is here until the CPU has caught up.
    failed: Option<String>,
}

/// Rows, each at its place, and what is known of each.
#[derive(Default)]
pub(super) struct Places {
    pub rows: Vec<Row>,
    /// How many positions of its sequence each sees, from the first on.
    pub sees: Vec<usize>,
    /// Steps done in the loop at work.
    pub steps: Vec<usize>,
    /// `[places][loops]`: steps of the pass.
    pub depths: Vec<usize>,
    /// May a policy read it out inside the last loop?
    pub readable: Vec<bool>,
    /// Places that a pass is about.
    pub which: Vec<usize>,
    /// Those whose logits are wanted, by place in `which`.
    pub wanted: Vec<usize>,
}

impl Places {
    pub(super) fn new(rows: usize, loops: usize) -> Self {
        Self {
            rows: Vec::with_capacity(rows),
            sees: Vec::with_capacity(rows),
            steps: vec![0; rows],
            depths: vec![0; rows * loops],
            readable: vec![false; rows],
            which: Vec::with_capacity(rows),
            wanted: Vec::with_capacity(rows),
        }
    }
}

/// What the policy decided last, by place.
#[derive(Default)]
pub(super) struct Decided {
    pub active: Vec<usize>,
    pub left: Vec<(usize, usize)>,
    pub asked: Vec<usize>,
    pub failed: Vec<usize>,
}

impl Decided {
    fn new(rows: usize) -> Self {
        let list = || Vec::with_capacity(rows);
        Self { active: list(), left: Vec::with_capacity(rows), asked: list(), failed: list() }
    }

    pub(super) fn clear(&mut self) {
        self.active.clear();
        self.left.clear();
        self.asked.clear();
        self.failed.clear();
    }
}

impl OnDevice {
    /// A session's part on a device, or why there is none, in words.
    fn new(
        device: &dyn Device,
        model: &Model,
        request: KvRequest,
        choose: impl Fn(KvRequest) -> Result<KvShape, Error>,
    ) -> Result<Self, String> {
        let most = model.kv_layout().budget_within(device.most_kv(request.ty, model.config().head_dim));
        let shape = choose(KvRequest { budget: request.budget.min(most), ..request });
        // Where the CPU has no room either, it is the CPU that says so.
        let shape = shape.map_err(|_| "there is no room for the KV cache".to_owned())?;
        Ok(Self {
            name: device.name().to_owned(),
            shape,
            session: device.session(model, &shape)?,
            output: DeviceOutput::default(),
            depths: vec![Vec::new(); request.sequences],
            max_steps: Vec::new(),
            failed: None,
        })
    }
}

impl Session {
    /// Sets up a session: chooses the size of the KV cache, allocates everything, starts the threads.
    ///
    /// # Errors
    /// Options that the model cannot honour ([`Error::Option`], [`Error::KvMemory`]); no memory; no threads.
    pub fn new(model: Arc<Model>, options: &SessionOptions) -> Result<Self, Error> {
        let positive = |name: &str, n: usize| {
            if n == 0 { Err(Error::Option(format!("{name} must be at least 1"))) } else { Ok(n) }
        };
        let sequences = positive("the number of sequences", options.sequences)?;
        let usual = if model.config().prefix_lm { MOST_CHUNK_ROWS } else { CHUNK_ROWS };
        let chunk_rows = positive("the number of rows per chunk", options.chunk_rows.unwrap_or(usual))?;
        let steps = positive("the number of loop steps", options.steps.unwrap_or(model.config().mean_steps()))?;
        if let Some(n) = options.context {
            positive("the context", n)?;
        }
        if let Some(n) = options.kv_slots {
            positive("the number of KV slots", n)?;
        }
        let request = KvRequest {
            ty: options.kv_type,
            context: options.context,
            slots: options.kv_slots,
            sequences,
            steps,
            budget: options.kv_budget,
        };
        let config = model.config();
        let trained = model.positions().map_or(config.context, |table| table.rows.min(config.context));
        if let (Some(table), Some(asked)) = (model.positions(), options.context)
            && asked > table.rows
        {
            let most = table.rows;
            return Err(Error::Option(format!("a context of {asked}: the model has learned {most} positions")));
        }
        let choose = |request| KvShape::choose(request, trained, model.kv_layout());
        let (mut on_device, mut notice) = (None, None);
        if let Some(device) = model.device().filter(|_| options.on_device) {
            match OnDevice::new(&**device, &model, request, choose) {
                Ok(started) => on_device = Some(started),
                Err(why) => notice = Some(left(device.name(), &why)),
            }
        }
        let shape = match &on_device {
            Some(device) => device.shape,
            None => choose(request)?,
        };
        let chunk_rows = on_device.as_ref().map_or(chunk_rows, |d| chunk_rows.min(d.session.most_rows(&model).max(1)));
        let chunk_rows = chunk_rows.min(shape.context).min(MOST_CHUNK_ROWS);
        let count = options.threads.unwrap_or_else(|| default_threads(&model));
        let team = Team::new(count).map_err(|source| Error::Threads { count: count.get(), source })?;
        let kv = KvCache::new(&shape, model.kv_layout())?;
        let scratch = Scratch::new(&model, chunk_rows, count.get());
        Ok(Self {
            team,
            kv,
            shape,
            scratch,
            initial: options.initial.clone(),
            chunk_rows,
            depth: steps,
            held: std::iter::repeat_with(|| Vec::with_capacity(shape.context)).take(sequences).collect(),
            both_ways: vec![Vec::new(); sequences],
            chunk: Places::new(chunk_rows, model.config().loops.len()),
            flight: Flight::new(sequences, chunk_rows, model.config().loops.len()),
            all_steps: Vec::new(),
            all_loop_steps: Vec::new(),
            all_logits: Vec::new(),
            decided: Decided::new(chunk_rows),
            cancel: Arc::default(),
            inputs: None,
            most: count.get(),
            waypoints: None,
            on_device,
            notice,
            model,
        })
    }

    /// The model that runs.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The KV cache in force.
    pub fn kv_shape(&self) -> &KvShape {
        &self.shape
    }

    /// Rows that go through the model together, at most.
    pub fn chunk_rows(&self) -> usize {
        self.chunk_rows
    }

    /// Deepest loop that the KV slots were chosen for.
    pub fn steps(&self) -> usize {
        self.depth
    }

    /// Number of worker threads.
    pub fn threads(&self) -> usize {
        self.team.count()
    }

    /// Lets later passes use `most` of the [`threads`](Self::threads), from 1; more than there are means all. Threads that are left
    /// out sleep, and none is made anew. Results do not depend on it. Gives the number in force.
    pub fn set_threads(&mut self, most: usize) -> usize {
        if most != self.most {
            self.most = self.team.set_most(most);
        }
        self.most
    }

    /// Threads that passes may use: [`threads`](Self::threads), unless [`set_threads`](Self::set_threads) said fewer.
    pub fn most_threads(&self) -> usize {
        self.most
    }

    /// The device that it runs on; `None`: the CPU.
    pub fn device(&self) -> Option<&str> {
        self.on_device.as_ref().map(|d| d.name.as_str())
    }

    /// Why the session left its device for the CPU, if it has since this was last asked: a line for the user.
    pub fn take_notice(&mut self) -> Option<String> {
        self.notice.take()
    }

    /// Positions held by a sequence.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn len(&self, sequence: usize) -> usize {
        self.held[sequence].len()
    }

    /// Is nothing held at all?
    pub fn is_empty(&self) -> bool {
        self.held.iter().all(Vec::is_empty)
    }

    /// Forgets a sequence from position `length` on, with all of its rows [in flight](Self::in_flight), and gives the
    /// length that it has then. It is less than asked for where the
    /// cut would go through tokens that see each other in both directions: what is left of them knows what is gone.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn truncate(&mut self, sequence: usize, length: usize) -> usize {
        self.flight.clear_sequence(sequence);
        let mut length = length.min(self.held[sequence].len());
        let ranges = &mut self.both_ways[sequence];
        while let Some(last) = ranges.pop_if(|last| last.end > length) {
            length = length.min(last.start);
        }
        self.held[sequence].truncate(length);
        if let Some(device) = &mut self.on_device {
            device.depths[sequence].truncate(length * self.model.config().loops.len());
        }
        length
    }

    /// Where new rows' latent states begin.
    pub fn initial(&self) -> &InitialState {
        &self.initial
    }

    /// Changes the initial states of what is run from now on; on a device that fails later, also of what has to be run again then.
    pub fn set_initial(&mut self, initial: InitialState) {
        self.initial = initial;
    }

    /// A flag that, once set, ends the running pass (and any later one, until it is cleared) with [`Error::Cancelled`]
    /// after the loop step in progress. A cancelled call leaves the sequence at the last complete chunk.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancel)
    }

    /// Begins, from zero, to sum up what matrices are multiplied with. It costs some time and changes no result.
    pub fn record_inputs(&mut self) {
        self.inputs = Some(InputSquares::new(&self.model));
    }

    /// Ends what [`record_inputs`](Self::record_inputs) began; `None` if nothing was.
    pub fn take_inputs(&mut self) -> Option<InputSquares> {
        self.inputs.take()
    }

    /// Begins, from nothing, to note where the residual streams of some positions are as they enter and leave every block, in all
    /// loop steps. It takes memory and some time, and changes no bit of any result.
    pub fn record_waypoints(&mut self, options: WaypointOptions) {
        self.waypoints = Some(Waypoints::new(options));
    }

    /// Ends what [`record_waypoints`](Self::record_waypoints) began; `None` if nothing was.
    pub fn take_waypoints(&mut self) -> Option<Waypoints> {
        self.waypoints.take()
    }

    /// Runs tokens at the next positions of a sequence. Rows [in flight](Self::in_flight) are dropped, those of all sequences.
    ///
    /// Tokens go through in chunks of [`SessionOptions::chunk_rows`] (one by one with [`Batch::readout_exits`]); results are
    /// the same bits for every chunking as long as all loop steps have KV slots.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::Token`], [`Error::ContextFull`], [`Error::PrefixTooLong`] before anything has run; [`Error::NotFinite`],
    /// [`Error::LogitsNotFinite`] or [`Error::Cancelled`] on the way, with the sequence at the last complete chunk. On a device:
    /// [`Error::NeedsCpu`] for a policy without a [`DepthPolicy::device_rule`], and while inputs or waypoints are recorded.
    ///
    /// # Panics
    /// If there is no such sequence, or the policy's `max_steps` is 0.
    pub fn run(&mut self, batch: Batch<'_>, policy: &mut dyn DepthPolicy) -> Result<Output<'_>, Error> {
        let Batch { sequence, tokens, logits, readout_exits, both_ways } = batch;
        let loops = self.model.config().loops.len();
        assert!((0..loops).all(|i| policy.max_steps(i) > 0), "a row takes at least one step");
        let vocab = self.model.config().vocab;
        self.admits(tokens, self.held[sequence].len())?;
        if both_ways && tokens.len() > self.chunk_rows {
            return Err(Error::PrefixTooLong { asked: tokens.len(), most: self.chunk_rows });
        }
        self.flight.clear();
        self.all_steps.clear();
        self.all_loop_steps.clear();
        self.all_logits.clear();
        let size = if readout_exits && !both_ways { 1 } else { self.chunk_rows };
        let chunks = tokens.len().div_ceil(size);
        for (c, chunk) in tokens.chunks(size).enumerate() {
            let start = self.held[sequence].len();
            self.chunk.rows.clear();
            self.chunk.rows.extend(chunk.iter().enumerate().map(|(i, &token)| Row {
                sequence,
                position: start + i,
                token,
            }));
            self.want(logits, chunk.len(), c + 1 == chunks);
            let end = start + chunk.len();
            if both_ways && chunk.len() > 1 {
                self.both_ways[sequence].push(start..end);
            }
            let done = self.full_pass(policy, readout_exits);
            if done.is_err() {
                self.truncate(sequence, start);
            }
            done?;
            self.held[sequence].extend_from_slice(chunk);
            let depths = &self.chunk.depths[..chunk.len() * loops];
            if let Some(device) = &mut self.on_device {
                device.depths[sequence].extend(depths.iter().map(|&n| n as u32));
            }
            self.all_steps.extend(depths.chunks_exact(loops).map(|of_row| of_row.iter().sum::<usize>()));
            self.all_loop_steps.extend_from_slice(depths);
        }
        Ok(Output { steps: &self.all_steps, loop_steps: &self.all_loop_steps, logits: &self.all_logits, vocab })
    }

    /// Could these tokens be run behind `used` others of a sequence?
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::Token`], [`Error::ContextFull`].
    pub fn admits(&self, tokens: &[u32], used: usize) -> Result<(), Error> {
        let (vocab, context) = (self.model.config().vocab, self.shape.context);
        if tokens.is_empty() {
            return Err(Error::Empty);
        }
        if let Some(&token) = tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::Token { token, vocab });
        }
        if tokens.len() > context.saturating_sub(used) {
            return Err(Error::ContextFull { used, context, asked: tokens.len() });
        }
        Ok(())
    }

    /// Reads out given latent states `[n][S]` of the last loop at positions `first..first + n` of a sequence, as if the loop had ended with
    /// them: writes their coda keys and values, and gives the logits that are asked for, `[n][V]` at most.
    ///
    /// The positions must have been run before, and keep the keys and values of their core blocks.
    ///
    /// # Errors
    /// [`Error::Option`] if the states do not fit the positions held; [`Error::NeedsCpu`] on a device; [`Error::LogitsNotFinite`].
    pub fn read_out(
        &mut self,
        sequence: usize,
        first: usize,
        latents: &[f32],
        logits: Logits,
    ) -> Result<&[f32], Error> {
        if self.on_device.is_some() {
            return Err(Error::NeedsCpu);
        }
        let d = self.model.config().state_width;
        let n = latents.len() / d;
        let held = first.checked_add(n).is_some_and(|end| end <= self.held[sequence].len());
        if !latents.len().is_multiple_of(d) || n == 0 || !held {
            return Err(Error::Option(format!(
                "{} values are no latent states of width {d} at positions {first} to {}",
                latents.len(),
                self.held[sequence].len()
            )));
        }
        self.flight.clear();
        self.all_logits.clear();
        for (c, states) in latents.chunks(self.chunk_rows * d).enumerate() {
            let rows = states.len() / d;
            self.chunk.rows.clear();
            let start = first + c * self.chunk_rows;
            let tokens = self.held[sequence][start..start + rows].iter();
            self.chunk.rows.extend(tokens.enumerate().map(|(i, &token)| Row { sequence, position: start + i, token }));
            self.want(logits, rows, (c + 1) * self.chunk_rows >= n);
            self.scratch.state.get_mut()[..states.len()].copy_from_slice(states);
            self.pass(&mut super::FixedDepth(1), Task::ReadOut, false)?;
        }
        Ok(&self.all_logits)
    }

    /// Which of the `rows` rows of a chunk get logits.
    fn want(&mut self, logits: Logits, rows: usize, last_chunk: bool) {
        self.chunk.wanted.clear();
        match logits {
            Logits::None => {}
            Logits::Last if !last_chunk => {}
            Logits::Last => self.chunk.wanted.push(rows - 1),
            Logits::All => self.chunk.wanted.extend(0..rows),
        }
    }

    /// All of a pass over `self.chunk.rows`, on the device if there is one that works.
    fn full_pass(&mut self, policy: &mut dyn DepthPolicy, readout_exits: bool) -> Result<(), Error> {
        if self.on_device.as_ref().is_some_and(|d| d.failed.is_none()) {
            match self.device_pass(policy, readout_exits) {
                Ok(()) => return Ok(()),
                Err(DeviceError::Model(error)) => return Err(error),
                Err(DeviceError::Failed(why)) => {
                    if let Some(device) = &mut self.on_device {
                        device.failed = Some(why);
                    }
                }
            }
        }
        self.leave_device()?;
        self.pass(policy, Task::Full, readout_exits)
    }

    /// How many positions of its sequence each of `self.chunk.rows` sees.
    fn look(&mut self) {
        self.chunk.sees.clear();
        self.chunk.sees.extend(self.chunk.rows.iter().map(|row| {
            let range = self.both_ways[row.sequence].iter().find(|r| r.contains(&row.position));
            range.map_or(row.position + 1, |r| r.end)
        }));
    }

    /// A pass over `self.chunk.rows` on the device.
    fn device_pass(&mut self, policy: &mut dyn DepthPolicy, readout_exits: bool) -> Result<(), DeviceError> {
        let rule = policy.device_rule().filter(|_| self.inputs.is_none() && self.waypoints.is_none());
        let rule = rule.ok_or(DeviceError::Model(Error::NeedsCpu))?;
        if self.cancel.load(Ordering::Relaxed) {
            return Err(DeviceError::Model(Error::Cancelled));
        }
        self.look();
        let config = self.model.config();
        let Some(OnDevice { session, output, max_steps, .. }) = &mut self.on_device else {
            return Err(DeviceError::Failed("there is none".into()));
        };
        max_steps.clear();
        max_steps.extend((0..config.loops.len()).map(|i| policy::most_steps(policy, config, i)));
        let pass = DevicePass {
            model: &self.model,
            rows: &self.chunk.rows,
            sees: &self.chunk.sees,
            initial: &self.initial,
            wanted: &self.chunk.wanted,
            rule,
            max_steps,
            readout_exits,
        };
        session.pass(&pass, output)?;
        let (n, loops) = (self.chunk.rows.len(), config.loops.len());
        for (i, of_row) in self.chunk.depths[..n * loops].chunks_exact_mut(loops).enumerate() {
            for (depth, &steps) in of_row.iter_mut().zip(output.steps[i..].iter().step_by(n)) {
                *depth = steps as usize;
            }
        }
        for (row, &i) in output.logits.chunks_exact(config.vocab).zip(&self.chunk.wanted) {
            if !row.iter().all(|x| x.is_finite()) {
                return Err(DeviceError::Model(Error::LogitsNotFinite { position: self.chunk.rows[i].position }));
            }
        }
        self.all_logits.extend_from_slice(&output.logits);
        Ok(())
    }

    /// Gives up a device that has failed: everything that is held is run again on the CPU, every position to the depth that it had.
    /// If that is cancelled half way, the next call begins it anew.
    fn leave_device(&mut self) -> Result<(), Error> {
        let Some(mut device) = self.on_device.take() else { return Ok(()) };
        let loops = self.model.config().loops.len();
        let (rows, wanted) = (std::mem::take(&mut self.chunk.rows), std::mem::take(&mut self.chunk.wanted));
        let mut done = Ok(());
        for (sequence, depths) in device.depths.iter().enumerate() {
            let chunks = device::chunks(self.held[sequence].len(), &self.both_ways[sequence], self.chunk_rows);
            for chunk in chunks {
                let tokens = self.held[sequence][chunk.clone()].iter().zip(chunk.clone());
                self.chunk.rows.clear();
                self.chunk.rows.extend(tokens.map(|(&token, position)| Row { sequence, position, token }));
                let depths = &depths[chunk.start * loops..chunk.end * loops];
                if done.is_ok() {
                    done = self.pass(&mut Recorded { depths, loops, first: chunk.start }, Task::Full, false);
                }
            }
        }
        (self.chunk.rows, self.chunk.wanted) = (rows, wanted);
        match (&done, device.failed.take()) {
            (Ok(()), why) => self.notice = Some(left(&device.name, why.as_deref().unwrap_or("it is gone"))),
            (Err(_), why) => {
                device.failed = why;
                self.on_device = Some(device);
            }
        }
        done
    }

    /// One job of the team over all of `self.chunk`; appends the logits that are wanted.
    fn pass(&mut self, policy: &mut dyn DepthPolicy, task: Task, readout_exits: bool) -> Result<(), Error> {
        self.look();
        let mut chunk = std::mem::take(&mut self.chunk);
        let n = chunk.rows.len();
        chunk.which.clear();
        chunk.which.extend(0..n);
        chunk.depths[..n * self.model.config().loops.len()].fill(0);
        chunk.readable[..n].fill(readout_exits && n == 1);
        let done = self.job(&mut chunk, policy, task);
        self.chunk = chunk;
        done?;
        let vocab = self.model.config().vocab;
        let logits = &self.scratch.logits.get_mut()[..self.chunk.wanted.len() * vocab];
        for (row, &i) in logits.chunks_exact(vocab).zip(&self.chunk.wanted) {
            if !row.iter().all(|x| x.is_finite()) {
                return Err(Error::LogitsNotFinite { position: self.chunk.rows[i].position });
            }
        }
        self.all_logits.extend_from_slice(logits);
        Ok(())
    }

    /// One job of the team. Its logits are in [`Scratch::logits`], what was decided in `self.decided`.
    pub(super) fn job(&mut self, places: &mut Places, policy: &mut dyn DepthPolicy, task: Task) -> Result<(), Error> {
        let need = places.wanted.len().max(1) * self.model.config().vocab;
        if self.scratch.logits.len() < need {
            self.scratch.logits = Buffer::new(need);
        }
        // A caller's states read out are no part of any position's way.
        let waypoints = self.waypoints.as_mut().filter(|_| task == Task::Full);
        let waypoints = waypoints.map(|points| {
            points.expect(&places.rows);
            &*points
        });
        let Decided { active, left, asked, failed } = std::mem::take(&mut self.decided);
        let mut control = Buffer::from(vec![Control {
            policy,
            active,
            left,
            asked,
            failed,
            steps: &mut places.steps,
            depths: &mut places.depths,
            logits_fresh: false,
            error: None,
        }]);
        let pass = Pass {
            model: &self.model,
            scratch: &self.scratch,
            kv: &self.kv,
            kv_type: self.shape.ty,
            rows: &places.rows,
            sees: &places.sees,
            initial: &self.initial,
            task,
            which: &places.which,
            wanted: &places.wanted,
            readable: &places.readable,
            cancel: &self.cancel,
            inputs: self.inputs.as_ref(),
            waypoints,
            control: &control,
        };
        self.team.run(&|w| pass.run(w));
        let control = &mut control.get_mut()[0];
        let error = control.error.take();
        self.decided = Decided {
            active: std::mem::take(&mut control.active),
            left: std::mem::take(&mut control.left),
            asked: std::mem::take(&mut control.asked),
            failed: std::mem::take(&mut control.failed),
        };
        error.map_or(Ok(()), Err)
    }
}

/// The line that a session has for its user when it has left a device.
fn left(device: &str, why: &str) -> String {
    format!("{device}: {why}; continuing on the CPU")
}

/// Core weights that are worth a thread of their own: below this a step is so short that threads would mostly wait for each
/// other, and on a busy machine for the system.
const BYTES_PER_THREAD: u64 = 512 << 10;

/// Threads to use when nobody says: the fastest physical cores that this process may run on, fewer for a very small model.
fn default_threads(model: &Model) -> NonZeroUsize {
    let allowed = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let cores = cores::fast_count().map_or(allowed, |n| n.min(allowed));
    let worth = usize::try_from(model.step_bytes() / BYTES_PER_THREAD).unwrap_or(usize::MAX);
    cores.min(NonZeroUsize::new(worth).unwrap_or(NonZeroUsize::MIN))
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("kv", &self.shape)
            .field("held", &self.held.iter().map(Vec::len).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Clears a cancel flag when dropped, so that one cancelled call does not cancel the next.
pub struct ClearOnDrop<'a>(
    /// The flag.
    pub &'a AtomicBool,
);

impl Drop for ClearOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

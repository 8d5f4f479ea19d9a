//! A session on a device: its KV cache and scratch there, and how a chunk is sent, run and read back.

use super::buffers::{
    Buffers, Flow, Held, kv_row_bytes, logit_rows, most_rows, stride, table_stride, value_embeddings,
};
use super::builder::Builder;
use super::program::{LoopOps, Op, Program, ReadOps, Stage};
use super::weights::{MOST_LOOPS, Weights};
use crate::model::{
    DeviceError, DeviceOutput, DevicePass, DeviceRule, DeviceSession, DeviceStatistic, Error, KvShape, Model, Row,
    Start,
};
use std::collections::HashMap;
use std::mem;

/// Rows that scratch is made for at first. It grows when a larger chunk comes.
const FIRST_ROWS: usize = 64;

/// What a session has on a device.
pub(super) struct GpuSession {
    weights: Weights,
    shape: KvShape,
    flow: Flow,
    held: Held,
    buffers: Buffers,
    programs: HashMap<Kind, Program>,
    /// What is read back, and its size.
    staging: wgpu::Buffer,
    /// Reused from chunk to chunk.
    numbers: Vec<f32>,
    words: Vec<u32>,
}

/// Programs differ by how many rows chunks have at most, where they are few, and by whether a rule on the read-out may act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    few: Option<u32>,
    readout: bool,
}

impl Kind {
    fn of(rows: usize, readout: bool) -> Self {
        let few = match rows {
            1 => Some(1),
            2..=4 => Some(4),
            5..=8 => Some(8),
            _ => None,
        };
        Self { few, readout }
    }
}

impl GpuSession {
    pub(super) fn new(weights: Weights, model: &Model, shape: &KvShape) -> Result<Self, String> {
        let gpu = &weights.gpu;
        let config = model.config();
        let row = kv_row_bytes(shape.ty, config.head_dim);
        let mut caches = [Vec::new(), Vec::new()];
        for (b, block) in model.blocks().iter().enumerate() {
            let planes = model.kv_layout().passes(b).map_or(1, |passes| passes * shape.slots);
            let size = (planes * shape.sequences * block.kv_heads * shape.context * row) as u64;
            if size > weights.gpu.info().max_binding_bytes {
                return Err(format!(
                    "a KV cache of {size} bytes for one block is more than its kernels see at once (-c)"
                ));
            }
            for cache in &mut caches {
                cache.push(gpu.buffer("the KV cache", size, wgpu::BufferUsages::STORAGE)?);
            }
        }
        let [keys, values] = caches;
        let loops = config.loops.len();
        let size = (4 * loops * shape.sequences * shape.context) as u64;
        let depths = gpu.buffer("depths", size, wgpu::BufferUsages::STORAGE)?;
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let rule = gpu.buffer("the exit rule", (4 * RULE_WORDS) as u64, usage)?;
        let flow = Flow { rows: FIRST_ROWS.min(shape.context), loops };
        let buffers = Buffers::new(&weights, model, flow)?;
        let staging = staging(&weights, model, flow)?;
        let mut session = Self {
            held: Held { keys, values, depths, rule },
            shape: *shape,
            flow,
            buffers,
            programs: HashMap::new(),
            staging,
            numbers: Vec::new(),
            words: Vec::new(),
            weights,
        };
        // What every session needs is made now, not while somebody waits for the first token.
        for rows in [1, FIRST_ROWS] {
            session.prepare(model, Kind::of(rows, false))?;
        }
        Ok(session)
    }

    /// Makes the program for a kind of chunk, if there is none.
    fn prepare(&mut self, model: &Model, kind: Kind) -> Result<(), String> {
        if !self.programs.contains_key(&kind) {
            let parts = (&self.buffers, &self.held);
            let builder = Builder::new(&self.weights, model, parts, &self.shape, self.flow, kind.few);
            self.programs.insert(kind, builder.build(kind.readout)?);
        }
        Ok(())
    }

    /// Makes room for chunks of `rows` rows.
    fn grow(&mut self, model: &Model, rows: usize) -> Result<(), String> {
        if rows > self.flow.rows {
            let flow = Flow { rows: rows.next_multiple_of(64), ..self.flow };
            let staging = staging(&self.weights, model, flow)?;
            self.buffers = Buffers::new(&self.weights, model, flow)?;
            // No program may keep the old buffers.
            self.programs.clear();
            (self.flow, self.staging) = (flow, staging);
        }
        Ok(())
    }

    /// What indices on the device are made of, and the host alone knows.
    fn check(&self, pass: &DevicePass<'_>) -> Result<(), String> {
        let KvShape { context, sequences, .. } = self.shape;
        let n = pass.rows.len();
        let has_place = |(row, &sees): (&Row, &usize)| {
            row.position < context && row.sequence < sequences && (1..=context).contains(&sees)
        };
        let sound = n > 0
            && pass.sees.len() == n
            && pass.max_steps.len() == self.flow.loops
            && pass.wanted.iter().all(|&row| row < n)
            && pass.rows.iter().zip(pass.sees).all(has_place);
        if sound { Ok(()) } else { Err("rows that its cache has no place for".into()) }
    }

    /// Everything about the rows that the device cannot know.
    fn send(&mut self, pass: &DevicePass<'_>, readout: bool, wanted: &[usize]) {
        let (model, n) = (pass.model, pass.rows.len());
        let config = model.config();
        let queue = &self.weights.gpu.queue;
        let (numbers, words) = (&mut self.numbers, &mut self.words);
        words.clear();
        words.resize(Flow::WANTED + 4, 0);
        words[Flow::ALL] = n as u32;
        queue.write_buffer(&self.buffers.flow, 0, bytemuck::cast_slice(words));
        send_wanted(queue, &self.buffers.flow, self.flow, wanted, words);
        words.clear();
        for (row, &sees) in pass.rows.iter().zip(pass.sees) {
            words.extend([row.position as u32, sees as u32, row.sequence as u32, 0]);
        }
        queue.write_buffer(&self.buffers.places, 0, bytemuck::cast_slice(words));
        rule_words(&pass.rule, pass.max_steps, readout, words);
        queue.write_buffer(&self.held.rule, 0, bytemuck::cast_slice(words));

        let d = stride(config.width);
        numbers.clear();
        numbers.resize(n * d, 0.0);
        let mut place = vec![0.0; config.width];
        for (row, x) in pass.rows.iter().zip(numbers.chunks_exact_mut(d)) {
            let x = &mut x[..config.width];
            model.embedding(row.token, x);
            if let Some(table) = model.positions() {
                model.table_row(table, row.position, &mut place);
                x.iter_mut().zip(&place).for_each(|(x, p)| *x += p);
            }
        }
        queue.write_buffer(&self.buffers.x, 0, bytemuck::cast_slice(numbers));
        if let Some(rope) = model.rope() {
            numbers.clear();
            for row in pass.rows {
                let angles = rope.frequencies.iter().map(|f| row.position as f32 * f);
                numbers.extend(angles.flat_map(|a| [libm::cosf(a), libm::sinf(a)]));
            }
            queue.write_buffer(&self.buffers.angles, 0, bytemuck::cast_slice(numbers));
        }
        if model.plan().loops().any(|l| l.start == Start::Initial) {
            let s = stride(config.state_width);
            numbers.clear();
            numbers.resize(n * s, 0.0);
            for (row, x) in pass.rows.iter().zip(numbers.chunks_exact_mut(s)) {
                pass.initial.fill(config, row, &mut x[..config.state_width]);
            }
            queue.write_buffer(&self.buffers.sent, 0, bytemuck::cast_slice(numbers));
        }
        let width = table_stride(model);
        for (nth, (_, embedding)) in value_embeddings(model).enumerate() {
            numbers.clear();
            numbers.resize(n * width, 0.0);
            for (row, x) in pass.rows.iter().zip(numbers.chunks_exact_mut(width)) {
                model.table_row(&embedding.table, row.token as usize, &mut x[..embedding.table.cols]);
            }
            let at = 4 * nth * self.flow.rows * width;
            queue.write_buffer(&self.buffers.tables, at as u64, bytemuck::cast_slice(numbers));
        }
    }

    /// A chunk, from what is sent to what is read back.
    fn run(&mut self, pass: &DevicePass<'_>, out: &mut DeviceOutput) -> Result<(), String> {
        self.check(pass)?;
        let (model, n) = (pass.model, pass.rows.len());
        let vocab = model.config().vocab;
        let readout = pass.readout_exits && n == 1 && pass.rule.statistic.of_readout();
        let kind = Kind::of(n, readout);
        self.grow(model, n)?;
        self.prepare(model, kind)?;
        let mut slices = pass.wanted.chunks(logit_rows(&self.weights, model));
        let first = slices.next().unwrap_or(&[]);
        self.send(pass, readout, first);
        let mut words = mem::take(&mut self.words);
        let program = self.programs.get(&kind).ok_or("there is no program")?;
        let recorder = |wanted| Recorder { session: self, sizes: &program.sizes, rows: n, wanted, ops: Vec::new() };
        let mut recorded = recorder(first.len());
        for stage in &program.stages {
            match stage {
                Stage::Once(ops) => recorded.ops.push(ops),
                Stage::Loop(l) => recorded.repeat(pass, l, program.read.as_ref().filter(|_| readout))?,
            }
        }
        recorded.ops.push(&program.coda);
        let head = |wanted: usize| -> &[Op] { &program.head[usize::from(wanted > 1)] };
        if !first.is_empty() {
            recorded.ops.push(head(first.len()));
        }
        let flow_bytes = 4 * self.flow.words();
        out.steps.clear();
        out.logits.clear();
        let floats = |bytes: &[u8], to: &mut Vec<f32>| {
            to.extend(bytes.as_chunks::<4>().0.iter().map(|w| f32::from_le_bytes(*w)));
        };
        recorded.read(flow_bytes, first.len() * vocab, |bytes| {
            let (flow, logits) = bytes.split_at(flow_bytes);
            words.clear();
            words.extend(flow.as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w)));
            floats(logits, &mut out.logits);
        })?;
        for slice in slices {
            send_wanted(&self.weights.gpu.queue, &self.buffers.flow, self.flow, slice, &mut Vec::new());
            let mut recorded = recorder(slice.len());
            recorded.ops.push(head(slice.len()));
            recorded.read(0, slice.len() * vocab, |bytes| floats(bytes, &mut out.logits))?;
        }
        for number in 0..self.flow.loops {
            let from = self.flow.steps(number);
            out.steps.extend_from_slice(&words[from..from + n]);
        }
        self.words = words;
        Ok(())
    }
}

/// Steps of a loop that are recorded without a look at whether any row is left.
const BLIND_STEPS: usize = 64;

/// Operations on their way to the device.
struct Recorder<'s> {
    session: &'s GpuSession,
    sizes: &'s wgpu::Buffer,
    rows: usize,
    wanted: usize,
    ops: Vec<&'s [Op]>,
}

impl<'s> Recorder<'s> {
    /// The steps of a loop, all that there may be: once no row is left, the sizes of what follows are zero. `read`: what a rule on the
    /// read-out needs besides.
    fn repeat(&mut self, pass: &DevicePass<'_>, l: &'s LoopOps, read: Option<&'s ReadOps>) -> Result<(), String> {
        let most = pass.max_steps[l.number];
        let read = read.filter(|_| l.number + 1 == pass.max_steps.len());
        let per_step = (pass.model.step_bytes() * self.rows as u64).max(1);
        let together = usize::try_from(self.session.weights.gpu.work / per_step).unwrap_or(usize::MAX).max(1);
        self.ops.push(&l.enter);
        let mut first = true;
        for step in 1..=most {
            self.ops.push(&l.step);
            if let Some(read) = read.filter(|_| pass.rule.is_checked(step)) {
                self.ops.push(&read.read);
                self.ops.push(std::slice::from_ref(&read.measure[usize::from(!mem::take(&mut first))]));
                self.ops.push(std::slice::from_ref(&read.decide));
            }
            if step % together == 0 {
                self.submit(|_| {});
            }
            if step % BLIND_STEPS == 0 && step < most {
                let mut left = true;
                self.read(4 * (Flow::ACTIVE + 1), 0, |flow| {
                    left = flow[4 * Flow::ACTIVE..].iter().any(|&byte| byte > 0)
                })?;
                if !left {
                    break;
                }
            }
        }
        if let Some(read) = read {
            self.ops.push(std::slice::from_ref(&read.last));
        }
        self.ops.push(&l.leave);
        Ok(())
    }

    /// Submits what was recorded, and `then` what else.
    fn submit(&mut self, then: impl FnOnce(&mut wgpu::CommandEncoder)) {
        let gpu = &self.session.weights.gpu;
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut compute = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for op in self.ops.drain(..).flatten() {
            op.record(&mut compute, self.sizes, self.rows, self.wanted);
        }
        drop(compute);
        then(&mut encoder);
        gpu.queue.submit([encoder.finish()]);
    }

    /// Submits what was recorded, waits for it, and shows the first bytes of `flow` and so many logits.
    fn read(&mut self, flow_bytes: usize, logits: usize, show: impl FnOnce(&[u8])) -> Result<(), String> {
        let GpuSession { weights, buffers, staging, .. } = self.session;
        let (flow, logits) = (flow_bytes as u64, 4 * logits as u64);
        self.submit(|encoder| {
            if flow > 0 {
                encoder.copy_buffer_to_buffer(&buffers.flow, 0, staging, 0, flow);
            }
            if logits > 0 {
                encoder.copy_buffer_to_buffer(&buffers.logits, 0, staging, flow, logits);
            }
        });
        let read = staging.slice(..flow + logits);
        read.map_async(wgpu::MapMode::Read, |_| {});
        weights.gpu.wait()?;
        show(&read.get_mapped_range().map_err(|e| e.to_string())?);
        staging.unmap();
        weights.gpu.check()
    }
}

/// Where results wait to be read: all of `flow`, and as many logits as are computed together.
fn staging(weights: &Weights, model: &Model, flow: Flow) -> Result<wgpu::Buffer, String> {
    let words = flow.words() + flow.rows.min(logit_rows(weights, model)) * model.config().vocab;
    weights.gpu.buffer("results", 4 * words as u64, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)
}

fn send_wanted(queue: &wgpu::Queue, buffer: &wgpu::Buffer, flow: Flow, wanted: &[usize], words: &mut Vec<u32>) {
    if wanted.is_empty() {
        return;
    }
    words.clear();
    words.extend(wanted.iter().map(|&row| row as u32));
    queue.write_buffer(buffer, 4 * flow.wanted() as u64, bytemuck::cast_slice(words));
    queue.write_buffer(buffer, 4 * Flow::WANTED as u64, &(wanted.len() as u32).to_le_bytes());
}

/// Words of `Rule` in decide.wgsl.
const RULE_WORDS: usize = 8 + MOST_LOOPS;

fn rule_words(rule: &DeviceRule, most: &[usize], readout: bool, words: &mut Vec<u32>) {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let statistic = match rule.statistic {
        DeviceStatistic::Nothing => 0,
        DeviceStatistic::Acceleration => 1,
        DeviceStatistic::AccelerationRaw => 2,
        DeviceStatistic::AccelerationByStep => 3,
        DeviceStatistic::StepNorm => 4,
        DeviceStatistic::Cosine => 5,
        DeviceStatistic::Gate => 6,
        DeviceStatistic::Kl => 7,
        DeviceStatistic::MinPKl => 8,
        DeviceStatistic::Entropy => 9,
        DeviceStatistic::Argmax => 10,
    };
    words.clear();
    words.extend([
        statistic,
        number(rule.hits),
        number(rule.min),
        number(rule.every.max(1)),
        rule.max.map_or(u32::MAX, number),
        rule.threshold.to_bits(),
        u32::from(readout),
        0,
    ]);
    words.extend(most.iter().map(|&n| number(n)));
    words.resize(RULE_WORDS, 1);
}

impl DeviceSession for GpuSession {
    fn pass(&mut self, pass: &DevicePass<'_>, out: &mut DeviceOutput) -> Result<(), DeviceError> {
        self.weights.gpu.check().map_err(DeviceError::Failed)?;
        self.run(pass, out).map_err(DeviceError::Failed)?;
        match self.words.get(Flow::BAD_ROW) {
            Some(&row) if row > 0 => {
                // What is left over behind the ends of rows is multiplied with zeros, and must be numbers.
                self.buffers.clear(&self.weights.gpu);
                Err(DeviceError::Model(Error::NotFinite {
                    position: pass.rows.get(row as usize - 1).map_or(0, |r| r.position),
                    step: self.words[Flow::BAD_STEP] as usize,
                }))
            }
            _ => Ok(()),
        }
    }

    fn most_rows(&self, model: &Model) -> usize {
        most_rows(&self.weights, model)
    }
}

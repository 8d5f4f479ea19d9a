//! A session on a device: its KV cache and scratch there, and how a chunk is sent, run and read back.

use super::program::{
    Buffers, Builder, Flow, Held, LoopOps, Op, Program, Stage, kv_row_bytes, logit_rows, stride, table_stride,
    value_embeddings,
};
use super::weights::{MOST_LOOPS, Weights};
use crate::model::{
    DeviceError, DeviceOutput, DevicePass, DeviceRule, DeviceSession, DeviceStatistic, Error, KvShape, Model, Start,
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
        weights.gpu.check()?;
        let device = &weights.gpu.device;
        let config = model.config();
        let row = kv_row_bytes(shape.ty, config.head_dim);
        let mut caches = [Vec::new(), Vec::new()];
        for (b, block) in model.blocks().iter().enumerate() {
            let looped = model.plan().loops().map(|l| l.passes_over(b)).max().unwrap_or(0);
            let planes = if looped == 0 { 1 } else { looped * shape.slots };
            let size = (planes * shape.sequences * block.kv_heads * shape.context * row) as u64;
            if size > weights.gpu.info().most_bound {
                return Err(format!(
                    "a KV cache of {size} bytes for one block is more than its kernels see at once (-c)"
                ));
            }
            for cache in &mut caches {
                cache.push(device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("kv"),
                    size: size.max(16),
                    usage: wgpu::BufferUsages::STORAGE,
                    mapped_at_creation: false,
                }));
                weights.gpu.check()?;
            }
        }
        let [keys, values] = caches;
        let loops = config.loops.len();
        let depths = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("depths"),
            size: (4 * loops * shape.sequences * shape.context).max(16) as u64,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let rule = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("rule"),
            size: (4 * RULE_WORDS) as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let flow = Flow { rows: FIRST_ROWS.min(shape.context), loops };
        let buffers = Buffers::new(&weights, model, flow)?;
        let staging = staging(&weights, 4 * (flow.words() + config.vocab) as u64);
        weights.gpu.check()?;
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

    /// Makes room for chunks of `rows` rows whose results take `bytes`.
    fn grow(&mut self, model: &Model, rows: usize, bytes: u64) -> Result<(), String> {
        if rows > self.flow.rows {
            // No program may keep the old buffers.
            self.programs.clear();
            self.flow.rows = rows.next_power_of_two();
            self.buffers = Buffers::new(&self.weights, model, self.flow)?;
        }
        let bytes = bytes + 4 * self.flow.words() as u64;
        if bytes > self.staging.size() {
            self.staging = staging(&self.weights, bytes);
            self.weights.gpu.check()?;
        }
        Ok(())
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
        words[Flow::WANTED] = wanted.len() as u32;
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

    /// A chunk, from what was sent to what is read back.
    fn run(&mut self, pass: &DevicePass<'_>, out: &mut DeviceOutput) -> Result<(), String> {
        let (model, n) = (pass.model, pass.rows.len());
        let vocab = model.config().vocab;
        let readout = pass.readout_exits && n == 1 && pass.rule.statistic.of_readout();
        self.grow(model, n, 4 * (pass.wanted.len() * vocab) as u64)?;
        let kind = Kind::of(n, readout);
        self.prepare(model, kind)?;
        let together = logit_rows(&self.weights, model);
        let mut slices = pass.wanted.chunks(together);
        let first = slices.next().unwrap_or(&[]);
        self.send(pass, readout, first);
        let gpu = &self.weights.gpu;
        let (Some(program), flow_bytes) = (self.programs.get(&kind), 4 * self.flow.words() as u64) else {
            return Ok(());
        };
        let record = |encoder: &mut wgpu::CommandEncoder, ops: &[&[Op]], wanted: usize| {
            let mut compute = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for op in ops.iter().copied().flatten() {
                op.record(&mut compute, &program.sizes, n, wanted);
            }
        };
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut ops: Vec<&[Op]> = Vec::new();
        for stage in &program.stages {
            match stage {
                Stage::Once(part) => ops.push(part),
                Stage::Loop(l) => {
                    let most = pass.max_steps[l.number];
                    let last = l.number + 1 == pass.max_steps.len();
                    loop_ops(l, program, &pass.rule, most, last && readout, &mut ops);
                }
            }
        }
        ops.push(&program.coda);
        let head = |wanted: usize| -> &[Op] { &program.head[usize::from(wanted > 1)] };
        if !first.is_empty() {
            ops.push(head(first.len()));
        }
        record(&mut encoder, &ops, first.len());
        encoder.copy_buffer_to_buffer(&self.buffers.flow, 0, &self.staging, 0, flow_bytes);
        let mut at = flow_bytes;
        let copy = |encoder: &mut wgpu::CommandEncoder, rows: usize, at: &mut u64| {
            let bytes = 4 * (rows * vocab) as u64;
            if bytes > 0 {
                encoder.copy_buffer_to_buffer(&self.buffers.logits, 0, &self.staging, *at, bytes);
            }
            *at += bytes;
        };
        copy(&mut encoder, first.len(), &mut at);
        gpu.queue.submit([encoder.finish()]);
        for slice in slices {
            // The rows of the next slice are written behind what was submitted, and before what will be.
            send_wanted(&gpu.queue, &self.buffers.flow, self.flow, slice, &mut self.words);
            let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            record(&mut encoder, &[head(slice.len())], slice.len());
            copy(&mut encoder, slice.len(), &mut at);
            gpu.queue.submit([encoder.finish()]);
        }
        let read = self.staging.slice(..at);
        read.map_async(wgpu::MapMode::Read, |_| {});
        gpu.wait()?;
        let mapped = read.get_mapped_range().map_err(|e| e.to_string())?;
        let (flow, logits) = mapped.split_at(flow_bytes as usize);
        self.words.clear();
        self.words.extend(flow.as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w)));
        out.logits.clear();
        out.logits.extend(logits.as_chunks::<4>().0.iter().map(|w| f32::from_le_bytes(*w)));
        drop(mapped);
        self.staging.unmap();
        out.steps.clear();
        for number in 0..self.flow.loops {
            let from = self.flow.steps(number);
            out.steps.extend_from_slice(&self.words[from..from + n]);
        }
        gpu.check()
    }
}

/// The steps of a loop, all that there may be: once no row is left, the sizes of what follows are zero.
fn loop_ops<'p>(
    l: &'p LoopOps,
    program: &'p Program,
    rule: &DeviceRule,
    most: usize,
    readout: bool,
    ops: &mut Vec<&'p [Op]>,
) {
    ops.push(&l.enter);
    let mut first = true;
    for step in 1..=most {
        ops.push(&l.step);
        if let Some(read) = program.read.as_ref().filter(|_| readout && rule.is_checked(step)) {
            ops.push(&read.read);
            ops.push(std::slice::from_ref(&read.measure[usize::from(!mem::take(&mut first))]));
            ops.push(std::slice::from_ref(&read.decide));
        }
    }
    if let Some(read) = program.read.as_ref().filter(|_| readout) {
        ops.push(std::slice::from_ref(&read.last));
    }
    ops.push(&l.leave);
}

fn staging(weights: &Weights, bytes: u64) -> wgpu::Buffer {
    weights.gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("staging"),
        size: bytes.next_multiple_of(16),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
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
            Some(&row) if row > 0 => Err(DeviceError::Model(Error::NotFinite {
                position: pass.rows.get(row as usize - 1).map_or(0, |r| r.position),
                step: self.words[Flow::BAD_STEP] as usize,
            })),
            _ => Ok(()),
        }
    }
}

//! From a model's plan to its [`Program`]: the operations of `model::forward` and `model::layers`, in their order.

use super::buffers::{Buffers, Flow, Held, stride, table_stride, value_embeddings};
use super::program::{Grid, LoopOps, Op, Over, Program, ReadOps, Stage};
use super::shader::{Kernel, Shape, TILE, takes_bytes};
use super::weights::Weights;
use crate::model::{
    Activation, Injection, KvShape, Linear, Looped, Matrix, Model, Norm, PostNorm, RopeStyle, Segment, Start,
};
use std::collections::HashMap;

/// An operation whose parameters are not on the device yet.
struct Pending {
    kernel: Kernel,
    params: Vec<u32>,
    buffers: Vec<wgpu::Buffer>,
    grid: Grid,
}

/// What happens to a product before it is written.
#[derive(Clone, Copy, Default)]
struct Then<'a> {
    flags: u32,
    vector: Option<&'a [f32]>,
    /// Values by row, their stride, and whether they lie by chunk row where the others are moved together.
    other: Option<(&'a wgpu::Buffer, usize, bool)>,
}

/// Flags of epilogue.wgsl.
const BIAS: u32 = 1;
const RATE: u32 = 2;
const ADD: u32 = 4;
const SILU: u32 = 8;
const RELU: u32 = 16;
const GELU: u32 = 32;
const RESIDUAL: u32 = 64;

/// Flags of norm.wgsl.
const NORM: u32 = 1;
const LAYER: u32 = 2;
const IN_PLACE: u32 = 4;
const NORM_ADD: u32 = 8;

/// Bytes of a place in the buffer of parameters: what every device allows offsets to be a multiple of.
const PARAMS: usize = 256;

/// Puts programs together.
pub(super) struct Builder<'a> {
    weights: &'a Weights,
    model: &'a Model,
    buffers: &'a Buffers,
    held: &'a Held,
    shape: &'a KvShape,
    flow: Flow,
    /// Rows that chunks have at most, where these are few.
    few: Option<u32>,
    vectors: Vec<f32>,
    known: HashMap<(usize, usize), u32>,
    ops: Vec<Pending>,
    failed: Option<String>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        weights: &'a Weights,
        model: &'a Model,
        (buffers, held): (&'a Buffers, &'a Held),
        shape: &'a KvShape,
        flow: Flow,
        few: Option<u32>,
    ) -> Self {
        let (vectors, known, ops) = (Vec::new(), HashMap::new(), Vec::new());
        Self { weights, model, buffers, held, shape, flow, few, vectors, known, ops, failed: None }
    }

    /// The whole program. `readout`: for a row on whose read-out a rule may act.
    pub(super) fn build(mut self, readout: bool) -> Result<Program, String> {
        let plan = self.model.plan();
        let loops = plan.loops().count();
        let (before, coda) = plan.segments.split_at(plan.segments.len() - plan.coda().len());
        // Operations are listed first, and cut into stages by where they begin.
        enum Mark {
            Once,
            Enter,
            Step,
            Leave,
            Coda,
            Head,
            Read,
            Measure,
        }
        let mut marks = Vec::new();
        let mut number = 0;
        for segment in before {
            match segment {
                Segment::Once(blocks) => {
                    marks.push((Mark::Once, self.ops.len()));
                    blocks.clone().for_each(|b| self.block(b, Over::All, None));
                }
                Segment::Looped(looped) => {
                    marks.push((Mark::Enter, self.ops.len()));
                    self.enter_loop(looped, number);
                    marks.push((Mark::Step, self.ops.len()));
                    self.step(looped, number, number + 1 == loops);
                    marks.push((Mark::Leave, self.ops.len()));
                    let over = if readout && number + 1 == loops { Over::Read } else { Over::All };
                    self.leave_loop(looped, over);
                    number += 1;
                }
            }
        }
        let over = if readout { Over::Read } else { Over::All };
        marks.push((Mark::Coda, self.ops.len()));
        self.coda(coda, over);
        if readout {
            // What is done after each step is what is done in the end, if it was not the last thing that was done.
            marks.push((Mark::Head, self.ops.len()));
            self.head(Over::Read, Some(1));
            marks.push((Mark::Head, self.ops.len()));
            marks.push((Mark::Read, self.ops.len()));
            if let Some(looped) = plan.loops().last() {
                self.leave_loop(looped, Over::Read);
            }
            self.coda(coda, Over::Read);
            self.head(Over::Read, Some(1));
            marks.push((Mark::Measure, self.ops.len()));
            self.measure(true);
            self.measure(false);
            self.decide(2, loops - 1, true);
            self.decide(3, loops - 1, true);
        } else {
            marks.push((Mark::Head, self.ops.len()));
            self.head(Over::Wanted, Some(1));
            marks.push((Mark::Head, self.ops.len()));
            self.head(Over::Wanted, self.few);
        }
        let ends: Vec<usize> = marks.iter().skip(1).map(|m| m.1).chain([self.ops.len()]).collect();
        let (mut ops, sizes) = self.finish()?;
        let mut program =
            Program { stages: Vec::new(), coda: Vec::new(), head: [Vec::new(), Vec::new()], read: None, sizes };
        let (mut number, mut heads, mut read) = (0, 0, Vec::new());
        for ((mark, from), end) in marks.into_iter().zip(ends) {
            let mut part: Vec<Op> = ops.drain(..end - from).collect();
            match mark {
                Mark::Once => program.stages.push(Stage::Once(part)),
                Mark::Enter => {
                    let (step, leave) = (Vec::new(), Vec::new());
                    program.stages.push(Stage::Loop(LoopOps { number, enter: part, step, leave }));
                    number += 1;
                }
                Mark::Step | Mark::Leave => {
                    if let Some(Stage::Loop(l)) = program.stages.last_mut() {
                        let to = if matches!(mark, Mark::Step) { &mut l.step } else { &mut l.leave };
                        *to = part;
                    }
                }
                Mark::Coda => program.coda = part,
                Mark::Head => {
                    program.head[heads] = part;
                    heads += 1;
                }
                Mark::Read => read = part,
                Mark::Measure => {
                    let (Some(last), Some(decide), Some(other), Some(first)) =
                        (part.pop(), part.pop(), part.pop(), part.pop())
                    else {
                        return Err("a program without its parts".into());
                    };
                    program.read =
                        Some(ReadOps { read: std::mem::take(&mut read), measure: [first, other], decide, last });
                }
            }
        }
        Ok(program)
    }

    /// Parameters and small vectors to the device, and the bindings of everything.
    fn finish(self) -> Result<(Vec<Op>, wgpu::Buffer), String> {
        let gpu = &self.weights.gpu;
        if let Some(why) = self.failed {
            return Err(why);
        }
        // The sizes that the device decides about, each once.
        let mut grids: Vec<[u32; 4]> = Vec::new();
        let mut place = |grid: Grid| -> u64 {
            let Grid::Rows { over: over @ (Over::Active | Over::Read), x, per } = grid else { return 0 };
            let wanted = [x, per, over.count(), 0];
            let at = grids.iter().position(|g| *g == wanted).unwrap_or_else(|| {
                grids.push(wanted);
                grids.len() - 1
            });
            12 * at as u64
        };
        let indirect: Vec<u64> = self.ops.iter().map(|op| place(op.grid)).collect();
        if grids.is_empty() {
            grids.push([0, 1, 0, 0]);
        }
        let full = |label: &str, bytes: &[u8], usage: wgpu::BufferUsages| {
            let buffer = gpu.buffer(label, bytes.len() as u64, usage | wgpu::BufferUsages::COPY_DST)?;
            gpu.queue.write_buffer(&buffer, 0, bytes);
            Ok::<_, String>(buffer)
        };
        let mut params = vec![0u32; self.ops.len() * (PARAMS / 4)];
        for (op, slot) in self.ops.iter().zip(params.chunks_exact_mut(PARAMS / 4)) {
            slot[..op.params.len()].copy_from_slice(&op.params);
        }
        let vectors = if self.vectors.is_empty() { &[0.0f32; 4][..] } else { &self.vectors };
        let params = full("params", bytemuck::cast_slice(&params), wgpu::BufferUsages::UNIFORM)?;
        let vectors = full("vectors", bytemuck::cast_slice(vectors), wgpu::BufferUsages::STORAGE)?;
        let grids = full("grids", bytemuck::cast_slice(&grids), wgpu::BufferUsages::STORAGE)?;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::INDIRECT;
        let sizes = gpu.buffer("sizes", grids.size() / 16 * 12, usage)?;
        let mut ops = Vec::with_capacity(self.ops.len());
        for (i, (op, indirect)) in self.ops.into_iter().zip(indirect).enumerate() {
            let pipeline = gpu.pipelines.get(gpu, op.kernel)?;
            let own = wgpu::BufferBinding {
                buffer: &params,
                offset: (i * PARAMS) as u64,
                size: std::num::NonZeroU64::new(PARAMS as u64),
            };
            let flow = &self.buffers.flow;
            let mut entries = vec![
                wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(own) },
                wgpu::BindGroupEntry { binding: 1, resource: flow.as_entire_binding() },
            ];
            // What stands for a buffer of the program's own.
            let rest = op.buffers.iter().map(Some);
            let rest: Vec<&wgpu::Buffer> = match op.kernel {
                Kernel::Decide => {
                    let b = &op.buffers;
                    vec![&b[0], &b[1], &b[2], &b[3], &b[4], &grids, &sizes, &b[5]]
                }
                Kernel::Quantise | Kernel::Readout | Kernel::Place { .. } | Kernel::Attend { .. } => {
                    rest.flatten().collect()
                }
                _ => std::iter::once(&vectors).chain(rest.flatten()).collect(),
            };
            entries.extend(rest.iter().enumerate().map(|(j, buffer)| wgpu::BindGroupEntry {
                binding: j as u32 + 2,
                resource: buffer.as_entire_binding(),
            }));
            let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.layout,
                entries: &entries,
            });
            ops.push(Op { pipeline, group, grid: op.grid, indirect });
        }
        gpu.check()?;
        Ok((ops, sizes))
    }

    fn op(&mut self, kernel: Kernel, params: Vec<u32>, buffers: &[&wgpu::Buffer], grid: Grid) {
        let buffers = buffers.iter().map(|&b| b.clone()).collect();
        self.ops.push(Pending { kernel, params, buffers, grid });
    }

    /// Where a small vector begins on the device.
    fn vector(&mut self, values: &[f32]) -> u32 {
        let vectors = &mut self.vectors;
        *self.known.entry((values.as_ptr() as usize, values.len())).or_insert_with(|| {
            let at = vectors.len() as u32;
            vectors.extend_from_slice(values);
            at
        })
    }

    /// The list of a set of rows that are moved together, for buffers that are by chunk row.
    fn list(&self, over: Over) -> u32 {
        match over {
            Over::All | Over::Read => 0,
            Over::Active => self.flow.active(),
            Over::Wanted => self.flow.wanted() as u32,
        }
    }

    /// Weights, flags and constants of a norm.
    fn norm_params(&mut self, norm: Option<&Norm>) -> (u32, u32, u32, f32) {
        let Some(norm) = norm else { return (0, 0, 0, 0.0) };
        let weight = self.vector(&norm.weight);
        let (flags, bias) = match &norm.bias {
            None => (NORM, 0),
            Some(bias) => (NORM | LAYER, self.vector(bias)),
        };
        (flags, weight, bias, norm.eps)
    }

    /// `target` = norm of `source` (or a copy), row by row; lists say where a row is that the two do not have moved together.
    fn norm(
        &mut self,
        norm: Option<&Norm>,
        (source, source_list): (&wgpu::Buffer, u32),
        (target, target_list): (&wgpu::Buffer, u32),
        width: usize,
        over: Over,
        flags: u32,
    ) {
        let (norm_flags, weight, bias, eps) = self.norm_params(norm);
        let stride = stride(width) as u32;
        let params =
            vec![width as u32, stride, source_list, target_list, norm_flags | flags, weight, bias, eps.to_bits()];
        // What is the target cannot be bound as the source besides.
        let source = if flags & IN_PLACE != 0 { &self.buffers.readout } else { source };
        self.op(Kernel::Norm, params, &[source, target], Grid::Rows { over, x: 0, per: 1 });
    }

    /// Makes `x` ready for matrices: to bytes, if one takes them.
    fn ready(&mut self, x: &wgpu::Buffer, width: usize, over: Over, matrices: &[&Matrix]) {
        if matrices.iter().any(|m| takes_bytes(m.ty)) {
            let pieces = (stride(width) / 32) as u32;
            let b = self.buffers;
            let grid = Grid::Rows { over, x: pieces.div_ceil(64), per: 1 };
            self.op(Kernel::Quantise, vec![pieces, over.count()], &[x, &b.h_words, &b.h_scales], grid);
        }
    }

    /// `out` = matrix · `x`, which is [`ready`](Self::ready), and what then is to be done with it.
    fn project(
        &mut self,
        m: &Matrix,
        x: &wgpu::Buffer,
        out: &wgpu::Buffer,
        over: Over,
        few: Option<u32>,
        then: Then<'_>,
    ) {
        let weights = self.weights;
        let stored = match weights.get(m) {
            Ok(stored) => stored,
            Err(why) => {
                self.failed.get_or_insert(why);
                return;
            }
        };
        let shape = Shape::for_pieces(stored.pieces);
        let kernel = match few {
            Some(rows) => Kernel::Few { ty: stored.ty, rows, shape },
            None => Kernel::Many { ty: stored.ty },
        };
        let vector = then.vector.map_or(0, |v| self.vector(v));
        let (other, other_stride, by_row) = then.other.unwrap_or((&self.buffers.readout, 0, false));
        let other_list = if by_row { self.list(over) } else { 0 };
        let out_stride = if std::ptr::eq(out, &self.buffers.logits) { stored.rows } else { stride(stored.rows) };
        for part in &stored.parts {
            let params = vec![
                part.rows.len() as u32,
                part.rows.start as u32,
                stored.pieces as u32,
                part.heads as u32,
                out_stride as u32,
                other_stride as u32,
                over.count(),
                other_list,
                then.flags,
                vector,
            ];
            let x_groups = (part.rows.len() as u32).div_ceil(kernel.rows_per_group());
            let grid = Grid::Rows { over, x: x_groups, per: few.unwrap_or(TILE.1) };
            let b = self.buffers;
            if takes_bytes(stored.ty) {
                self.op(kernel, params, &[&part.buffer, other, out, &b.h_words, &b.h_scales], grid);
            } else {
                self.op(kernel, params, &[&part.buffer, other, out, x], grid);
            }
        }
    }

    /// A matrix with its bias, if it has one.
    fn linear<'t>(&mut self, l: &'t Linear, x: &wgpu::Buffer, out: &wgpu::Buffer, over: Over, mut then: Then<'t>) {
        if let Some(bias) = l.bias.as_deref() {
            then.flags |= BIAS;
            then.vector = Some(bias);
        }
        self.project(&l.weight, x, out, over, self.few, then);
    }

    /// The residual stream behind a half block: x + f(input), as the norm after it says.
    fn half(&mut self, l: &Linear, post: &PostNorm, input: &wgpu::Buffer, width: usize, over: Over) {
        let b = self.buffers;
        self.ready(input, l.weight.cols, over, &[&l.weight]);
        match post {
            PostNorm::None | PostNorm::Sum(_) => {
                self.linear(l, input, &b.x, over, Then { flags: RESIDUAL, ..Then::default() });
                if let PostNorm::Sum(norm) = post {
                    self.norm(Some(norm), (&b.x, 0), (&b.x, 0), width, over, IN_PLACE);
                }
            }
            PostNorm::Branch(norm) => {
                self.linear(l, input, &b.branch, over, Then::default());
                self.norm(Some(norm), (&b.branch, 0), (&b.x, 0), width, over, NORM_ADD);
            }
        }
    }

    /// A block over the rows of `x`. `at`: which loop it is in, and which pass of a step over it this is.
    fn block(&mut self, number: usize, over: Over, at: Option<(usize, usize)>) {
        let model = self.model;
        let (block, b, config) = (&model.blocks()[number], self.buffers, model.config());
        let (width, dim) = (block.width(), config.head_dim);
        let (slots, passes) = model.kv_layout().passes(number).map_or((1, 1), |passes| (self.shape.slots, passes));
        let nth = at.map_or(0, |(_, nth)| nth);
        let list = self.list(over);

        self.norm(Some(&block.attn_norm), (&b.x, 0), (&b.h, 0), width, over, 0);
        let mut inputs = vec![&block.q.weight, &block.k.weight, &block.v.weight];
        inputs.extend(&block.attn_gate);
        self.ready(&b.h, width, over, &inputs);
        self.linear(&block.q, &b.h, &b.q, over, Then::default());
        self.linear(&block.k, &b.h, &b.k, over, Then::default());
        self.linear(&block.v, &b.h, &b.v, over, Then::default());
        if let Some(gate) = &block.attn_gate {
            self.project(gate, &b.h, &b.gates, over, self.few, Then::default());
        }
        let (q_stride, kv_stride) = (stride(block.heads * dim) as u32, stride(block.kv_heads * dim) as u32);
        if let Some(embedding) = &block.value_embedding {
            let nth = value_embeddings(model).position(|(b, _)| b == number).unwrap_or(0);
            let gate = self.vector(&embedding.gate);
            let table_stride = table_stride(model);
            let params = vec![
                dim as u32,
                stride(width) as u32,
                kv_stride,
                list,
                gate,
                (nth * self.flow.rows * table_stride) as u32,
                table_stride as u32,
            ];
            let grid = Grid::Rows { over, x: block.kv_heads as u32, per: 1 };
            self.op(Kernel::Value, params, &[&b.h, &b.tables, &b.v], grid);
        }
        let style = match model.rope().map(|r| r.style) {
            None => 0,
            Some(RopeStyle::Interleaved) => 1,
            Some(RopeStyle::Halves) => 2,
        };
        let unit_norm = if block.qk_norm.is_some() { 4 } else { 0 };
        let (sequences, context) = (self.shape.sequences as u32, self.shape.context as u32);
        let params = vec![
            block.heads as u32,
            block.kv_heads as u32,
            dim as u32,
            q_stride,
            kv_stride,
            list,
            style | unit_norm,
            block.qk_norm.unwrap_or(0.0).to_bits(),
            slots as u32,
            passes as u32,
            nth as u32,
            sequences,
            context,
        ];
        let (kv, head) = (self.shape.ty, dim as u32);
        let (keys, values) = (&self.held.keys[number], &self.held.values[number]);
        let grid = Grid::Rows { over, x: (block.heads + 2 * block.kv_heads) as u32, per: 1 };
        self.op(Kernel::Place { kv, dim: head }, params, &[&b.places, &b.angles, &b.q, &b.k, &b.v, keys, values], grid);
        let depths = at.map_or(u32::MAX, |(number, _)| self.depths(number));
        let params = vec![
            block.heads as u32,
            block.kv_heads as u32,
            dim as u32,
            q_stride,
            list,
            slots as u32,
            passes as u32,
            nth as u32,
            sequences,
            context,
            depths,
            u32::from(block.attn_gate.is_some()),
            (1.0 / (dim as f32).sqrt()).to_bits(),
        ];
        let grid = Grid::Rows { over, x: block.heads as u32, per: 1 };
        let held = [&b.places, &b.q, keys, values, &self.held.depths, &b.gates, &b.attended];
        self.op(Kernel::Attend { kv, dim: head }, params, &held, grid);
        self.half(&block.attn_output, &block.post_attn, &b.attended, width, over);

        self.norm(Some(&block.ffn_norm), (&b.x, 0), (&b.h, 0), width, over, 0);
        let mlp = &block.mlp;
        let mut inputs = vec![&mlp.up.weight];
        inputs.extend(mlp.gate.as_ref().map(|g| &g.weight));
        self.ready(&b.h, width, over, &inputs);
        let mut then = Then::default();
        if let Some(gate) = &mlp.gate {
            self.linear(gate, &b.h, &b.hidden_gate, over, Then::default());
            then.other = Some((&b.hidden_gate, stride(mlp.up.weight.rows), false));
        }
        then.flags = match mlp.activation {
            Activation::GatedSilu => SILU,
            Activation::HalfReluSquared => RELU,
            Activation::GeluTanh => GELU,
        };
        self.linear(&mlp.up, &b.h, &b.hidden, over, then);
        self.half(&mlp.down, &block.post_ffn, &b.hidden, width, over);
    }

    /// Where a loop's depths begin.
    fn depths(&self, number: usize) -> u32 {
        (number * self.shape.sequences * self.shape.context) as u32
    }

    /// Constant input, initial states, and the decision's first look.
    fn enter_loop(&mut self, looped: &Looped, number: usize) {
        let (b, config, model) = (self.buffers, self.model.config(), self.model);
        let (d, s) = (config.width, config.state_width);
        self.norm(looped.entry_norm.as_ref(), (&b.x, 0), (&b.entered, 0), d, Over::All, 0);
        let constant = match &looped.injection {
            Injection::None | Injection::Inner { .. } => None,
            Injection::Linear { input, .. } => Some((&input.weight, input.bias.as_deref(), BIAS)),
            Injection::Diagonal { input, rates } => Some((input, Some(rates.rate()), RATE)),
        };
        if let Some((matrix, vector, flag)) = constant {
            self.ready(&b.entered, d, Over::All, &[matrix]);
            let flags = if vector.is_some() { flag } else { 0 };
            let then = Then { flags, vector, other: None };
            self.project(matrix, &b.entered, &b.input, Over::All, self.few, then);
        }
        let mut flags = if looped.start == Start::Stream { 1 } else { 0 };
        let mut initial = 0;
        if let Injection::Inner { initial: values } = &looped.injection {
            flags |= 2;
            initial = self.vector(values);
        }
        let params = vec![s as u32, stride(s) as u32, flags, initial];
        let grid = Grid::Rows { over: Over::All, x: (s as u32).div_ceil(64), per: 1 };
        self.op(Kernel::Enter, params, &[&b.entered, &b.sent, &b.latent, &b.delta, &b.inner], grid);
        self.decide(0, number, number + 1 == model.config().loops.len());
    }

    /// A loop step of the active rows, and the decision about them.
    fn step(&mut self, looped: &Looped, number: usize, last_loop: bool) {
        let (b, s) = (self.buffers, self.model.config().state_width);
        let active = self.flow.active();
        let over = Over::Active;
        for (p, pass) in looped.passes.iter().enumerate() {
            let grid = Grid::Rows { over, x: (s as u32).div_ceil(64), per: 1 };
            match &looped.injection {
                Injection::None => self.norm(None, (&b.latent, active), (&b.x, 0), s, over, 0),
                Injection::Linear { state, .. } => {
                    self.norm(None, (&b.latent, active), (&b.h, 0), s, over, 0);
                    self.ready(&b.h, s, over, &[state]);
                    let then = Then { flags: ADD, vector: None, other: Some((&b.input, stride(s), true)) };
                    self.project(state, &b.h, &b.x, over, self.few, then);
                }
                Injection::Diagonal { rates, .. } => {
                    let decay = self.vector(rates.decay());
                    let params = vec![s as u32, stride(s) as u32, active, decay, 1];
                    self.op(Kernel::Inject, params, &[&b.latent, &b.input, &b.x], grid);
                }
                Injection::Inner { .. } => {
                    let params = vec![s as u32, stride(s) as u32, active, 0, 0];
                    self.op(Kernel::Inject, params, &[&b.latent, &b.inner, &b.x], grid);
                }
            }
            pass.blocks.clone().for_each(|block| self.block(block, over, Some((number, pass.nth))));
            if p + 1 < looped.passes.len() {
                self.norm(looped.norm.as_ref(), (&b.x, 0), (&b.inner, active), s, over, 0);
            }
        }
        if let Some(norm) = &looped.norm {
            self.norm(Some(norm), (&b.x, 0), (&b.x, 0), s, over, IN_PLACE);
        }
        let (gate, gate_bias) = looped.gate.as_ref().map_or((0, 0.0), |g| (self.vector(&g.weight), g.bias));
        let gated = u32::from(looped.gate.is_some());
        let params = vec![s as u32, stride(s) as u32, active, gated, gate, gate_bias.to_bits()];
        let grid = Grid::Rows { over, x: 0, per: 1 };
        self.op(Kernel::Settle, params, &[&b.x, &b.latent, &b.delta, &b.statistics], grid);
        self.decide(1, number, last_loop);
    }

    fn decide(&mut self, moment: u32, number: usize, last: bool) {
        let (b, held) = (self.buffers, self.held);
        let params = vec![
            moment,
            number as u32,
            u32::from(last),
            self.flow.active(),
            self.flow.steps(number) as u32,
            self.depths(number),
            self.shape.context as u32,
        ];
        let buffers = [&held.rule, &b.places, &b.statistics, &b.memory, &held.depths, &b.readout];
        self.op(Kernel::Decide, params, &buffers, Grid::One);
    }

    /// The stream that the states of all rows make on their way out of a loop.
    fn leave_loop(&mut self, looped: &Looped, over: Over) {
        let (b, s) = (self.buffers, self.model.config().state_width);
        let norm = looped.readout_norm.as_ref();
        match &looped.readout {
            None => self.norm(norm, (&b.latent, 0), (&b.x, 0), s, over, 0),
            Some(readout) => {
                self.norm(norm, (&b.latent, 0), (&b.h, 0), s, over, 0);
                self.ready(&b.h, s, over, &[readout]);
                self.project(readout, &b.h, &b.x, over, self.few, Then::default());
            }
        }
    }

    /// What follows the last loop.
    fn coda(&mut self, segments: &[Segment], over: Over) {
        for segment in segments {
            if let Segment::Once(blocks) = segment {
                blocks.clone().for_each(|b| self.block(b, over, None));
            }
        }
    }

    /// Norm and head of some rows.
    fn head(&mut self, over: Over, few: Option<u32>) {
        let (b, model) = (self.buffers, self.model);
        let width = model.config().width;
        let list = self.list(over);
        self.norm(model.output_norm(), (&b.x, list), (&b.h, 0), width, over, 0);
        self.ready(&b.h, width, over, &[model.head()]);
        self.project(model.head(), &b.h, &b.logits, over, few, Then::default());
    }

    /// The statistic of a read-out: the first that is checked, or one that has a predecessor.
    fn measure(&mut self, first: bool) {
        let b = self.buffers;
        let params = vec![self.model.config().vocab as u32, u32::from(first)];
        self.op(Kernel::Readout, params, &[&self.held.rule, &b.logits, &b.previous, &b.readout], Grid::One);
    }
}

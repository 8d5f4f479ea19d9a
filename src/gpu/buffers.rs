//! What a session has on a device besides weights: its scratch, and where things are in it.

use super::Gpu;
use super::weights::Weights;
use crate::kernels::KvType;
use crate::model::{Block, Injection, Model, PostNorm, Start, ValueEmbedding};

/// Where things are in the buffer `flow` (see flow.wgsl), for so many rows per chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    pub(super) rows: usize,
    pub(super) loops: usize,
}

impl Flow {
    pub(super) const ALL: usize = 0;
    pub(super) const ACTIVE: usize = 1;
    pub(super) const READ: usize = 2;
    pub(super) const WANTED: usize = 4;
    pub(super) const BAD_ROW: usize = 5;
    pub(super) const BAD_STEP: usize = 6;
    const HEADER: usize = 16;
    /// Rows whose logits are computed together, at most.
    pub(super) const MOST_WANTED: usize = 64;

    /// Rows in the loop.
    pub(super) fn active(self) -> u32 {
        Self::HEADER as u32
    }

    /// Rows whose logits are wanted.
    pub(super) fn wanted(self) -> usize {
        Self::HEADER + self.rows
    }

    /// Steps of a loop, per row.
    pub(super) fn steps(self, number: usize) -> usize {
        self.wanted() + Self::MOST_WANTED + number * self.rows
    }

    pub(super) fn words(self) -> usize {
        self.steps(self.loops)
    }
}

/// A row of so many values as kernels want it: whole pieces.
pub(super) fn stride(width: usize) -> usize {
    width.next_multiple_of(32)
}

/// Bytes of a key or value row on the device.
pub(super) fn kv_row_bytes(ty: KvType, head_dim: usize) -> usize {
    let units = head_dim.div_ceil(4);
    4 * match ty {
        KvType::F32 => 4 * units,
        KvType::F16 => 2 * units,
        KvType::Q8_0 => units + units / 8,
    }
}

/// What a session has on the device besides weights.
pub(super) struct Buffers {
    pub(super) flow: wgpu::Buffer,
    pub(super) places: wgpu::Buffer,
    pub(super) angles: wgpu::Buffer,
    pub(super) sent: wgpu::Buffer,
    pub(super) tables: wgpu::Buffer,
    pub(super) x: wgpu::Buffer,
    pub(super) h: wgpu::Buffer,
    pub(super) h_words: wgpu::Buffer,
    pub(super) h_scales: wgpu::Buffer,
    pub(super) q: wgpu::Buffer,
    pub(super) k: wgpu::Buffer,
    pub(super) v: wgpu::Buffer,
    pub(super) gates: wgpu::Buffer,
    pub(super) attended: wgpu::Buffer,
    pub(super) hidden: wgpu::Buffer,
    pub(super) hidden_gate: wgpu::Buffer,
    pub(super) branch: wgpu::Buffer,
    pub(super) entered: wgpu::Buffer,
    pub(super) input: wgpu::Buffer,
    pub(super) latent: wgpu::Buffer,
    pub(super) delta: wgpu::Buffer,
    pub(super) inner: wgpu::Buffer,
    pub(super) statistics: wgpu::Buffer,
    pub(super) memory: wgpu::Buffer,
    pub(super) logits: wgpu::Buffer,
    pub(super) previous: wgpu::Buffer,
    pub(super) readout: wgpu::Buffer,
}

/// What does not change when chunks grow.
pub(super) struct Held {
    /// Per block.
    pub(super) keys: Vec<wgpu::Buffer>,
    pub(super) values: Vec<wgpu::Buffer>,
    /// `[loops][sequences][context]`.
    pub(super) depths: wgpu::Buffer,
    pub(super) rule: wgpu::Buffer,
}

/// Blocks with values by token id, in order; a chunk's rows of their tables go to the device one block after the other.
pub(super) fn value_embeddings(model: &Model) -> impl Iterator<Item = (usize, &ValueEmbedding)> {
    model.blocks().iter().enumerate().filter_map(|(b, block)| Some((b, block.value_embedding.as_ref()?)))
}

/// Stride of a row of value embeddings: the widest there is.
pub(super) fn table_stride(model: &Model) -> usize {
    value_embeddings(model).map(|(_, e)| e.table.cols).max().unwrap_or(0)
}

/// Rows whose logits fit the device together.
pub(super) fn logit_rows(weights: &Weights, model: &Model) -> usize {
    let most = weights.gpu.info().max_binding_bytes / (4 * model.config().vocab as u64).max(1);
    usize::try_from(most).unwrap_or(usize::MAX).clamp(1, Flow::MOST_WANTED)
}

/// The widest rows of a model's scratch on the device.
struct Widths {
    width: usize,
    heads: usize,
    kv: usize,
    hidden: usize,
}

impl Widths {
    fn of(model: &Model) -> Self {
        let (config, blocks) = (model.config(), model.blocks());
        let widest = |f: &dyn Fn(&Block) -> usize| blocks.iter().map(f).max().unwrap_or(0);
        Self {
            width: stride(widest(&Block::width).max(config.width).max(config.state_width)),
            heads: stride(widest(&|b| b.heads * config.head_dim)),
            kv: stride(widest(&|b| b.kv_heads * config.head_dim)),
            hidden: stride(widest(&|b| b.mlp.up.weight.rows)),
        }
    }

    fn widest(&self) -> usize {
        self.width.max(self.heads).max(self.kv).max(self.hidden)
    }
}

/// Rows of a chunk whose scratch fits the device's bindings.
pub(super) fn most_rows(weights: &Weights, model: &Model) -> usize {
    let tables = value_embeddings(model).count() * table_stride(model);
    let row = 4 * Widths::of(model).widest().max(tables) as u64;
    usize::try_from(weights.gpu.info().max_binding_bytes / row.max(1)).unwrap_or(usize::MAX) / 64 * 64
}

impl Buffers {
    /// For chunks of up to `flow.rows` rows.
    pub(super) fn new(weights: &Weights, model: &Model, flow: Flow) -> Result<Self, String> {
        let (config, blocks, n) = (model.config(), model.blocks(), flow.rows);
        let widths = Widths::of(model);
        let Widths { width, heads, kv, hidden } = widths;
        let gated = blocks.iter().any(|b| b.attn_gate.is_some());
        let mlp_gated = blocks.iter().any(|b| b.mlp.gate.is_some());
        let branch =
            blocks.iter().any(|b| [&b.post_attn, &b.post_ffn].iter().any(|p| matches!(p, PostNorm::Branch(_))));
        let inner = model.plan().loops().any(|l| matches!(l.injection, Injection::Inner { .. }));
        let noise = model.plan().loops().any(|l| l.start == Start::Initial);
        let (d, s) = (stride(config.width), stride(config.state_width));
        let widest = widths.widest();
        if n > most_rows(weights, model) {
            return Err(format!("{n} rows at once are more than its kernels see of one buffer (-b)"));
        }
        let buffer = |label: &'static str, words: usize| {
            let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
            weights.gpu.buffer(label, 4 * words as u64, usage)
        };
        let only = |there: bool, words: usize| if there { words } else { 0 };
        let buffers = Self {
            flow: buffer("flow", flow.words())?,
            places: buffer("places", 4 * n)?,
            angles: buffer("angles", n * config.head_dim)?,
            sent: buffer("sent", only(noise, n * s))?,
            tables: buffer("tables", value_embeddings(model).count() * n * table_stride(model))?,
            x: buffer("x", n * width)?,
            h: buffer("h", n * width)?,
            h_words: buffer("h_words", n * widest / 4)?,
            h_scales: buffer("h_scales", n * widest / 16)?,
            q: buffer("q", n * heads)?,
            k: buffer("k", n * kv)?,
            v: buffer("v", n * kv)?,
            gates: buffer("gates", only(gated, n * heads))?,
            attended: buffer("attended", n * heads)?,
            hidden: buffer("hidden", n * hidden)?,
            hidden_gate: buffer("hidden_gate", only(mlp_gated, n * hidden))?,
            branch: buffer("branch", only(branch, n * width))?,
            entered: buffer("entered", n * d)?,
            input: buffer("input", n * s)?,
            latent: buffer("latent", n * s)?,
            delta: buffer("delta", n * s)?,
            inner: buffer("inner", only(inner, n * s))?,
            statistics: buffer("statistics", 8 * n)?,
            memory: buffer("memory", 4 * n)?,
            logits: buffer("logits", n.min(logit_rows(weights, model)) * config.vocab)?,
            previous: buffer("previous", config.vocab)?,
            readout: buffer("readout", 8)?,
        };
        Ok(buffers)
    }

    /// Zeros for everything that rows are read from.
    pub(super) fn clear(&self, gpu: &Gpu) {
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for buffer in
            [&self.x, &self.h, &self.q, &self.k, &self.v, &self.attended, &self.hidden, &self.branch, &self.entered]
        {
            encoder.clear_buffer(buffer, 0, None);
        }
        gpu.queue.submit([encoder.finish()]);
    }
}

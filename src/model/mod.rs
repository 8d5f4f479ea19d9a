//! The looped forward pass: [`Model`] (immutable, mapped weights) and [`Session`] (everything that changes).
//!
//! A token's way: embedding → prelude (once) → [inject → core blocks → policy]* → coda → norm → head → logits. How deep it goes
//! is the caller's: after every loop step of every row a [`DepthPolicy`] says stay or leave. That is the usual shape; what a model
//! really does is its [`LoopPlan`], data that a family's file in [`crate::arch`] writes down: segments run once or looped, stacks run
//! several times within a step, injections, norms. The forward pass knows these, and no family.
//!
//! # Bits
//! A row's result is a function of its tokens, its initial state and its depth alone: not of the number of threads, the way a
//! prompt is cut into chunks, or the rows that run with it. This holds while every loop step has its own KV slot
//! ([`KvShape::slots`]); with fewer, a position that has left the loop shows later rows its last value for the slot, while
//! positions that run together show the current one, and the cut into chunks becomes visible. Tokens that see each other in both
//! directions ([`Batch::both_ways`]) are one chunk and depend on each other, as they are meant to.

mod block;
mod device;
mod error;
mod flight;
mod forward;
mod init;
mod inputs;
mod kv;
mod layers;
mod plan;
mod policy;
mod repack;
mod scratch;
mod session;
mod vector;
mod waypoints;

pub use block::{Activation, Block, Linear, Matrix, Mlp, Norm, PostNorm, Rope, RopeStyle, ValueEmbedding};
pub use device::{Device, DeviceError, DeviceOutput, DevicePass, DeviceRule, DeviceSession, DeviceStatistic};
pub use error::Error;
pub use flight::{InFlight, Read};
pub use init::InitialState;
pub use inputs::InputSquares;
pub use kv::{KvLayout, KvShape};
pub use plan::{Config, Depth, ExitGate, Injection, LoopPlan, Looped, Rates, Segment, StackPass, Start};
pub use policy::{DepthPolicy, FixedDepth, LatentStats, Verdict};
pub use repack::{Repack, Repacked, cache_folder};
pub use session::{Batch, ClearOnDrop, Logits, Output, Row, Session, SessionOptions};
pub use vector::Vector;
pub use waypoints::{Passage, Visited, WaypointOptions, Waypoints};

use crate::files::Bytes;
use crate::gguf::{Header, Metadata, TensorType};
use crate::kernels::Kernels;
use crate::quant;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// Immutable weights in place, with everything that is known about them. Serves any number of sessions.
pub struct Model {
    header: Header,
    kernels: &'static Kernels,
    parts: Parts,
    kv: KvLayout,
    device: Option<Arc<dyn Device>>,
}

/// What a family's file in `arch` makes of a GGUF.
pub struct Parts {
    /// Sizes and constants.
    pub config: Config,
    /// The way through the blocks.
    pub plan: LoopPlan,
    /// Physical blocks, in the order of the file.
    pub blocks: Vec<Block>,
    /// Rotary position embedding, if the model has one.
    pub rope: Option<Rope>,
    /// `[positions, D]`: learned position embeddings, if the model has them.
    pub positions: Option<Matrix>,
    /// `[V, D]`.
    pub token_embedding: Matrix,
    /// `[V, D]`; the token embedding itself where the head is tied.
    pub head: Matrix,
    /// Norm before the head, unless the loop ends with it.
    pub output_norm: Option<Norm>,
}

impl Model {
    /// Puts a model together from a file and what its family made of it. Use [`crate::arch::open`].
    ///
    /// # Errors
    /// Sizes that do not fit together.
    pub(crate) fn new(header: Header, kernels: &'static Kernels, parts: Parts) -> Result<Self, Error> {
        let Config { width, state_width, head_dim, ref loops, ref architecture, .. } = parts.config;
        let key = |name: &str, found: usize, expected: &str| Error::Key {
            key: format!("{architecture}.{name}"),
            found: found.to_string(),
            expected: expected.into(),
        };
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(key("attention.key_length", head_dim, "an even head size"));
        }
        debug_assert_eq!(loops.len(), parts.plan.loops().count());
        let same_width = |l: &Looped| l.start == Start::Initial && l.readout.is_some();
        if width != state_width && !parts.plan.loops().all(same_width) {
            return Err(key("loop.state_length", state_width, "the embedding length"));
        }
        let kv = KvLayout::of(&parts.plan, &parts.blocks, head_dim);
        Ok(Self { header, kernels, parts, kv, device: None })
    }

    /// Sizes and constants.
    pub fn config(&self) -> &Config {
        &self.parts.config
    }

    /// The way through the blocks.
    pub fn plan(&self) -> &LoopPlan {
        &self.parts.plan
    }

    /// Physical blocks, in the order of the file.
    pub fn blocks(&self) -> &[Block] {
        &self.parts.blocks
    }

    /// The file's metadata, with its tokenizer.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// The file's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The kernels in use.
    pub fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    /// Lets sessions run on a device that has taken this model's weights, unless they are asked not to
    /// ([`SessionOptions::on_device`]).
    pub fn place_on(&mut self, device: Arc<dyn Device>) {
        self.device = Some(device);
    }

    /// The device that has its weights.
    pub fn device(&self) -> Option<&Arc<dyn Device>> {
        self.device.as_ref()
    }

    /// What a KV cache keeps of it.
    pub fn kv_layout(&self) -> &KvLayout {
        &self.kv
    }

    /// Every matrix that is multiplied, roughly in the order in which a token meets them; those that are only read row by row are
    /// not among them.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let injected = self.plan().loops().flat_map(|l| match &l.injection {
            Injection::Linear { state, input } => vec![&input.weight, state],
            Injection::Diagonal { input, .. } => vec![input],
            Injection::None | Injection::Inner { .. } => vec![],
        });
        let readouts = self.plan().loops().filter_map(|l| l.readout.as_ref());
        injected.chain(self.blocks().iter().flat_map(Block::matrices)).chain(readouts).chain([self.head()])
    }

    /// Bytes of the matrices that one step of every loop reads.
    pub fn step_bytes(&self) -> u64 {
        let of_block = |b: usize| self.parts.blocks[b].matrices().map(Matrix::bytes).sum::<u64>();
        let of_loop = |l: &Looped| {
            let injection = if let Injection::Linear { state, .. } = &l.injection { state.bytes() } else { 0 };
            let blocks = l.passes.iter().flat_map(|p| p.blocks.clone());
            injection + blocks.map(of_block).sum::<u64>()
        };
        self.parts.plan.loops().map(of_loop).sum()
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.header.tensors.iter().map(|t| t.bytes as u64).sum()
    }

    /// `[V, D]`.
    pub fn head(&self) -> &Matrix {
        &self.parts.head
    }

    pub(crate) fn output_norm(&self) -> Option<&Norm> {
        self.parts.output_norm.as_ref()
    }

    pub(crate) fn rope(&self) -> Option<&Rope> {
        self.parts.rope.as_ref()
    }

    /// `[positions, D]`: learned position embeddings.
    pub(crate) fn positions(&self) -> Option<&Matrix> {
        self.parts.positions.as_ref()
    }

    /// A row of a table, `[cols]`.
    pub(crate) fn table_row(&self, m: &Matrix, row: usize, out: &mut [f32]) {
        self.table_part(m, row, 0..m.cols, out);
    }

    /// Some columns of a row of a table. `out` takes the blocks that they lie in, so it is `[cols]` to be safe.
    pub(crate) fn table_part<'o>(
        &self,
        m: &Matrix,
        row: usize,
        columns: Range<usize>,
        out: &'o mut [f32],
    ) -> &'o [f32] {
        let (len, bytes) = (m.ty.block_len(), m.ty.block_bytes());
        let blocks = columns.start / len..columns.end.div_ceil(len);
        let out = &mut out[..blocks.len() * len];
        if let Some(format) = quant::format(m.ty) {
            format.dequantize(&m.stored(row..row + 1)[blocks.start * bytes..blocks.end * bytes], out);
        }
        let skipped = columns.start - blocks.start * len;
        &out[skipped..skipped + columns.len()]
    }

    /// A token's scaled embedding, `[D]`.
    pub(crate) fn embedding(&self, token: u32, out: &mut [f32]) {
        self.table_row(&self.parts.token_embedding, token as usize, out);
        for x in out {
            *x *= self.parts.config.embedding_scale;
        }
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("config", self.config()).finish_non_exhaustive()
    }
}

/// Takes the tensors of a file one by one, checks their shapes, and notices what is left over.
pub(crate) struct Tensors<'a> {
    bytes: &'a Bytes,
    header: &'a Header,
    kernels: &'static Kernels,
    replaced: &'a Replaced,
    taken: HashSet<&'a str>,
}

/// Matrices that are not taken from the model's file: by name, the type and the bytes that stand in for the file's.
pub type Replaced = HashMap<String, (TensorType, Bytes)>;

impl<'a> Tensors<'a> {
    pub(crate) fn new(bytes: &'a Bytes, header: &'a Header, kernels: &'static Kernels, replaced: &'a Replaced) -> Self {
        Self { bytes, header, kernels, replaced, taken: HashSet::new() }
    }

    /// Whether the file has a tensor, for formats in which presence decides.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.header.tensor(name).is_some()
    }

    /// A matrix of `rows` rows of `cols` values.
    pub(crate) fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix, Error> {
        let info = self.header.tensor(name).ok_or_else(|| Error::MissingTensor(name.to_owned()))?;
        if info.dims != [cols, rows] {
            return Err(Error::Shape { name: name.to_owned(), found: info.dims.clone(), expected: vec![cols, rows] });
        }
        self.taken.insert(&info.name);
        let (ty, bytes, data) = match self.replaced.get(name) {
            None => (info.ty, self.bytes, info.offset..info.offset + info.bytes),
            Some((ty, bytes)) => {
                let expected = ty.row_bytes(cols).and_then(|n| n.checked_mul(rows));
                if expected != Some(bytes.len()) {
                    let (name, found) = (name.to_owned(), bytes.len());
                    return Err(Error::Replacement { name, ty: *ty, found, expected: expected.unwrap_or(0) });
                }
                (*ty, bytes, 0..bytes.len())
            }
        };
        let multiply = self.kernels.matmul(ty).map_err(|source| Error::MatrixType { name: name.to_owned(), source })?;
        Ok(Matrix {
            name: name.into(),
            ty,
            rows,
            cols,
            row_bytes: data.len() / rows,
            bytes: bytes.clone(),
            data,
            multiply,
            panels: None,
        })
    }

    /// A vector of `len` values.
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<Vector, Error> {
        let info = self.header.tensor(name).ok_or_else(|| Error::MissingTensor(name.to_owned()))?;
        if info.dims != [len] {
            return Err(Error::Shape { name: name.to_owned(), found: info.dims.clone(), expected: vec![len] });
        }
        let wrong = || Error::VectorType { name: name.to_owned(), found: info.ty };
        if !matches!(info.ty, TensorType::F32 | TensorType::F16 | TensorType::BF16) {
            return Err(wrong());
        }
        self.taken.insert(&info.name);
        let format = quant::format(info.ty).ok_or_else(wrong)?;
        Ok(Vector::new(self.bytes.clone(), info.offset..info.offset + info.bytes, len, format))
    }

    /// A vector that only some models have. Where it is there unannounced, [`Tensors::finish`] refuses the file.
    pub(crate) fn vector_if(&mut self, there: bool, name: &str, len: usize) -> Result<Option<Vector>, Error> {
        there.then(|| self.vector(name, len)).transpose()
    }

    /// Refuses a file with tensors that nobody took.
    pub(crate) fn finish(self) -> Result<(), Error> {
        match self.header.tensors.iter().find(|t| !self.taken.contains(t.name.as_str())) {
            Some(t) => Err(Error::UnknownTensor(t.name.clone())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::{self, Load};
    use std::path::Path;

    /// Any columns of a table of blocks are those of the whole row, however they lie to the blocks.
    #[test]
    fn part_of_a_row_is_that_part() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-hops-q4_0.gguf");
        let model = arch::open(&path, Load::Map).unwrap();
        let table = model.parts.token_embedding.clone();
        assert_eq!((table.ty.block_len(), table.cols), (32, 128));
        let mut whole = vec![0.0; table.cols];
        model.table_row(&table, 5, &mut whole);
        assert!(whole.iter().any(|&x| x != 0.0));
        for columns in [0..128, 0..32, 32..64, 96..128, 40..50, 31..33, 0..1, 127..128] {
            let mut out = vec![f32::NAN; table.cols];
            assert_eq!(model.table_part(&table, 5, columns.clone(), &mut out), &whole[columns]);
        }
    }
}

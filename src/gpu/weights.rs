//! A model's weights on a device.

use super::buffers::kv_row_bytes;
use super::layout::Layout;
use super::session::GpuSession;
use super::{Error, Gpu};
use crate::gguf::TensorType;
use crate::kernels::KvType;
use crate::model::{Device, DeviceSession, KvShape, Matrix, Model};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that are read, sorted and handed to the driver at a time. Some three times this is all the host memory that the way to the
/// device takes.
const PORTION: usize = 8 << 20;
/// Weight rows of a dispatch: 65535 workgroups along a side are what every device allows, and each has four rows or more.
const MOST_ROWS: usize = 4 * 65535;
/// Largest head that attention has threads for.
pub(super) const MOST_HEAD: usize = 256;
/// Most looped segments that the rule's settings have room for.
pub(super) const MOST_LOOPS: usize = 64;

/// A matrix on the device: in as many parts as its limits ask for.
pub(super) struct Stored {
    pub(super) ty: TensorType,
    pub(super) rows: usize,
    cols: usize,
    pub(super) pieces: usize,
    pub(super) parts: Vec<Part>,
}

/// Some rows of a matrix.
pub(super) struct Part {
    pub(super) rows: Range<usize>,
    pub(super) buffer: wgpu::Buffer,
    /// Word at which the heads begin.
    pub(super) heads: usize,
}

/// A model's weights on a GPU.
pub(super) struct Weights {
    pub(super) gpu: Arc<Gpu>,
    matrices: Arc<HashMap<Arc<str>, Stored>>,
}

impl Weights {
    pub(super) fn load(gpu: &Arc<Gpu>, model: &Model, progress: &mut dyn FnMut(u64, u64)) -> Result<Self, Error> {
        let fail = |why: String| Error::Load { name: gpu.info().name.clone(), why };
        let head_dim = model.config().head_dim;
        if head_dim > MOST_HEAD {
            return Err(fail(format!("its heads have {head_dim} values, and there are kernels for up to {MOST_HEAD}")));
        }
        if model.config().loops.len() > MOST_LOOPS {
            return Err(fail(format!("it has more than {MOST_LOOPS} loops")));
        }
        let mut wanted: Vec<&Matrix> = Vec::new();
        for m in model.matrices() {
            if !wanted.iter().any(|w| w.name == m.name) {
                wanted.push(m);
            }
        }
        let total: u64 = wanted.iter().map(|m| m.bytes()).sum();
        let (mut done, mut matrices) = (0, HashMap::new());
        for m in wanted {
            let stored = store(gpu, m, &mut |bytes| {
                done += bytes;
                progress(done, total);
            });
            matrices.insert(Arc::clone(&m.name), stored.map_err(fail)?);
        }
        Ok(Self { gpu: Arc::clone(gpu), matrices: Arc::new(matrices) })
    }

    /// A matrix of the model that was loaded.
    pub(super) fn get(&self, m: &Matrix) -> Result<&Stored, String> {
        let same = |s: &&Stored| (s.ty, s.rows, s.cols) == (m.ty, m.rows, m.cols);
        let stored = self.matrices.get(&m.name).filter(same);
        stored.ok_or_else(|| format!("tensor '{}' of this model was not put there", m.name))
    }

    fn share(&self) -> Self {
        Self { gpu: Arc::clone(&self.gpu), matrices: Arc::clone(&self.matrices) }
    }
}

/// Puts a matrix on the device, part by part and portion by portion: it is never whole in the host's memory.
fn store(gpu: &Gpu, m: &Matrix, progress: &mut dyn FnMut(u64)) -> Result<Stored, String> {
    let layout = Layout::of(m.ty);
    let row_bytes = |rows: usize| {
        let (bodies, heads) = layout.words(rows, m.cols);
        4 * (bodies + heads) as u64
    };
    let per_row = row_bytes(1);
    // Even numbers of rows, so that no word of heads belongs to two parts or portions.
    let most = usize::try_from(gpu.info().max_binding_bytes / per_row).unwrap_or(usize::MAX).min(MOST_ROWS);
    let most = if most > 1 { most / 2 * 2 } else { most };
    if most == 0 {
        return Err(format!(
            "a row of '{}' takes {per_row} bytes, and its kernels see {} at once",
            m.name,
            gpu.info().max_binding_bytes
        ));
    }
    let portion = (PORTION / (m.cols * 4).max(1)).max(2) / 2 * 2;
    let (mut stored, mut bodies, mut heads) = (Vec::new(), Vec::new(), Vec::new());
    let mut parts = Vec::new();
    for start in (0..m.rows).step_by(most) {
        let rows = start..(start + most).min(m.rows);
        let (body_words, _) = layout.words(rows.len(), m.cols);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let buffer = gpu.buffer(&m.name, row_bytes(rows.len()), usage)?;
        let (mut body_at, mut head_at) = (0, 4 * body_words as u64);
        for from in rows.clone().step_by(portion) {
            let some = from..(from + portion).min(rows.end);
            m.read_rows(some, &mut stored).map_err(|e| e.to_string())?;
            layout.sort(&stored, m.cols, &mut bodies, &mut heads);
            for (words, at) in [(&bodies, &mut body_at), (&heads, &mut head_at)] {
                gpu.queue.write_buffer(&buffer, *at, bytemuck::cast_slice(words));
                *at += 4 * words.len() as u64;
            }
            // What was written waits in host memory until it is submitted and done.
            gpu.queue.submit([]);
            gpu.wait()?;
            progress(stored.len() as u64);
        }
        parts.push(Part { rows, buffer, heads: body_words });
    }
    Ok(Stored { ty: m.ty, rows: m.rows, cols: m.cols, pieces: layout.pieces(m.cols), parts })
}

impl Device for Weights {
    fn name(&self) -> &str {
        &self.gpu.info().name
    }

    fn most_kv(&self, ty: KvType, head_dim: usize) -> u64 {
        let rows = self.gpu.info().max_binding_bytes / kv_row_bytes(ty, head_dim) as u64;
        rows * ty.row_bytes(head_dim).unwrap_or(0) as u64
    }

    fn session(&self, model: &Model, shape: &KvShape) -> Result<Box<dyn DeviceSession>, String> {
        Ok(Box::new(GpuSession::new(self.share(), model, shape)?))
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights").field("gpu", &self.gpu).field("matrices", &self.matrices.len()).finish()
    }
}

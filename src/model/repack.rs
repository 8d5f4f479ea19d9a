//! Weights in panels, beside the file: made at load, or kept in a cache file.

use super::{Error, Injection, Matrix, Model, Segment};
use crate::files::{self, AtomicFile, Bytes};
use crate::hash::Fnv;
use crate::kernels::{PANEL_ALIGN, PanelLayout, PanelMatMul};
use rayon::prelude::*;
use std::collections::HashMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Whether and where block-quantised weights are kept interleaved ([panels](crate::kernels::PanelLayout)) for the kernels. It
/// changes speed and memory, and no result.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Repack {
    /// Interleaved in memory, unless that would take more than half of what the system says is available.
    #[default]
    Auto,
    /// As they are in the file.
    Off,
    /// In a file in this folder, made when it is first needed, and mapped: loading is a map again, and the pages are shared
    /// between processes and can be dropped by the system.
    Cache(PathBuf),
}

/// What [`Model::repack`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repacked {
    /// The file's own bytes are multiplied.
    No {
        /// Why, if not because it was asked for.
        reason: Option<String>,
    },
    /// Interleaved in memory.
    InMemory {
        /// How much of it.
        bytes: u64,
        /// How long it took.
        time: Duration,
    },
    /// Interleaved in a mapped file.
    InFile {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// How long it took to write it; `None`: it was there.
        time: Option<Duration>,
    },
}

/// A matrix in panels.
#[derive(Clone)]
pub(super) struct Panels {
    layout: PanelLayout,
    multiply: PanelMatMul,
    bytes: Bytes,
    at: Range<usize>,
}

impl Panels {
    /// `out[c * rows + r]` = weight row `rows.start + r` · activation row `c`.
    pub(super) fn product(&self, rows: &Range<usize>, acts: crate::kernels::Acts<'_>, out: &mut [f32]) {
        let (panels, skip) = self.layout.cover(rows);
        let size = self.layout.panel_bytes();
        let panels = &self.bytes[self.at.clone()][panels.start * size..panels.end * size];
        (self.multiply)(panels, skip, rows.len(), acts, out);
    }
}

/// Where a matrix goes.
struct Place {
    layout: PanelLayout,
    multiply: PanelMatMul,
    at: Range<usize>,
}

/// Bytes before the panels in a cache file; a multiple of all page sizes in use.
const HEADER: usize = 1 << 16;
const MAGIC: &[u8; 8] = b"rdtpanel";
/// Of the layout of panels and of this file.
const VERSION: u64 = 1;

impl Model {
    /// Puts the block-quantised matrices into panels, as `how` says. Matrices that stay as they are (f32, f16, bf16) are not
    /// counted.
    ///
    /// # Errors
    /// With [`Repack::Cache`]: the cache file cannot be written or mapped. With [`Repack::Auto`], memory that the system promised
    /// and does not give.
    pub fn repack(&mut self, how: &Repack) -> Result<Repacked, Error> {
        if *how == Repack::Off {
            return Ok(Repacked::No { reason: None });
        }
        let (places, total) = self.places()?;
        if places.is_empty() {
            return Ok(Repacked::No { reason: Some("no matrix is of a block format".into()) });
        }
        let begin = Instant::now();
        let (bytes, done) = match how {
            Repack::Cache(folder) => {
                let print = self.panels_fingerprint(&places);
                let path = folder.join(format!("{print:016x}.panels"));
                let there = open_cache(&path, print, total)?;
                let (bytes, time) = match there {
                    Some(bytes) => (bytes, None),
                    None => {
                        let made = self.packed(&places, total)?;
                        write_cache(&path, print, &made)?;
                        let gone = || Error::Option(format!("{} was changed while it was written", path.display()));
                        (open_cache(&path, print, total)?.ok_or_else(gone)?, Some(begin.elapsed()))
                    }
                };
                let size = bytes.len() as u64;
                (bytes, Repacked::InFile { path, bytes: size, time })
            }
            _ => {
                if let Some(available) = files::available_memory()
                    && total as u64 > available / 2
                {
                    let mib = |n: u64| n.div_ceil(1 << 20);
                    let (need, have) = (mib(total as u64), mib(available));
                    let reason = format!("interleaved weights would take {need} MiB of the {have} MiB of free memory");
                    return Ok(Repacked::No { reason: Some(reason) });
                }
                let bytes = self.packed(&places, total)?;
                let time = begin.elapsed();
                (bytes, Repacked::InMemory { bytes: total as u64, time })
            }
        };
        let skip = bytes.len() - total;
        self.for_each_matrix(&mut |m| {
            if let Some(Place { layout, multiply, at }) = places.get(&m.name) {
                let at = skip + at.start..skip + at.end;
                m.panels = Some(Panels { layout: *layout, multiply: *multiply, bytes: bytes.clone(), at });
                // Rows of a table are still read from the file, and come back when they are.
                m.bytes.forget(m.data.clone());
            }
        });
        Ok(done)
    }

    /// Bytes of the panels in use.
    pub fn panel_bytes(&self) -> u64 {
        let mut seen = HashMap::new();
        for m in self.matrices() {
            if let Some(panels) = &m.panels {
                seen.insert(&m.name, panels.at.len() as u64);
            }
        }
        seen.values().sum()
    }

    /// Where every matrix of a block format goes, by name, and how much that is.
    fn places(&self) -> Result<(HashMap<Arc<str>, Place>, usize), Error> {
        let too_large = || Error::Option("interleaved weights would be larger than memory can be".into());
        let (mut places, mut end) = (HashMap::new(), 0usize);
        for m in self.matrices() {
            let Some((layout, multiply)) = self.kernels.panel(m.ty, m.cols) else { continue };
            if places.contains_key(&m.name) {
                continue;
            }
            let start = end.next_multiple_of(PANEL_ALIGN);
            end = layout.bytes(m.rows).and_then(|n| start.checked_add(n)).ok_or_else(too_large)?;
            places.insert(Arc::clone(&m.name), Place { layout, multiply, at: start..end });
        }
        Ok((places, end))
    }

    /// All panels, in memory of their own.
    fn packed(&self, places: &HashMap<Arc<str>, Place>, total: usize) -> Result<Bytes, Error> {
        let pack = |memory: &mut [u8]| {
            let mut done = std::collections::HashSet::new();
            for m in self.matrices() {
                let Some(Place { layout, at, .. }) = places.get(&m.name) else { continue };
                if !done.insert(&m.name) {
                    continue;
                }
                memory[at.clone()].par_chunks_exact_mut(layout.panel_bytes()).enumerate().for_each(|(i, panel)| {
                    let rows = i * layout.panel_rows..((i + 1) * layout.panel_rows).min(m.rows);
                    layout.pack(m.stored(rows), panel);
                });
            }
        };
        Bytes::filled(total, pack).map_err(|source| Error::Cache { source: Box::new(source) })
    }

    /// What the panels are made of, as a number.
    fn panels_fingerprint(&self, places: &HashMap<Arc<str>, Place>) -> u64 {
        let mut hash = Fnv::new();
        hash.add(&VERSION.to_le_bytes());
        hash.add(&self.fingerprint().to_le_bytes());
        for place in self.matrices().filter_map(|m| places.get(&m.name)) {
            hash.add_numbers([place.layout.panel_rows, place.at.start]);
        }
        hash.number()
    }

    /// A number that tells this model from others: names, types and shapes of its tensors, samples of its matrices' bytes, and its family's
    /// keys. Other metadata and how the weights lie in memory do not count.
    pub fn fingerprint(&self) -> u64 {
        const SAMPLES: usize = 256;
        const SAMPLE: usize = 64;
        let mut hash = Fnv::new();
        for info in &self.header().tensors {
            hash.add(info.name.as_bytes());
            hash.add_numbers(std::iter::once(info.ty as usize).chain(info.dims.iter().copied()));
        }
        let family = format!("{}.", self.config().architecture);
        for (key, value) in self.metadata().iter().filter(|(key, _)| key.starts_with(&family)) {
            hash.add(format!("{key} = {value:?}").as_bytes());
        }
        for m in self.matrices() {
            hash.add(m.name.as_bytes());
            let stored = m.stored(0..m.rows);
            for i in 0..SAMPLES {
                let at = (stored.len().saturating_sub(SAMPLE) as u128 * i as u128 / (SAMPLES - 1) as u128) as usize;
                hash.add(&stored[at..(at + SAMPLE).min(stored.len())]);
            }
        }
        hash.number()
    }

    fn for_each_matrix(&mut self, f: &mut dyn FnMut(&mut Matrix)) {
        for segment in &mut self.parts.plan.segments {
            let Segment::Looped(looped) = segment else { continue };
            match &mut looped.injection {
                Injection::Linear { state, input } => {
                    f(state);
                    f(&mut input.weight);
                }
                Injection::Diagonal { input, .. } => f(input),
                Injection::None | Injection::Inner { .. } => {}
            }
            if let Some(readout) = &mut looped.readout {
                f(readout);
            }
        }
        for block in &mut self.parts.blocks {
            for linear in [&mut block.q, &mut block.k, &mut block.v, &mut block.attn_output, &mut block.mlp.up] {
                f(&mut linear.weight);
            }
            f(&mut block.mlp.down.weight);
            if let Some(gate) = &mut block.mlp.gate {
                f(&mut gate.weight);
            }
            if let Some(gate) = &mut block.attn_gate {
                f(gate);
            }
        }
        f(&mut self.parts.head);
    }
}

/// The header of a cache file of `total` bytes of panels.
fn header(print: u64, total: usize) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    for n in [VERSION, print, total as u64] {
        header.extend(n.to_le_bytes());
    }
    header.resize(HEADER, 0);
    header
}

/// Maps a cache file; `None` if it is not there or not the right one.
fn open_cache(path: &Path, print: u64, total: usize) -> Result<Option<Bytes>, Error> {
    if !path.exists() {
        return Ok(None);
    }
    // SAFETY: the documented contract of a cache folder: its files are replaced by a rename, never changed. The kernels check
    // lengths against the mapping, so what a file holds can only change results.
    let bytes = unsafe { Bytes::map(path) }.map_err(|source| Error::Cache { source: Box::new(source) })?;
    let right = bytes.len() == HEADER + total && bytes[..HEADER] == header(print, total);
    Ok(right.then_some(bytes))
}

fn write_cache(path: &Path, print: u64, panels: &Bytes) -> Result<(), Error> {
    let failed = |source: files::Error| Error::Cache { source: Box::new(source) };
    let write_failed = |source| failed(files::Error::Io { action: "write", path: path.to_owned(), source });
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(write_failed)?;
    }
    let mut file = AtomicFile::create(path).map_err(failed)?;
    file.write_all(&header(print, panels.len())).and_then(|()| file.write_all(panels)).map_err(write_failed)?;
    file.commit().map_err(failed)
}

/// The folder that caches go to when nobody says: `RDT_CACHE_DIR`, or `rdt` in the system's place for caches.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("RDT_CACHE_DIR").or_else(|| {
        let system = if cfg!(windows) {
            set("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            set("HOME").map(|home| home.join("Library").join("Caches"))
        } else {
            set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))
        };
        system.map(|folder| folder.join("rdt"))
    })
}

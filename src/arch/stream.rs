//! The pipeline of a conversion: reading, converting and writing at the same time.
//!
//! The tensors are cut into chunks of some rows. Each worker takes the next chunk, reads its bytes into a buffer of its own,
//! and converts them a few thousand values at a time, so that the f32 between the two formats never leave the core's cache.
//! The calling thread writes what the workers make, in order. It holds nothing but the chunks that are under way, whose number
//! is bounded: when the disk is slow the workers wait. What is written does not depend on the number of workers.
//!
//! Nothing is read through a map; [`Bytes::read_at`] says why.

use super::convert::{Error, Input, Planned, Progress, Report};
use super::pairs;
use super::unfit::{Found, Unfit};
use crate::checkpoint::{self, TensorView};
use crate::files::Bytes;
use crate::gguf::{TensorInfo, TensorType, Writer};
use crate::quant::{self, BlockFormat};
use safetensors::Dtype;
use std::collections::VecDeque;
use std::io::Write;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Bytes that a chunk has before or after, whichever is more: few enough for a core's own cache, enough that what a
/// chunk costs besides does not count. Tests have small tensors and want many chunks.
const CHUNK_BYTES: usize = if cfg!(test) { 100 } else { 512 << 10 };

/// Values converted at a time where rows follow each other in the file: 16 KiB of f32. A multiple of every block length.
const PIECE: usize = if cfg!(test) { 256 } else { 4096 };

/// How often the caller is asked whether to go on while there is nothing to write.
const PATIENCE: Duration = Duration::from_millis(100);

/// The published tensor that values come from.
struct Source<'a> {
    file: &'a Bytes,
    /// Where its first row begins in the file.
    offset: usize,
    rows: usize,
    /// Values in a row.
    row_len: usize,
    /// Values in a block, and its bytes.
    block: (usize, usize),
    values: Values<'a>,
}

/// How stored values become f32.
enum Values<'a> {
    Format(&'static dyn BlockFormat),
    Doubles,
    /// Numbers that nobody here reads, in this type.
    Opaque(TensorType),
    /// The rows do not lie in one piece.
    Strided(Box<Strided<'a>>),
}

/// A tensor that is transposed or cut out of another.
struct Strided<'a> {
    view: TensorView<'a>,
    /// All of its bytes, while it is being converted.
    bytes: Mutex<Option<Arc<Vec<u8>>>>,
}

impl<'a> Source<'a> {
    fn of(input: &Input<'a>, plan: &Planned) -> Result<Self, Error> {
        let name = &plan.source.tensor;
        let missing = || Error::Missing(name.clone());
        match *input {
            Input::Checkpoint(checkpoint) => {
                let (view, file) = checkpoint.tensor_in_file(name)?;
                let (offset, rows, row_len) = (view.offset, view.rows(), view.row_len());
                let block = (1, view.dtype.bitsize() / 8);
                let values = match (view.dtype, view.tensor_type().and_then(quant::format)) {
                    (Dtype::F64, _) | (_, Some(_)) if view.strides.is_some() => {
                        Values::Strided(Box::new(Strided { view, bytes: Mutex::default() }))
                    }
                    (Dtype::F64, _) => Values::Doubles,
                    (_, Some(format)) => Values::Format(format),
                    (dtype, None) => return Err(checkpoint::Error::Dtype { tensor: name.clone(), dtype }.into()),
                };
                Ok(Self { file, offset, rows, row_len, block, values })
            }
            Input::Gguf(file, header) => Ok(Self::in_gguf(file, header.tensor(name).ok_or_else(missing)?)),
            Input::Split(split) => {
                let (file, info) = split.tensor(name).ok_or_else(missing)?;
                Ok(Self::in_gguf(file, info))
            }
        }
    }

    fn in_gguf(file: &'a Bytes, info: &TensorInfo) -> Self {
        Self {
            file,
            offset: info.offset,
            rows: info.dims.iter().skip(1).product(),
            row_len: info.dims.first().copied().unwrap_or(1),
            block: (info.ty.block_len(), info.ty.block_bytes()),
            values: quant::format(info.ty).map_or(Values::Opaque(info.ty), Values::Format),
        }
    }

    /// Bytes of so many values, which are whole blocks.
    fn bytes_of(&self, values: usize) -> usize {
        values / self.block.0 * self.block.1
    }

    /// The type of the values, if a GGUF can hold them unchanged.
    fn ty(&self) -> Option<TensorType> {
        match &self.values {
            Values::Format(format) => Some(format.tensor_type()),
            Values::Opaque(ty) => Some(*ty),
            Values::Doubles => None,
            Values::Strided(strided) => strided.view.tensor_type(),
        }
    }
}

/// A tensor on its way.
pub(super) struct Job<'a> {
    plan: &'a Planned,
    source: Source<'a>,
    /// What it becomes.
    ty: TensorType,
    /// `None`: the stored bytes are taken as they are.
    format: Option<&'static dyn BlockFormat>,
    importance: Option<&'a [f32]>,
    /// Values in a row.
    k: usize,
    /// Bytes in a row.
    row_bytes: usize,
    /// Rows in a chunk.
    step: usize,
}

/// What a worker works with.
#[derive(Default)]
struct Scratch {
    stored: Vec<u8>,
    values: Vec<f32>,
}

impl<'a> Job<'a> {
    /// How the tensor that `report` speaks of is made. `importance`: see [`BlockFormat::quantize`].
    pub(super) fn new(
        input: &Input<'a>,
        plan: &'a Planned,
        report: &Report,
        importance: Option<&'a [f32]>,
    ) -> Result<Self, Error> {
        let of_tensor = |source| Error::Quant { tensor: plan.name.clone(), source };
        let (ty, k) = (report.ty, plan.source.columns.len());
        let source = Source::of(input, plan)?;
        let as_it_is = source.ty() == Some(ty) && !matches!(source.values, Values::Strided(_));
        let format = match source.values {
            _ if as_it_is => None,
            Values::Opaque(ty) => return Err(of_tensor(quant::Error::Unsupported { ty })),
            _ => Some(quant::format(ty).ok_or_else(|| of_tensor(quant::Error::Unsupported { ty }))?),
        };
        let row_bytes = ty.row_bytes(k).filter(|&n| n > 0);
        let row_bytes = row_bytes.ok_or_else(|| of_tensor(quant::Error::RowLength { ty, k }))?;
        let rows = &plan.source.rows;
        if rows.end > source.rows || plan.source.columns.end > source.row_len {
            return Err(Error::Missing(plan.source.tensor.clone()));
        }
        let widest = row_bytes.max(source.bytes_of(source.row_len));
        // Whole heads, so that none is read twice.
        let head = plan.source.paired.unwrap_or(1).max(1);
        let step = (CHUNK_BYTES / widest).max(1).next_multiple_of(head);
        Ok(Self { plan, source, ty, format, importance, k, row_bytes, step })
    }

    /// Converts some rows to `out`, or only looks at their values if there is none.
    fn convert(
        &self,
        rows: Range<usize>,
        scratch: &mut Scratch,
        mut out: Option<&mut Vec<u8>>,
    ) -> Result<Found, Error> {
        let mut found = Found::default();
        if let Some(out) = &mut out {
            out.resize(rows.len() * self.row_bytes, 0);
        } else if matches!(self.source.values, Values::Opaque(_)) {
            return Ok(found);
        }
        let mut out = out.map(Vec::as_mut_slice);
        let (first, columns, paired) =
            (self.plan.source.rows.start, &self.plan.source.columns, self.plan.source.paired);
        // Where a row's values are in the tensor, and its bytes in `out`.
        let place = |row: usize| (row - first) * self.k;
        let start = rows.start;
        let out_row = |row: usize| (row - start) * self.row_bytes..(row - start + 1) * self.row_bytes;
        let stored_row = |row: usize| paired.map_or(row, |head| pairs::source_row(row, head));

        if let Values::Strided(strided) = &self.source.values {
            let whole = self.whole(strided)?;
            let view = TensorView { data: &whole, ..strided.view.clone() };
            let mut values = std::mem::take(&mut scratch.values);
            values.resize(self.source.row_len, 0.0);
            for row in rows {
                let stored = stored_row(row);
                view.rows_f32(stored..stored + 1, &mut values)?;
                let out = out.as_deref_mut().map(|out| &mut out[out_row(row)]);
                self.store(&values[columns.clone()], place(row), out, &mut found);
            }
            scratch.values = values;
            return Ok(found);
        }

        let row_bytes = self.source.bytes_of(self.source.row_len);
        let head = paired.unwrap_or(1).max(1);
        let read = start / head * head..rows.end.next_multiple_of(head).min(self.source.rows);
        let Scratch { stored, values } = scratch;
        stored.resize(read.len() * row_bytes, 0);
        self.read(self.source.offset + read.start * row_bytes, stored)?;
        if self.k == self.source.row_len && paired.is_none() {
            self.convert_run(stored, place(start), values, out, &mut found);
            return Ok(found);
        }
        let columns = self.source.bytes_of(columns.start)..self.source.bytes_of(columns.end);
        for row in rows {
            let stored = &stored[(stored_row(row) - read.start) * row_bytes..][columns.clone()];
            let out = out.as_deref_mut().map(|out| &mut out[out_row(row)]);
            self.convert_run(stored, place(row), values, out, &mut found);
        }
        Ok(found)
    }

    /// Converts stored values that follow each other, whole rows where there is importance. `place` is that of the first in
    /// the tensor.
    fn convert_run(
        &self,
        stored: &[u8],
        place: usize,
        values: &mut Vec<f32>,
        mut out: Option<&mut [u8]>,
        found: &mut Found,
    ) {
        if let (None, Some(out)) = (self.format, &mut out) {
            out.copy_from_slice(stored);
        }
        // With importance a format may look at all of a row.
        let piece = if self.importance.is_some() { self.k } else { PIECE };
        let piece_bytes = piece / self.ty.block_len() * self.ty.block_bytes();
        let mut out = out.map(|out| out.chunks_mut(piece_bytes));
        for (i, stored) in stored.chunks(self.source.bytes_of(piece)).enumerate() {
            values.resize(stored.len() / self.source.block.1 * self.source.block.0, 0.0);
            match &self.source.values {
                Values::Format(format) => format.dequantize(stored, values),
                Values::Doubles => {
                    for (value, &bytes) in values.iter_mut().zip(stored.as_chunks().0) {
                        *value = f64::from_le_bytes(bytes) as f32;
                    }
                }
                Values::Opaque(_) | Values::Strided(_) => return,
            }
            self.store(values, place + i * piece, out.as_mut().and_then(Iterator::next), found);
        }
    }

    /// Looks at values, and fills their bytes.
    fn store(&self, values: &[f32], place: usize, out: Option<&mut [u8]>, found: &mut Found) {
        found.look(values, place, self.format.map_or(f32::MAX, BlockFormat::limit));
        if let (Some(format), Some(out)) = (self.format, out) {
            format.quantize(values, out, self.importance);
        }
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Error> {
        let error = |source| Error::Read { tensor: self.plan.name.clone(), source };
        self.source.file.read_at(offset, out).map_err(error)
    }

    /// The bytes of a tensor whose rows do not lie in one piece; whoever comes first reads them.
    fn whole(&self, strided: &Strided<'_>) -> Result<Arc<Vec<u8>>, Error> {
        let mut bytes = lock(&strided.bytes);
        if let Some(bytes) = &*bytes {
            return Ok(Arc::clone(bytes));
        }
        let mut whole = vec![0; strided.view.data.len()];
        self.read(self.source.offset, &mut whole)?;
        Ok(Arc::clone(bytes.insert(Arc::new(whole))))
    }

    /// Nothing more will be asked of this tensor.
    fn end(&self) {
        if let Values::Strided(strided) = &self.source.values {
            *lock(&strided.bytes) = None;
        }
    }
}

/// All chunks, in the order of the file: the number of the job, and rows of its source.
fn chunks<'a>(jobs: &'a [Job<'_>]) -> impl Iterator<Item = (usize, Range<usize>)> + use<'a> {
    jobs.iter().enumerate().flat_map(|(number, job)| {
        let rows = &job.plan.source.rows;
        rows.clone().step_by(job.step).map(move |start| (number, start..(start + job.step).min(rows.end)))
    })
}

/// What a worker made of a chunk: bytes, unless they are not wanted any more.
type Made = Result<(Option<Vec<u8>>, Found), Error>;

/// What workers and writer share.
struct Queue<I> {
    state: Mutex<State<I>>,
    /// Something may be taken, or there is nothing more to do.
    room: Condvar,
    /// The oldest chunk under way is made, or a worker has panicked.
    made: Condvar,
}

struct State<I> {
    chunks: I,
    /// The chunks that were taken and not yet written, oldest first; `None` while a worker has it.
    under_way: VecDeque<Option<Made>>,
    /// Chunks written.
    written: usize,
    /// The most that may be under way.
    most: usize,
    /// Buffers that are free.
    spare: Vec<Vec<u8>>,
    /// Values are only looked at from here on.
    looking: bool,
    /// No chunk is to be taken any more.
    stop: bool,
}

/// The lock, whoever panicked while holding it: what it guards is changed in single steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<I: Iterator<Item = (usize, Range<usize>)>> Queue<I> {
    /// Takes chunk after chunk and converts it.
    fn work(&self, jobs: &[Job<'_>]) {
        let _last = StopWhenDropped { queue: self, only_in_panic: true };
        let mut scratch = Scratch::default();
        let mut state = lock(&self.state);
        loop {
            while state.under_way.len() >= state.most && !state.stop {
                state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop {
                return;
            }
            let Some((job, rows)) = state.chunks.next() else { return };
            let number = state.written + state.under_way.len();
            state.under_way.push_back(None);
            let mut out = (!state.looking).then(|| state.spare.pop().unwrap_or_default());
            drop(state);

            let found = jobs[job].convert(rows, &mut scratch, out.as_mut());

            state = lock(&self.state);
            let place = number - state.written;
            state.under_way[place] = Some(found.map(|found| (out, found)));
            if place == 0 {
                self.made.notify_one();
            }
        }
    }

    /// The next chunk in order. `go_on` is asked now and then.
    fn next(&self, go_on: &mut dyn FnMut() -> bool) -> Result<(Option<Vec<u8>>, Found), Error> {
        let mut state = lock(&self.state);
        loop {
            if let Some(made) = state.under_way.front_mut().and_then(Option::take) {
                state.under_way.pop_front();
                state.written += 1;
                self.room.notify_one();
                return made;
            }
            if state.stop || !go_on() {
                return Err(Error::Stopped);
            }
            state = self.made.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Lets everybody come to an end.
struct StopWhenDropped<'a, I> {
    queue: &'a Queue<I>,
    only_in_panic: bool,
}

impl<I> Drop for StopWhenDropped<'_, I> {
    fn drop(&mut self) {
        if !self.only_in_panic || thread::panicking() {
            lock(&self.queue.state).stop = true;
            self.queue.room.notify_all();
            self.queue.made.notify_all();
        }
    }
}

/// Writes all tensors, and tells of those with values that are not finite. If there are values that cannot be stored, or must
/// not be (`store_non_finite`), nothing more is written, but all other values are looked at too.
pub(super) fn run<W: Write>(
    jobs: &[Job<'_>],
    writer: &mut Writer<W>,
    store_non_finite: bool,
    progress: &mut dyn FnMut(Progress<'_>) -> bool,
) -> Result<Vec<Unfit>, Error> {
    // As many as are used for everything else that is worth several threads.
    let threads = rayon::current_num_threads();
    let state = State {
        chunks: chunks(jobs),
        under_way: VecDeque::new(),
        written: 0,
        // One more for each worker to go on with, and some that wait to be written.
        most: 2 * threads + 4,
        spare: Vec::new(),
        looking: false,
        stop: false,
    };
    let queue = Queue { state: Mutex::new(state), room: Condvar::new(), made: Condvar::new() };
    let total = jobs.iter().map(|job| (job.plan.source.rows.len() * job.k) as u64).sum();
    thread::scope(|scope| {
        let _stop = StopWhenDropped { queue: &queue, only_in_panic: false };
        for _ in 0..threads.min(chunks(jobs).count()) {
            scope.spawn(|| queue.work(jobs));
        }
        let mut done = 0;
        let (mut unfit, mut looking): (Vec<Unfit>, bool) = (Vec::new(), false);
        let mut all = Found::default();
        for (number, rows) in chunks(jobs) {
            let job = &jobs[number];
            let name = job.plan.name.as_str();
            let source = &job.plan.source.rows;
            if rows.start == source.start {
                all = Found::default();
                if !looking {
                    writer.begin_tensor(name)?;
                }
            }
            let mut report = |done| progress(Progress { tensor: name, done, total });
            let (bytes, found) = queue.next(&mut || report(done))?;
            all.add(found);
            looking |= all.is_unfit(store_non_finite);
            if let Some(bytes) = bytes {
                if !looking {
                    writer.write_chunk(&bytes)?;
                }
                let mut state = lock(&queue.state);
                state.looking = looking;
                state.spare.push(bytes);
            }
            done += (rows.len() * job.k) as u64;
            if !report(done) {
                return Err(Error::Stopped);
            }
            if rows.end == source.end {
                job.end();
                unfit.extend(Unfit::of(name, &all, job.plan.dims.first().copied().unwrap_or(1), job.format));
            }
        }
        if looking { Err(Error::Unfit(unfit)) } else { Ok(unfit) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Conversion, NonFinite, Slice, Target};
    use crate::checkpoint::Checkpoint;
    use crate::gguf::{Header, Metadata, TensorDecl};
    use crate::quant::{Recipe, Role};
    use std::path::Path;

    fn planned(
        name: String,
        tensor: &str,
        rows: Range<usize>,
        columns: Range<usize>,
        paired: Option<usize>,
    ) -> Planned {
        let dims = vec![columns.len(), rows.len()];
        let source = Slice { tensor: tensor.to_owned(), rows, columns, paired };
        Planned { name, role: Role::Other, dims, source, published: TensorType::F32, keep: false }
    }

    /// A checkpoint with tensors of all kinds: f64, f32, f16, bf16, shared, cut and transposed.
    fn checkpoint(folder: &Path) -> Checkpoint {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/torch/plain.pt");
        std::fs::copy(data, folder.join("model.pt")).unwrap();
        std::fs::write(folder.join("config.json"), r#"{"model_type": "any"}"#).unwrap();
        Checkpoint::open(folder).unwrap()
    }

    #[test]
    fn every_part_of_every_tensor_is_what_the_checkpoint_holds() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(dir.path());
        let (mut tensors, mut expected) = (Vec::new(), Vec::new());
        let mut strided = 0;
        for name in checkpoint.names() {
            let view = checkpoint.tensor(name).unwrap();
            let Ok(values) = view.to_f32() else { continue };
            let (rows, k) = (view.rows(), view.row_len());
            if values.is_empty() {
                continue;
            }
            strided += usize::from(view.strides.is_some());
            let parts = [(0..rows, 0..k), (rows / 2..rows, 0..k), (rows / 3..rows, k / 2..k), (0..1, k - 1..k)];
            for (part, (rows, columns)) in parts.into_iter().enumerate() {
                // The middle of a tensor is no whole number of heads.
                for paired in [None, Some(2)] {
                    if paired.is_some_and(|head| !view.rows().is_multiple_of(head)) {
                        continue;
                    }
                    let name = format!("{name}.{part}.{}", paired.is_some());
                    let stored = |row| paired.map_or(row, |head| pairs::source_row(row, head));
                    let rows_of = rows.clone().map(|row| &values[stored(row) * k..][columns.clone()]);
                    expected.push(rows_of.flatten().copied().collect::<Vec<_>>());
                    tensors.push(planned(name, view.name, rows.clone(), columns.clone(), paired));
                }
            }
        }
        assert!(strided > 0 && tensors.len() > 40, "{strided} of {}", tensors.len());
        let plan = Conversion { metadata: Metadata::new(), tensors, notes: Vec::new() };
        let input = Input::Checkpoint(&checkpoint);
        let target = Target { non_finite: NonFinite::Store, ..Recipe::F32.into() };
        let (written, _) = plan.write(&input, target, Vec::new(), &mut |_| true).unwrap();
        let header = Header::parse(&written).unwrap();
        for (info, expected) in header.tensors.iter().zip(&expected) {
            let bytes: Vec<_> = expected.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(info.data(&written).unwrap(), bytes, "{}", info.name);
        }
    }

    #[test]
    fn importance_is_that_of_the_whole_row() {
        let (k, rows) = (512, 9);
        let values: Vec<f32> = (0..k * rows).map(|i| (i as f32 * 0.37).sin()).collect();
        let importance: Vec<f32> = (0..k).map(|i| 1.0 + (i as f32 * 0.11).cos()).collect();
        let decl = |ty| TensorDecl { name: "t".into(), ty, dims: vec![k, rows] };
        let mut file = Writer::new(Vec::new(), &Metadata::new(), &[decl(TensorType::F32)]).unwrap();
        file.write_tensor("t", &values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()).unwrap();
        let file = Bytes::from(file.finish().unwrap());
        let header = Header::parse(&file).unwrap();
        let plan = planned("t".into(), "t", 0..rows, 0..k, None);
        for ty in [TensorType::Q4_0, TensorType::Q4_K, TensorType::IQ4_XS] {
            let report = Report { name: "t".into(), dims: vec![k, rows], published: TensorType::F32, ty, why: None };
            let job = Job::new(&Input::Gguf(&file, &header), &plan, &report, Some(&importance)).unwrap();
            let mut writer = Writer::new(Vec::new(), &Metadata::new(), &[decl(ty)]).unwrap();
            run(&[job], &mut writer, false, &mut |_| true).unwrap();
            let out = writer.finish().unwrap();
            let mut expected = vec![0; rows * ty.row_bytes(k).unwrap()];
            quant::quantize_rows(ty, &values, k, &mut expected, Some(&importance)).unwrap();
            assert_eq!(Header::parse(&out).unwrap().tensors[0].data(&out).unwrap(), expected, "{ty}");
        }
    }

    /// Fails after some bytes, as a full disk does.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everybody_comes_to_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(dir.path());
        let name = checkpoint.names().find(|n| checkpoint.tensor(n).is_ok_and(|t| t.to_f32().is_ok() && t.rows() > 3));
        let view = checkpoint.tensor(name.unwrap()).unwrap();
        let tensors = (0..50).map(|i| planned(format!("{i}"), view.name, 0..view.rows(), 0..view.row_len(), None));
        let plan = Conversion { metadata: Metadata::new(), tensors: tensors.collect(), notes: Vec::new() };
        let input = Input::Checkpoint(&checkpoint);
        let whole = plan.write(&input, Recipe::F32, Vec::new(), &mut |_| true).unwrap().0.len();
        for room in [0, whole / 2, whole - 1] {
            let error = plan.write(&input, Recipe::F32, Full(room), &mut |_| true).err().unwrap();
            assert!(matches!(error, Error::Gguf(_)), "{error}");
        }
        let mut calls = 0;
        let mut stop = |_: Progress<'_>| {
            calls += 1;
            calls < 20
        };
        assert!(matches!(plan.write(&input, Recipe::F32, Vec::new(), &mut stop), Err(Error::Stopped)));
    }
}

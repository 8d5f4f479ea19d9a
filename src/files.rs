//! Files on disk: bytes that are mapped or read, and output that appears under its name only when it is whole.
//!
//! [`Bytes`] is what the loaders hand around: a cheap handle on the contents of a file, wherever they live.
//! [`AtomicFile`] is what the converters write to: a temporary file beside the target, renamed over it by
//! [`AtomicFile::commit`]. A program killed half-way leaves the old file, or none, under the final name.
//!
//! Whoever goes through a large file once reads it with [`Bytes::read_at`] instead of touching the map: a failing disk or a
//! file that was cut short is then an error and not the end of the process, and no page of it stays in the program's memory.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread::{self, JoinHandle};

use memmap2::{Mmap, MmapMut};
use tempfile::NamedTempFile;
use thiserror::Error;

/// What can go wrong with a file, always with its path.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "open", "map", "write", ...
        action: &'static str,
        /// The file or folder it was tried on.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A folder, device or pipe stands where a regular file is needed.
    #[error("{} is not a regular file but {found}; name a file", path.display())]
    NotAFile {
        /// The path as given.
        path: PathBuf,
        /// "a folder", or "a device or pipe".
        found: &'static str,
    },
    /// An output path with no file name in it, such as `..` or `/`.
    #[error("{} has no file name; add one", path.display())]
    NoFileName {
        /// The path as given.
        path: PathBuf,
    },
    /// Bytes were asked for that are not there.
    #[error("there are no bytes {start}..{end} among {len}")]
    Outside {
        /// The first byte asked for.
        start: usize,
        /// The byte after the last.
        end: usize,
        /// Bytes there are.
        len: usize,
    },
    /// The file became shorter between looking at its size and reading it.
    #[error("{} changed while it was read: it had {expected} bytes, then fewer", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Its size when it was opened.
        expected: u64,
    },
}

/// Turns an [`io::Error`] into one that says what was done to which file.
fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { action, path: path.to_owned(), source }
}

/// Refuses what is not a regular file. Devices and pipes report no size and may never end; a rename would put
/// a file in their place.
fn require_regular(path: &Path, meta: &fs::Metadata) -> Result<(), Error> {
    if meta.is_file() {
        return Ok(());
    }
    Err(Error::NotAFile { path: path.to_owned(), found: if meta.is_dir() { "a folder" } else { "a device or pipe" } })
}

/// Immutable bytes, shared: a mapped file, a file read into memory, or data built into the program.
///
/// Clones share the same memory. What [`Bytes::map`] and [`Bytes::read`] return starts on a page boundary, so
/// an offset aligned in the file is aligned in memory; for the other constructors the base address is
/// whatever the caller's data has.
///
/// ```
/// let bytes = rdt::files::Bytes::from_static(b"GGUF");
/// assert_eq!(bytes.clone().len(), 4);
/// ```
#[derive(Clone)]
pub struct Bytes(Source);

#[derive(Clone)]
enum Source {
    Static(&'static [u8]),
    Owned(Arc<Vec<u8>>),
    /// Anonymous pages.
    Pages(Arc<Mmap>),
    Mapped(Arc<MappedFile>),
}

/// A mapped file, which stays open.
struct MappedFile {
    map: Mmap,
    file: File,
    path: PathBuf,
}

impl Bytes {
    /// Maps the file at `path` for reading; pages are fetched when they are first touched.
    ///
    /// # Safety
    /// The caller promises that no one, in this process or another, changes or shortens the file while the
    /// returned value or a clone of it lives. A change would alter memory that safe code holds as `&[u8]`; a
    /// shortened file ends the process with SIGBUS when a lost page is touched. Nothing in this library
    /// writes to a finished file (it is replaced by a rename, which leaves a mapped one intact). Where the
    /// promise cannot be given, use [`Bytes::read`].
    ///
    /// # Errors
    /// The path cannot be opened or mapped, or is not a regular file.
    pub unsafe fn map(path: &Path) -> Result<Self, Error> {
        let (file, _) = open_regular(path)?;
        // SAFETY: passed on to the caller: the file is neither changed nor shortened while the mapping lives.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error("map", path))?;
        Ok(Self(Source::Mapped(Arc::new(MappedFile { map, file, path: path.to_owned() }))))
    }

    /// Copies the bytes from `start` on to `out`. Those of a mapped file are read from the file and not through the map.
    ///
    /// # Errors
    /// They do not exist, cannot be read, or do not exist any more.
    pub fn read_at(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        let end = start.saturating_add(out.len());
        let bytes = self.get(start..end).ok_or(Error::Outside { start, end, len: self.len() })?;
        let Source::Mapped(mapped) = &self.0 else {
            out.copy_from_slice(bytes);
            return Ok(());
        };
        let MappedFile { file, path, map } = &**mapped;
        read_exact_at(file, out, start as u64).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::Changed { path: path.clone(), expected: map.len() as u64 },
            _ => io_error("read", path)(e),
        })
    }

    /// Reads the whole file at `path` into memory of its own.
    ///
    /// # Errors
    /// The path cannot be opened or read, is not a regular file, does not fit in memory, or shrinks while it
    /// is read.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let (mut file, len) = open_regular(path)?;
        let size = usize::try_from(len).map_err(|_| io_error("read", path)(io::ErrorKind::FileTooLarge.into()))?;
        // Anonymous pages rather than a `Vec<u8>`: they are page aligned, and a file that does not fit is an
        // error here instead of an abort in the allocator.
        let mut memory = MmapMut::map_anon(size).map_err(io_error("find memory to read", path))?;
        match file.read_exact(&mut memory) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Error::Changed { path: path.to_owned(), expected: len });
            }
            Err(e) => return Err(io_error("read", path)(e)),
        }
        let memory = memory.make_read_only().map_err(io_error("read", path))?;
        Ok(Self(Source::Pages(Arc::new(memory))))
    }

    /// `len` bytes of memory that `fill` writes: whole pages from the system, large ones where it has them, which is up to twice
    /// as fast to stream from.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn filled(len: usize, fill: impl FnOnce(&mut [u8])) -> Result<Self, Error> {
        let no_memory = || io_error("find memory for", Path::new("interleaved weights"));
        let mut memory = MmapMut::map_anon(len).map_err(no_memory())?;
        // A hint, and not every kernel takes it.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        fill(&mut memory);
        let memory = memory.make_read_only().map_err(no_memory())?;
        Ok(Self(Source::Pages(Arc::new(memory))))
    }

    /// Lets the system have back the memory of bytes that will not be read soon. They are still there: a page that is touched
    /// again is fetched again.
    pub fn forget(&self, range: std::ops::Range<usize>) {
        #[cfg(unix)]
        if let Source::Mapped(mapped) = &self.0
            && range.end <= mapped.map.len()
            && range.start < range.end
        {
            // Whole pages only: the ones at the ends belong to neighbours too.
            const PAGE: usize = 1 << 16;
            let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
            if start < end {
                // SAFETY: the pages of a shared mapping of a file that nobody writes (the contract of `map`) are fetched from
                // the file again, with the same bytes. A hint: failure changes nothing.
                let _ = unsafe {
                    mapped.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
                };
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Wraps data built into the program, as from `include_bytes!`. Its alignment is the caller's.
    pub const fn from_static(bytes: &'static [u8]) -> Self {
        Self(Source::Static(bytes))
    }
}

/// Bytes of memory that the system would give without taking from other programs; `None` where it does not tell.
pub fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Opens a regular file and returns its size. The kind is checked by path first, because opening a pipe waits
/// for a writer, and again on the open file, which is the one that will be used.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64), Error> {
    let meta = fs::metadata(path).map_err(io_error("open", path))?;
    require_regular(path, &meta)?;
    let file = File::open(path).map_err(io_error("open", path))?;
    let meta = file.metadata().map_err(io_error("open", path))?;
    require_regular(path, &meta)?;
    Ok((file, meta.len()))
}

/// Fills `out` with what stands at `at` in the file. The file's own position plays no part, so threads may share it.
#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut at: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                out = &mut out[n..];
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Source::Owned(Arc::new(bytes)))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Source::Static(bytes) => bytes,
            Source::Owned(bytes) => bytes,
            Source::Pages(pages) => pages,
            Source::Mapped(mapped) => &mapped.map,
        }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Source::Static(_) => "static",
            Source::Owned(_) => "owned",
            Source::Pages(_) => "read",
            Source::Mapped(_) => "mapped",
        };
        write!(f, "Bytes({kind}, {} bytes)", self.len())
    }
}

/// A file that appears under its name only when it is whole.
///
/// [`create`](Self::create) opens a hidden temporary file (`.NAME.XXXXXX.tmp`) in the target's folder, so that
/// the final rename stays on one file system. Bytes written go there, buffered. [`commit`](Self::commit) makes
/// them durable and renames the file to its final name; dropping the value instead removes it.
///
/// ```
/// use std::io::Write;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("out.bin");
/// let mut file = rdt::files::AtomicFile::create(&path)?;
/// file.write_all(b"all of it")?;
/// assert!(!path.exists());
/// file.commit()?;
/// assert_eq!(std::fs::read(&path)?, b"all of it");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct AtomicFile {
    out: BufWriter<NamedTempFile>,
    path: PathBuf,
    /// Bytes written since the disk was last asked to take them.
    waiting: usize,
    write_back: Option<WriteBack>,
}

/// Large enough that writing rows costs few system calls. What is larger is not copied into the buffer.
const WRITE_BUFFER: usize = 64 << 10;

/// Bytes after which the disk is asked to take what was written. Left alone, systems keep gigabytes in memory, and all of
/// them would be waited for at the end.
const WRITE_BACK_EVERY: usize = 128 << 20;

/// Asks the disk to take what was written, on a thread of its own, which does nothing but wait.
struct WriteBack {
    /// An entry: there is something to take.
    more: SyncSender<()>,
    /// Ends when `more` is dropped, or with the first error. The system tells of an error once, so it is kept.
    thread: JoinHandle<io::Result<()>>,
}

impl WriteBack {
    fn start(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (more, wanted) = mpsc::sync_channel(1);
        let work = move || wanted.iter().try_for_each(|()| file.sync_data());
        let thread = thread::Builder::new().name("write-back".into()).spawn(work)?;
        Ok(Self { more, thread })
    }

    /// Waits until the disk has what it was asked to take, and gives the error if there was one.
    fn end(self) -> io::Result<()> {
        drop(self.more);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that waits for the disk panicked")))
    }
}

impl AtomicFile {
    /// Starts a file that will be named `path`. An existing regular file of that name stays untouched until
    /// [`commit`](Self::commit); if `path` is a symbolic link to one, the file it points to is replaced and
    /// the link kept.
    ///
    /// # Errors
    /// `path` has no file name, stands for a folder, device or pipe, or its folder cannot be written.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let path = match fs::metadata(path) {
            Ok(meta) => {
                require_regular(path, &meta)?;
                fs::canonicalize(path).map_err(io_error("create", path))?
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(e) => return Err(io_error("create", path)(e)),
        };
        let Some(name) = path.file_name() else {
            return Err(Error::NoFileName { path });
        };
        // Enough of the name to recognise a leftover by, and short enough for any file system.
        let name: String = name.to_string_lossy().chars().take(40).collect();
        let prefix = format!(".{name}.");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".tmp");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // What `File::create` asks for; the process's umask takes its share as usual.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let temp = builder.tempfile_in(folder_of(&path)).map_err(io_error("create", &path))?;
        Ok(Self { out: BufWriter::with_capacity(WRITE_BUFFER, temp), path, waiting: 0, write_back: None })
    }

    /// The final name, which nothing bears until [`commit`](Self::commit) unless an older file does.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what is buffered and waits until the disk has all of it, which can take as long as writing did.
    /// [`commit`](Self::commit) does it too; this is for those who want to say what is being waited for.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn sync(&mut self) -> Result<(), Error> {
        let Self { out, write_back, path, .. } = self;
        let written = out.flush().and_then(|()| write_back.take().map_or(Ok(()), WriteBack::end));
        written.and_then(|()| out.get_ref().as_file().sync_all()).map_err(io_error("write", path))
    }

    /// Writes what is buffered, waits until the disk has it, gives the file its final name, and waits until
    /// the folder has that too.
    ///
    /// # Errors
    /// Any of these steps fails. Unless the last one did, the temporary file is removed and the final name is
    /// as it was.
    pub fn commit(mut self) -> Result<(), Error> {
        self.sync()?;
        let Self { out, path, .. } = self;
        let temp = out.into_inner().map_err(|e| io_error("write", &path)(e.into_error()))?;
        temp.persist(&path).map_err(|e| io_error("rename the finished file to", &path)(e.error))?;
        sync_folder(folder_of(&path))
    }
}

/// The folder a path's file lies in, "." for a bare name.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> Result<(), Error> {
    match File::open(folder).and_then(|f| f.sync_all()) {
        Ok(()) => Ok(()),
        // Some network and user-space file systems cannot sync a folder, and a folder may be writable
        // without being readable; the file itself is safe by then.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(())
        }
        Err(e) => Err(io_error("sync", folder)(e)),
    }
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> Result<(), Error> {
    Ok(())
}

impl AtomicFile {
    /// Counts what was written, and passes it on to the disk now and then.
    fn ask_for_write_back(&mut self, written: usize) -> io::Result<()> {
        self.waiting += written;
        if self.waiting < WRITE_BACK_EVERY {
            return Ok(());
        }
        self.waiting = 0;
        let write_back = match &self.write_back {
            Some(write_back) => write_back,
            None => self.write_back.insert(WriteBack::start(self.out.get_ref().as_file())?),
        };
        // If the last request is still waiting, it will take these bytes too.
        if let Err(TrySendError::Disconnected(())) = write_back.more.try_send(()) {
            self.write_back.take().map_or(Ok(()), WriteBack::end)?;
        }
        Ok(())
    }

    /// Adds the final name to an error; the kind stays, so that interrupted writes are still tried again.
    fn name_error(&self, e: io::Error) -> io::Error {
        io::Error::new(e.kind(), io_error("write", &self.path)(e))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes).and_then(|n| self.ask_for_write_back(n).map(|()| n));
        written.map_err(|e| self.name_error(e))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().map_err(|e| self.name_error(e))
    }
}

impl fmt::Debug for AtomicFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AtomicFile({}, not committed)", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_in(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn mapped(path: &Path) -> Result<Bytes, Error> {
        // SAFETY: the tests write their files before they map them.
        unsafe { Bytes::map(path) }
    }

    #[test]
    fn map_read_and_static_give_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, b"recurrent").unwrap();
        for bytes in [mapped(&path).unwrap(), Bytes::read(&path).unwrap()] {
            assert_eq!(&*bytes, b"recurrent");
            assert_eq!(bytes.as_ptr() as usize % 4096, 0);
            let clone = bytes.clone();
            assert_eq!(clone.as_ptr(), bytes.as_ptr());
            drop(bytes);
            assert_eq!(&*clone, b"recurrent");
        }
        assert_eq!(&*Bytes::from_static(b"recurrent"), b"recurrent");
        assert_eq!(&*Bytes::from(b"recurrent".to_vec()), b"recurrent");
    }

    #[test]
    fn parts_are_read_from_wherever_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, b"recurrent").unwrap();
        let file = mapped(&path).unwrap();
        for bytes in [file.clone(), Bytes::read(&path).unwrap(), Bytes::from_static(b"recurrent")] {
            let mut part = [0; 3];
            bytes.read_at(2, &mut part).unwrap();
            assert_eq!(&part, b"cur");
            bytes.read_at(9, &mut []).unwrap();
            for start in [7, 10, usize::MAX] {
                assert!(matches!(bytes.read_at(start, &mut part), Err(Error::Outside { len: 9, .. })));
            }
        }
        // No test shortens a mapped file that someone may touch; here nobody does.
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4).unwrap();
        file.read_at(1, &mut [0; 3]).unwrap();
        let error = file.read_at(2, &mut [0; 3]).unwrap_err();
        assert!(matches!(error, Error::Changed { expected: 9, .. }), "{error}");
    }

    #[test]
    fn an_empty_file_is_empty_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        fs::write(&path, b"").unwrap();
        assert!(mapped(&path).unwrap().is_empty());
        assert!(Bytes::read(&path).unwrap().is_empty());
    }

    #[test]
    fn a_missing_file_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing.gguf");
        for result in [mapped(&path), Bytes::read(&path)] {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Io { action: "open", .. }));
            assert!(error.to_string().contains("missing.gguf"), "{error}");
        }
    }

    #[test]
    fn a_folder_cannot_be_read_or_replaced() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(mapped(dir.path()), Err(Error::NotAFile { .. })));
        assert!(matches!(Bytes::read(dir.path()), Err(Error::NotAFile { .. })));
        assert!(matches!(AtomicFile::create(dir.path()), Err(Error::NotAFile { found: "a folder", .. })));
        assert!(names_in(dir.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_device_cannot_be_read_or_replaced() {
        let null = Path::new("/dev/null");
        assert!(matches!(Bytes::read(null), Err(Error::NotAFile { .. })));
        assert!(matches!(AtomicFile::create(null), Err(Error::NotAFile { .. })));
    }

    #[test]
    fn bytes_cross_threads() {
        fn check<T: Send + Sync + Clone>() {}
        check::<Bytes>();
    }

    #[test]
    fn an_abandoned_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(&vec![7; 3 * WRITE_BUFFER]).unwrap();
        assert!(!path.exists());
        let during = names_in(dir.path());
        assert_eq!(during.len(), 1);
        assert!(during[0].starts_with(".model.gguf.") && during[0].ends_with(".tmp"));
        drop(file);
        assert!(names_in(dir.path()).is_empty());
    }

    #[test]
    fn an_existing_file_survives_until_commit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        fs::write(&path, b"old").unwrap();

        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        file.flush().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");

        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names_in(dir.path()), ["model.gguf"]);
    }

    #[test]
    fn a_mapped_file_can_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        fs::write(&path, b"old").unwrap();
        let old = mapped(&path).unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert_eq!(&*old, b"old");
        assert_eq!(&*Bytes::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_path_without_a_folder_or_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let lost = dir.path().join("no-such-folder").join("model.gguf");
        let error = AtomicFile::create(&lost).unwrap_err();
        assert!(error.to_string().contains("no-such-folder"), "{error}");
        let nameless = dir.path().join("missing").join("..");
        assert!(AtomicFile::create(&nameless).is_err());
        assert!(matches!(AtomicFile::create(Path::new("")), Err(Error::NoFileName { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_those_of_an_ordinary_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let ordinary = dir.path().join("ordinary");
        fs::write(&ordinary, b"").unwrap();
        let path = dir.path().join("atomic");
        AtomicFile::create(&path).unwrap().commit().unwrap();
        let mode = |p| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&ordinary));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_keeps_pointing_at_the_replaced_file() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        let link = dir.path().join("link");
        fs::write(&target, b"old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let mut file = AtomicFile::create(&link).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"new");
    }

    #[test]
    fn a_very_long_name_still_fits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(250));
        AtomicFile::create(&path).unwrap().commit().unwrap();
        assert!(path.exists());
    }
}

//! Stored base runs, in the file layout of llama.cpp's `--kl-divergence-base`, so that they move freely between the two programs.
//!
//! ```text
//! "_logits_", context i32, vocab i32, windows i32, tokens i32 [windows][context]   (all little-endian)
//! then per scored position (context / 2 to context − 2 of every window):
//! scale f32, minimum f32, code u16 [vocab], one u16 of padding where vocab is odd
//! ```
//! A log-probability is `scale · code + minimum`, and none lies more than 16 below the largest. So 16 bits cost up to half a step of
//! 16/65535 per log-probability, and a token that was less likely than e^-16 of the best looks better than it was: on `huginn-hops`
//! (1024 tokens) KL of a run to its own stored form is 1e-6 in the mean and 5e-5 at most, of either sign, and the base run's perplexity
//! comes back as 21.886 instead of 21.896. llama.cpp's documentation tells of a mean KL of 5.5e-4 for Llama 3's 128 thousand tokens.

use super::{Error, Windows};
use crate::exit::log_sum_exp;
use crate::files;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"_logits_";
/// Magic and three counts.
const HEAD: u64 = 20;
/// How far below the most likely token log-probabilities are told apart, in nats.
const RANGE: f32 = 16.0;
/// More tokens than this are no text that anyone scores: a limit on what a damaged file can make us allocate.
const MOST_TOKENS: u64 = 1 << 26;

/// Bytes of a scored position.
fn row_bytes(vocab: usize) -> usize {
    8 + 2 * vocab.next_multiple_of(2)
}

/// Scored positions of a window.
fn rows_per_window(context: usize) -> usize {
    context - 1 - context / 2
}

/// Writes a base run as it is computed.
#[derive(Debug)]
pub struct BaseWriter<W> {
    out: W,
    vocab: usize,
    row: Vec<u8>,
    expected: u64,
    found: u64,
}

impl<W: Write> BaseWriter<W> {
    /// Writes the head: what `windows` are, for a model with logits `[vocab]`.
    ///
    /// # Errors
    /// [`Error::Header`] if the layout cannot hold it, among them strided windows; [`Error::Io`].
    pub fn new(mut out: W, windows: &Windows, vocab: usize) -> Result<Self, Error> {
        let number = |what, n: usize| {
            let most = i32::MAX;
            i32::try_from(n).map_err(|_| Error::Header { what, found: n as i64, expected: format!("at most {most}") })
        };
        if windows.is_strided() {
            let expected = "0: stored base runs hold windows side by side".to_owned();
            return Err(Error::Header { what: "the stride", found: windows.scored().len() as i64, expected });
        }
        out.write_all(&MAGIC)?;
        for (what, n) in [("the context", windows.context()), ("the vocabulary", vocab), ("the windows", windows.len())]
        {
            out.write_all(&number(what, n)?.to_le_bytes())?;
        }
        for &token in windows.stored() {
            out.write_all(&token.to_le_bytes())?;
        }
        Ok(Self { out, vocab, row: Vec::with_capacity(row_bytes(vocab)), expected: windows.scored_len(), found: 0 })
    }

    /// Writes the next scored position's logits, `[vocab]`.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// If there are not `vocab` of them.
    pub fn push(&mut self, logits: &[f32]) -> Result<(), Error> {
        assert_eq!(logits.len(), self.vocab, "logits of another vocabulary");
        self.row.clear();
        encode(logits, &mut self.row);
        self.out.write_all(&self.row)?;
        self.found += 1;
        Ok(())
    }

    /// Gives back what was written to, complete.
    ///
    /// # Errors
    /// [`Error::Rows`] if positions are missing or too many.
    pub fn finish(self) -> Result<W, Error> {
        match self.found == self.expected {
            true => Ok(self.out),
            false => Err(Error::Rows { expected: self.expected, found: self.found }),
        }
    }
}

/// A scored position: as llama.cpp's `log_softmax` packs it, in f32 but for the sum.
fn encode(logits: &[f32], out: &mut Vec<u8>) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let least = logits.iter().copied().fold(f32::INFINITY, f32::min).max(most - RANGE);
    let log_sum = (log_sum_exp(logits) - f64::from(most)) as f32;
    let scale = (most - least) / 65535.0;
    out.extend_from_slice(&scale.to_le_bytes());
    out.extend_from_slice(&(least - most - log_sum).to_le_bytes());
    let inverse = 1.0 / scale;
    for &x in logits {
        // Equal logits have no scale, and no need of one.
        let code = if x > least && scale > 0.0 { (inverse * (x - least)).round_ties_even() } else { 0.0 };
        out.extend_from_slice(&(code as u16).to_le_bytes());
    }
    if !logits.len().is_multiple_of(2) {
        out.extend_from_slice(&[0; 2]);
    }
}

/// An error, with the file that it is about.
fn named(path: Option<&Path>, error: Error) -> Error {
    match path {
        Some(path) => Error::InFile { path: path.to_owned(), source: Box::new(error) },
        None => error,
    }
}

/// A stored base run, read position by position.
#[derive(Debug)]
pub struct BaseRun<R> {
    /// For errors; `None` if it is no file.
    path: Option<PathBuf>,
    input: R,
    context: usize,
    vocab: usize,
    windows: usize,
    tokens: Vec<u32>,
    /// Rows read.
    done: u64,
    row: Vec<u8>,
    log_probs: Vec<f32>,
}

impl BaseRun<BufReader<File>> {
    /// Opens a file and reads its head.
    ///
    /// # Errors
    /// [`Error::File`], or as [`BaseRun::new`] with the path.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let (file, length) = files::open_regular(path)?;
        let path = Some(path.to_owned());
        let run = Self::new(BufReader::with_capacity(1 << 20, file), length);
        run.map_err(|e| named(path.as_deref(), e)).map(|run| Self { path: path.clone(), ..run })
    }
}

impl<R: Read> BaseRun<R> {
    /// Reads the head of a base run of `length` bytes.
    ///
    /// # Errors
    /// [`Error::Magic`], [`Error::Header`], [`Error::Length`], [`Error::Io`].
    pub fn new(mut input: R, length: u64) -> Result<Self, Error> {
        let mut magic = Vec::new();
        input.by_ref().take(MAGIC.len() as u64).read_to_end(&mut magic)?;
        if magic != MAGIC {
            return Err(Error::Magic { found: String::from_utf8_lossy(&magic).into_owned() });
        }
        let mut number = |what, least: i32, most: u64| {
            let mut bytes = [0; 4];
            input.read_exact(&mut bytes)?;
            let n = i32::from_le_bytes(bytes);
            match n >= least && n as u64 <= most {
                true => Ok(n as usize),
                false => {
                    let expected = format!("from {least} to {most}");
                    Err(Error::Header { what, found: n.into(), expected })
                }
            }
        };
        let context = number("the context", super::windows::LEAST as i32, MOST_TOKENS)?;
        let vocab = number("the vocabulary", 1, i32::MAX as u64)?;
        let windows = number("the number of windows", 1, MOST_TOKENS / context as u64)?;
        // Below 2^63: context and windows together are at most 2^26, a row has less than 2^33 bytes.
        let rows = (windows * rows_per_window(context)) as u64;
        let expected = HEAD + 4 * (windows * context) as u64 + rows * row_bytes(vocab) as u64;
        if length != expected {
            return Err(Error::Length { found: length, expected, context, windows, vocab });
        }
        let mut tokens = Vec::new();
        let mut bytes = Vec::new();
        for _ in 0..windows {
            bytes.resize(4 * context, 0);
            input.read_exact(&mut bytes)?;
            for word in bytes.as_chunks::<4>().0 {
                let token = i32::from_le_bytes(*word);
                if token < 0 || token as usize >= vocab {
                    let expected = format!("below the vocabulary of {vocab}");
                    return Err(Error::Header { what: "a token", found: token.into(), expected });
                }
                tokens.push(token as u32);
            }
        }
        Ok(Self { path: None, input, context, vocab, windows, tokens, done: 0, row: Vec::new(), log_probs: Vec::new() })
    }

    /// Tokens per window.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Log-probabilities per position.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.windows
    }

    /// The text, `[windows][context]`: without the BOS that windows start with where the model wants one.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Checks that this is a base run for these windows, or for more of the same text, and for logits `[vocab]`.
    ///
    /// # Errors
    /// [`Error::Mismatch`], [`Error::Text`], which name both sides.
    pub fn check(&self, windows: &Windows, vocab: usize) -> Result<(), Error> {
        self.fits(windows, vocab).map_err(|e| named(self.path.as_deref(), e))
    }

    fn fits(&self, windows: &Windows, vocab: usize) -> Result<(), Error> {
        let stride = if windows.is_strided() { windows.scored().len() } else { 0 };
        let numbers = [
            ("a vocabulary of", self.vocab, vocab),
            ("a context of", self.context, windows.context()),
            ("a stride of", 0, stride),
        ];
        for (what, base, run) in numbers {
            if base != run {
                return Err(Error::Mismatch { what, base: base as u64, run: run as u64 });
            }
        }
        let mut pairs = self.tokens.iter().zip(windows.stored()).enumerate();
        if let Some((position, (&base, &run))) = pairs.find(|(_, (base, run))| base != run) {
            return Err(Error::Text { position, base, run });
        }
        if self.windows < windows.len() {
            return Err(Error::Mismatch { what: "windows:", base: self.windows as u64, run: windows.len() as u64 });
        }
        Ok(())
    }

    /// The next scored position's log-probabilities, `[vocab]`.
    ///
    /// # Errors
    /// [`Error::Row`] if it holds none; [`Error::Rows`] after the last; [`Error::Io`].
    pub fn next_row(&mut self) -> Result<&[f32], Error> {
        match self.read_row() {
            Ok(()) => Ok(&self.log_probs),
            Err(e) => Err(named(self.path.as_deref(), e)),
        }
    }

    fn read_row(&mut self) -> Result<(), Error> {
        let rows = (self.windows * rows_per_window(self.context)) as u64;
        if self.done == rows {
            return Err(Error::Rows { expected: rows, found: rows + 1 });
        }
        self.row.resize(row_bytes(self.vocab), 0);
        self.input.read_exact(&mut self.row)?;
        let word = |at: usize| f32::from_le_bytes([0, 1, 2, 3].map(|i| self.row[at + i]));
        let (scale, minimum) = (word(0), word(4));
        // ln p is never above 0; a rounded one may be, by a little.
        let most = scale * 65535.0 + minimum;
        if !(scale >= 0.0 && minimum.is_finite() && most < 0.01) {
            return Err(Error::Row { row: self.done, scale, minimum });
        }
        let codes = self.row[8..].as_chunks::<2>().0[..self.vocab].iter();
        self.log_probs.clear();
        self.log_probs.extend(codes.map(|code| scale * f32::from(u16::from_le_bytes(*code)) + minimum));
        self.done += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    const LOGITS: [[f32; 5]; 4] =
        [[0.5, -3.0, 2.25, 1.0, 0.0], [7.0; 5], [-40.0, 0.0, -2.0, -15.9, -16.1], [1e30, 1e30, 0.0, -1e30, 1e30]];

    fn windows() -> Windows {
        Windows::new(vec![3, 1, 4, 1, 2, 0, 4, 4, 2, 1, 0, 3], 6, Some(0)).unwrap()
    }

    fn file() -> Vec<u8> {
        let mut writer = BaseWriter::new(Vec::new(), &windows(), 5).unwrap();
        LOGITS.iter().for_each(|row| writer.push(row).unwrap());
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<Vec<f32>>, Error> {
        let mut run = BaseRun::new(bytes, bytes.len() as u64)?;
        (0..LOGITS.len()).map(|_| run.next_row().map(<[f32]>::to_vec)).collect()
    }

    #[test]
    fn the_layout_by_hand() {
        let bytes = file();
        assert_eq!(&bytes[..8], b"_logits_");
        let numbers: Vec<i32> = bytes[8..68].as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect();
        assert_eq!(numbers, [6, 5, 2, 3, 1, 4, 1, 2, 0, 4, 4, 2, 1, 0, 3]);
        assert_eq!(bytes.len(), 20 + 4 * 12 + 4 * (8 + 2 * 6));
        let first = &bytes[68..88];
        assert_eq!(first[..4], (5.25f32 / 65535.0).to_le_bytes());
        let codes: Vec<u16> = first[8..].as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
        // (x + 3) · 65535 / 5.25; the last is padding.
        assert_eq!(codes, [43690, 0, 65535, 49931, 37449, 0]);
    }

    #[test]
    fn what_comes_back_is_close() {
        for (found, logits) in read(&file()).unwrap().iter().zip(&LOGITS) {
            let log_sum = log_sum_exp(logits);
            let most = logits.iter().copied().fold(f32::MIN, f32::max);
            for (&found, &x) in found.iter().zip(logits) {
                let exact = f64::from(x.max(most - RANGE)) - log_sum;
                // Half a step, and the rounding of f32.
                let limit = 8.0 / 65535.0 + 1e-5 + f64::from(most.abs()) * 1e-7;
                assert!((f64::from(found) - exact).abs() <= limit, "{found} {exact}");
            }
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = file();
        for n in 0..bytes.len() {
            assert!(read(&bytes[..n]).is_err(), "{n} bytes of {}", bytes.len());
            // A file that shrinks while it is read.
            let shrunk = BaseRun::new(&bytes[..n], bytes.len() as u64);
            assert!(shrunk.and_then(|mut run| (0..4).try_for_each(|_| run.next_row().map(|_| ()))).is_err());
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(read(&longer), Err(Error::Length { found: 149, expected: 148, .. })));
        let mut run = BaseRun::new(&bytes[..], bytes.len() as u64).unwrap();
        (0..4).for_each(|_| assert!(run.next_row().is_ok()));
        assert!(matches!(run.next_row(), Err(Error::Rows { expected: 4, found: 5 })));
    }

    #[test]
    fn huge_and_negative_counts_are_refused() {
        let bytes = file();
        for at in [8, 12, 16] {
            for n in [0, -1, 1 << 27, i32::MAX, i32::MIN] {
                let mut bytes = bytes.clone();
                bytes[at..at + 4].copy_from_slice(&n.to_le_bytes());
                // Whatever length the file claims, such as one with holes.
                for length in [bytes.len() as u64, 1 << 62, u64::MAX] {
                    assert!(BaseRun::new(&bytes[..], length).is_err(), "{n} at {at}, {length}");
                }
            }
        }
        for token in [5, -1, i32::MIN] {
            let mut bytes = bytes.clone();
            bytes[24..28].copy_from_slice(&token.to_le_bytes());
            let error = read(&bytes).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("the stored base run says a token is {token}; expected below the vocabulary of 5")
            );
        }
        let error = read(b"GGUF and more").unwrap_err().to_string();
        assert!(error.contains("GGUF and"), "{error}");
        for (scale, minimum) in [(f32::NAN, 0.0), (-1.0, 0.0), (0.0, f32::NEG_INFINITY), (1.0, 0.0), (0.0, 1.0)] {
            let mut bytes = bytes.clone();
            bytes[88..92].copy_from_slice(&scale.to_le_bytes());
            bytes[92..96].copy_from_slice(&minimum.to_le_bytes());
            assert!(matches!(read(&bytes), Err(Error::Row { row: 1, .. })), "{scale} {minimum}");
        }
    }

    #[test]
    fn other_runs_are_told_apart() {
        let bytes = file();
        let run = BaseRun::new(&bytes[..], bytes.len() as u64).unwrap();
        let text = run.tokens().to_vec();
        let refused = |windows: &Windows, vocab| run.check(windows, vocab).unwrap_err().to_string();
        run.check(&windows(), 5).unwrap();
        run.check(&windows().first(1), 5).unwrap();
        assert!(refused(&windows(), 6).starts_with("the base run has a vocabulary of 5, and this run 6;"));
        let other = Windows::new(text.clone(), 4, None).unwrap();
        assert!(refused(&other, 5).starts_with("the base run has a context of 6, and this run 4;"));
        let strided = Windows::strided(text.clone(), 6, 2).unwrap();
        assert!(refused(&strided, 5).starts_with("the base run has a stride of 0, and this run 2;"));
        let more = Windows::new([text.clone(), text.clone()].concat(), 6, None).unwrap();
        assert!(refused(&more, 5).starts_with("the base run has windows: 2, and this run 4;"));
        let mut changed = text;
        changed[7] = 3;
        let changed = Windows::new(changed, 6, None).unwrap();
        assert!(refused(&changed, 5).contains("its token 7 is 4, and this run's is 3"));
    }

    #[test]
    fn writers_count() {
        let mut writer = BaseWriter::new(io::sink(), &windows(), 5).unwrap();
        writer.push(&LOGITS[0]).unwrap();
        assert!(matches!(writer.finish(), Err(Error::Rows { expected: 4, found: 1 })));
        let strided = Windows::strided(vec![0; 20], 6, 2).unwrap();
        assert!(matches!(BaseWriter::new(io::sink(), &strided, 5), Err(Error::Header { what: "the stride", .. })));
    }
}

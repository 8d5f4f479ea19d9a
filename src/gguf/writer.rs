//! Writing: one pass, header first, tensors streamed in the declared order.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use byteorder::{LittleEndian as LE, WriteBytesExt};

use super::{
    Array, Error, MAGIC, MAX_DEPTH, Metadata, TensorInfo, TensorType, VERSION, Value, alignment, check_name_length,
    tensor_bytes,
};
use crate::files::AtomicFile;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDecl {
    /// Name, unique in the file.
    pub name: String,
    /// How the values are stored.
    pub ty: TensorType,
    /// Shape in ggml's order: `dims[0]` is the row length. One to four entries, none of them 0.
    pub dims: Vec<usize>,
}

impl From<&TensorInfo> for TensorDecl {
    fn from(info: &TensorInfo) -> Self {
        Self { name: info.name.clone(), ty: info.ty, dims: info.dims.clone() }
    }
}

/// Writes a file of version 3 in one pass.
///
/// The keys and the list of tensors go out at once; then each tensor's data follows in the declared order,
/// whole ([`write_tensor`](Self::write_tensor)) or in pieces ([`begin_tensor`](Self::begin_tensor), then
/// [`write_chunk`](Self::write_chunk) until its size is reached). Data is aligned to the metadata's
/// `general.alignment`, or 32. [`finish`](Self::finish) makes sure that nothing is missing.
///
/// The bytes depend on nothing but the input: reading a file that ggml or this writer made and writing what
/// was read gives the same file. Output is not buffered here beyond the header.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    alignment: usize,
    file_size: u64,
    /// Name and size of each tensor.
    tensors: Vec<(String, usize)>,
    /// The tensor being written, or the next.
    current: usize,
    /// Bytes of the current tensor that are out; `None` before it is begun.
    written: Option<usize>,
}

impl Writer<AtomicFile> {
    /// Starts a file that will appear at `path` when [`commit`](Self::commit) is called.
    ///
    /// # Errors
    /// As [`Writer::new`] and [`AtomicFile::create`].
    pub fn create(path: &Path, metadata: &Metadata, tensors: &[TensorDecl]) -> Result<Self, Error> {
        Self::new(AtomicFile::create(path)?, metadata, tensors)
    }

    /// Checks that the file is complete and gives it its name.
    ///
    /// # Errors
    /// As [`Writer::finish`] and [`AtomicFile::commit`]; nothing is left under the final name then.
    pub fn commit(self) -> Result<(), Error> {
        Ok(self.finish()?.commit()?)
    }
}

impl<W: Write> Writer<W> {
    /// Writes the header for these keys and tensors to `out`.
    ///
    /// # Errors
    /// A key, name, shape or alignment that no file may have (the rules are those of
    /// [`Header::parse`](super::Header::parse)), or `out` fails.
    pub fn new(mut out: W, metadata: &Metadata, tensors: &[TensorDecl]) -> Result<Self, Error> {
        let alignment = alignment(metadata)?;
        let mut header = MAGIC.to_vec();
        header.write_u32::<LE>(VERSION)?;
        header.write_u64::<LE>(tensors.len() as u64)?;
        header.write_u64::<LE>(metadata.len() as u64)?;
        for (key, value) in metadata.iter() {
            check_name_length("a metadata key", key.len() as u64)?;
            put_text(&mut header, key)?;
            put_value(&mut header, key, value)?;
        }

        let mut names = HashSet::with_capacity(tensors.len());
        let mut sizes = Vec::with_capacity(tensors.len());
        let mut offset = 0u64;
        for TensorDecl { name, ty, dims } in tensors {
            check_name_length("a tensor name", name.len() as u64)?;
            if !names.insert(name) {
                return Err(Error::DuplicateTensor { tensor: name.clone() });
            }
            let dims: Vec<u64> = dims.iter().map(|&dim| dim as u64).collect();
            let bytes = tensor_bytes(name, *ty, &dims)?;
            put_text(&mut header, name)?;
            header.write_u32::<LE>(dims.len() as u32)?;
            for &dim in &dims {
                header.write_u64::<LE>(dim)?;
            }
            header.write_u32::<LE>(ty.id())?;
            header.write_u64::<LE>(offset)?;
            let too_large = || Error::TooLarge { tensor: name.clone(), dims: dims.clone() };
            offset = offset
                .checked_add(bytes as u64)
                .and_then(|end| end.checked_next_multiple_of(alignment as u64))
                .filter(|&end| end <= i64::MAX as u64)
                .ok_or_else(too_large)?;
            sizes.push((name.clone(), bytes));
        }
        header.resize(header.len().next_multiple_of(alignment), 0);
        out.write_all(&header)?;
        Ok(Self { out, alignment, file_size: header.len() as u64 + offset, tensors: sizes, current: 0, written: None })
    }

    /// Size of the finished file in bytes.
    pub fn file_size(&self) -> u64 {
        self.file_size
    }

    /// Writes all of the next tensor's data.
    ///
    /// # Errors
    /// It is not this tensor's turn, `data` has not its size (nothing is written then), or the output fails.
    pub fn write_tensor(&mut self, name: &str, data: &[u8]) -> Result<(), Error> {
        let expected = self.check_turn(name)?;
        if data.len() != expected {
            return Err(Error::Size { tensor: name.into(), expected, found: data.len() });
        }
        self.written = Some(0);
        self.write_chunk(data)
    }

    /// Begins the next tensor, whose data follows through [`write_chunk`](Self::write_chunk).
    ///
    /// # Errors
    /// It is not this tensor's turn.
    pub fn begin_tensor(&mut self, name: &str) -> Result<(), Error> {
        self.check_turn(name)?;
        self.written = Some(0);
        Ok(())
    }

    /// Adds to the tensor that was begun. The tensor ends when its size is reached.
    ///
    /// # Errors
    /// No tensor is begun, or `data` has more than it still lacks (nothing is written then), or the output
    /// fails; the output is of no use after that.
    pub fn write_chunk(&mut self, data: &[u8]) -> Result<(), Error> {
        let (Some(written), Some((name, size))) = (self.written, self.tensors.get(self.current)) else {
            return Err(Error::Size { tensor: self.next_name().unwrap_or_default(), expected: 0, found: data.len() });
        };
        if data.len() > size - written {
            return Err(Error::Size {
                tensor: name.clone(),
                expected: *size,
                found: written.saturating_add(data.len()),
            });
        }
        self.out.write_all(data)?;
        let written = written + data.len();
        self.written = Some(written);
        if written == *size {
            let padding = size.next_multiple_of(self.alignment) - size;
            put_zeros(&mut self.out, padding)?;
            self.current += 1;
            self.written = None;
        }
        Ok(())
    }

    /// Checks that every tensor was written, and gives the output back, flushed.
    ///
    /// # Errors
    /// A tensor is missing or incomplete, or the output cannot be flushed.
    pub fn finish(mut self) -> Result<W, Error> {
        if let Some(next) = self.next_name() {
            return Err(Error::Unfinished { written: self.current, declared: self.tensors.len(), next });
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn next_name(&self) -> Option<String> {
        self.tensors.get(self.current).map(|(name, _)| name.clone())
    }

    /// The size of the tensor `name`, if it is the next and none is under way.
    fn check_turn(&self, name: &str) -> Result<usize, Error> {
        match self.tensors.get(self.current) {
            Some((next, size)) if next == name && self.written.is_none() => Ok(*size),
            _ => Err(Error::Order { tensor: name.into(), expected: self.next_name() }),
        }
    }
}

fn put_zeros(out: &mut impl Write, mut count: usize) -> io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    while count > 0 {
        let some = count.min(ZEROS.len());
        out.write_all(&ZEROS[..some])?;
        count -= some;
    }
    Ok(())
}

fn put_text(out: &mut Vec<u8>, text: &str) -> io::Result<()> {
    out.write_u64::<LE>(text.len() as u64)?;
    out.write_all(text.as_bytes())
}

fn put_value(out: &mut Vec<u8>, key: &str, value: &Value) -> Result<(), Error> {
    out.write_u32::<LE>(value.type_id())?;
    match value {
        Value::U8(v) => out.write_u8(*v)?,
        Value::I8(v) => out.write_i8(*v)?,
        Value::U16(v) => out.write_u16::<LE>(*v)?,
        Value::I16(v) => out.write_i16::<LE>(*v)?,
        Value::U32(v) => out.write_u32::<LE>(*v)?,
        Value::I32(v) => out.write_i32::<LE>(*v)?,
        Value::F32(v) => out.write_f32::<LE>(*v)?,
        Value::Bool(v) => out.write_u8((*v).into())?,
        Value::String(v) => put_text(out, v)?,
        Value::Array(v) => put_array(out, key, v, 1)?,
        Value::U64(v) => out.write_u64::<LE>(*v)?,
        Value::I64(v) => out.write_i64::<LE>(*v)?,
        Value::F64(v) => out.write_f64::<LE>(*v)?,
    }
    Ok(())
}

fn put_array(out: &mut Vec<u8>, key: &str, array: &Array, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::Depth { key: key.into() });
    }
    out.write_u32::<LE>(array.item_type_id())?;
    out.write_u64::<LE>(array.len() as u64)?;
    match array {
        Array::U8(items) => out.write_all(items)?,
        Array::I8(items) => items.iter().try_for_each(|&v| out.write_i8(v))?,
        Array::U16(items) => items.iter().try_for_each(|&v| out.write_u16::<LE>(v))?,
        Array::I16(items) => items.iter().try_for_each(|&v| out.write_i16::<LE>(v))?,
        Array::U32(items) => items.iter().try_for_each(|&v| out.write_u32::<LE>(v))?,
        Array::I32(items) => items.iter().try_for_each(|&v| out.write_i32::<LE>(v))?,
        Array::F32(items) => items.iter().try_for_each(|&v| out.write_f32::<LE>(v))?,
        Array::Bool(items) => items.iter().try_for_each(|&v| out.write_u8(v.into()))?,
        Array::String(items) => items.iter().try_for_each(|v| put_text(out, v))?,
        Array::Array(items) => items.iter().try_for_each(|v| put_array(out, key, v, depth + 1))?,
        Array::U64(items) => items.iter().try_for_each(|&v| out.write_u64::<LE>(v))?,
        Array::I64(items) => items.iter().try_for_each(|&v| out.write_i64::<LE>(v))?,
        Array::F64(items) => items.iter().try_for_each(|&v| out.write_f64::<LE>(v))?,
    }
    Ok(())
}

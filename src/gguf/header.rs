//! Reading: a checked parser over bytes.

use std::collections::HashMap;

use byteorder::{ByteOrder, LittleEndian as LE};
use serde::Serialize;

use super::value::ARRAY_ID;
use super::{
    Array, Error, MAGIC, MAX_DEPTH, MAX_DIMS, Metadata, TensorType, VERSION, Value, alignment, check_name_length,
    tensor_bytes,
};

/// Everything in a file but the tensors' data.
///
/// Serialises with the fields `version`, `alignment`, `metadata`, `tensors` and `data_offset`.
#[derive(Debug, Clone, Serialize)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// What every tensor's offset is a multiple of: a power of two.
    pub alignment: usize,
    /// Keys and values in the order of the file.
    pub metadata: Metadata,
    /// Tensors in the order of the file.
    pub tensors: Vec<TensorInfo>,
    /// Where the data section begins, in bytes from the start of the file.
    pub data_offset: usize,
    /// Tensor name to its place in `tensors`.
    #[serde(skip)]
    places: HashMap<String, usize>,
}

/// One tensor: what it is, and where in the file it lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// Name, unique in the file.
    pub name: String,
    /// How the values are stored.
    #[serde(rename = "type")]
    pub ty: TensorType,
    /// Shape in ggml's order: `dims[0]` is the row length. One to four entries, none of them 0.
    pub dims: Vec<usize>,
    /// Where the data begins, in bytes from the start of the file: a multiple of the file's alignment, which
    /// may be as small as 1.
    pub offset: usize,
    /// Size of the data. `offset + bytes` lies inside the file that was parsed.
    pub bytes: usize,
}

impl TensorInfo {
    /// The tensor's data in the bytes of its file; `None` if these are fewer than the parsed ones.
    pub fn data<'a>(&self, file: &'a [u8]) -> Option<&'a [u8]> {
        file.get(self.offset..)?.get(..self.bytes)
    }
}

// The least that each thing takes in a file. A count times this must fit in the bytes left.
/// Key length, one byte of key, type, one byte of value.
const MIN_KEY_VALUE: u64 = 8 + 1 + 4 + 1;
/// Name length, one byte of name, number of dimensions, one dimension, type, offset.
const MIN_TENSOR: u64 = 8 + 1 + 4 + 8 + 4 + 8;
/// The length before each string.
const MIN_STRING: u64 = 8;
/// The type and count before each array.
const MIN_ARRAY: u64 = 4 + 8;

impl Header {
    /// Reads the header at the start of `file`, which must be the whole file: the data of every tensor is
    /// checked to lie inside it and apart from the others, but not looked at. Time and memory are linear in
    /// the size of the header.
    ///
    /// Accepted beyond what ggml writes: tensors in another order than their data, gaps between them, nothing
    /// after the last one's data (ggml pads it), and anything after that.
    ///
    /// # Errors
    /// The file is not GGUF of version 2 or 3 in little-endian order, is damaged, or is shorter than its
    /// header says; see [`Error`].
    pub fn parse(file: &[u8]) -> Result<Self, Error> {
        let mut input = Cursor { file, at: 0 };

        let magic = file.get(..MAGIC.len()).unwrap_or(file);
        if magic != MAGIC {
            return Err(Error::NotGguf { found: magic.to_vec() });
        }
        input.at = MAGIC.len();

        let version = input.number("the version", LE::read_u32)?;
        if version != 0 && version & 0xffff == 0 {
            return Err(Error::BigEndian);
        }
        if version != 2 && version != VERSION {
            return Err(Error::Version { found: version });
        }
        let tensor_count = input.number("the number of tensors", LE::read_u64)?;
        let key_count = input.number("the number of metadata keys", LE::read_u64)?;
        let tensor_count = input.check_count("the list of tensors", tensor_count, MIN_TENSOR)?;
        let key_count = input.check_count("the metadata", key_count, MIN_KEY_VALUE)?;

        let mut metadata = Metadata::new();
        for _ in 0..key_count {
            let key = input.name("a metadata key")?;
            if metadata.contains(key) {
                return Err(Error::DuplicateKey { key: key.into() });
            }
            let value = input.value(key)?;
            metadata.insert(key, value);
        }
        let alignment = alignment(&metadata)?;

        let mut tensors = Vec::with_capacity(tensor_count);
        let mut places = HashMap::with_capacity(tensor_count);
        for place in 0..tensor_count {
            let tensor = input.tensor(alignment)?;
            if places.insert(tensor.name.clone(), place).is_some() {
                return Err(Error::DuplicateTensor { tensor: tensor.name });
            }
            tensors.push(tensor);
        }

        let data_offset = input.at.next_multiple_of(alignment);
        let tensors = place_in_file(tensors, data_offset, file.len())?;
        Ok(Self { version, alignment, metadata, tensors, data_offset, places })
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let &place = self.places.get(name)?;
        self.tensors.get(place)
    }
}

/// A tensor whose offset is still the file's own word: relative to the data section and not yet checked
/// against the file's size.
struct RawTensor {
    name: String,
    ty: TensorType,
    dims: Vec<usize>,
    offset: u64,
    bytes: usize,
}

/// Turns offsets into places in the file, and checks that all of them lie inside it and none overlap.
fn place_in_file(raw: Vec<RawTensor>, data_offset: usize, file_len: usize) -> Result<Vec<TensorInfo>, Error> {
    // A sum that does not fit is farther out than any file's end, so saturating is enough.
    let start = |t: &RawTensor| (data_offset as u64).saturating_add(t.offset);
    let end = |t: &RawTensor| start(t).saturating_add(t.bytes as u64);

    if let Some(last) = raw.iter().max_by_key(|t| end(t))
        && end(last) > file_len as u64
    {
        return Err(Error::FileTooShort { tensor: last.name.clone(), expected: end(last), found: file_len as u64 });
    }
    let mut by_offset: Vec<&RawTensor> = raw.iter().collect();
    by_offset.sort_by_key(|t| t.offset);
    for pair in by_offset.windows(2) {
        if let [first, second] = pair
            && end(first) > start(second)
        {
            return Err(Error::Overlap { first: first.name.clone(), second: second.name.clone() });
        }
    }
    Ok(raw
        .into_iter()
        .map(|t| TensorInfo {
            // Not larger than `file_len`, as checked above, so the cast loses nothing.
            offset: start(&t) as usize,
            name: t.name,
            ty: t.ty,
            dims: t.dims,
            bytes: t.bytes,
        })
        .collect())
}

/// A place in the file, which only moves forward over bytes that are there.
struct Cursor<'a> {
    file: &'a [u8],
    /// At most `file.len()`.
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.file.len() - self.at
    }

    fn truncated(&self, what: &'static str, needed: u64) -> Error {
        Error::Truncated { what, at: self.at, needed, left: self.left() }
    }

    /// The next `count` bytes.
    fn take(&mut self, what: &'static str, count: u64) -> Result<&'a [u8], Error> {
        let taken = usize::try_from(count)
            .ok()
            .and_then(|count| self.file.get(self.at..)?.get(..count))
            .ok_or_else(|| self.truncated(what, count))?;
        self.at += taken.len();
        Ok(taken)
    }

    /// A number, through one of [`LE`]'s readers.
    fn number<T>(&mut self, what: &'static str, read: fn(&[u8]) -> T) -> Result<T, Error> {
        self.take(what, size_of::<T>() as u64).map(read)
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, Error> {
        self.number(what, |bytes| bytes[0])
    }

    /// A count as a `usize`, if so many things of at least `each` bytes can stand in what is left.
    fn check_count(&self, what: &'static str, count: u64, each: u64) -> Result<usize, Error> {
        let needed = count.saturating_mul(each);
        match usize::try_from(count) {
            Ok(count) if needed <= self.left() as u64 => Ok(count),
            _ => Err(self.truncated(what, needed)),
        }
    }

    /// Text with its length before it.
    fn text(&mut self, what: &'static str) -> Result<&'a str, Error> {
        let len = self.number(what, LE::read_u64)?;
        self.text_of(what, len)
    }

    fn text_of(&mut self, what: &'static str, len: u64) -> Result<&'a str, Error> {
        let at = self.at;
        let bytes = self.take(what, len)?;
        std::str::from_utf8(bytes).map_err(|_| Error::Utf8 { what, at })
    }

    /// A key or a tensor's name.
    fn name(&mut self, what: &'static str) -> Result<&'a str, Error> {
        let len = self.number(what, LE::read_u64)?;
        check_name_length(what, len)?;
        self.text_of(what, len)
    }

    /// A value with its type before it.
    fn value(&mut self, key: &str) -> Result<Value, Error> {
        const WHAT: &str = "a metadata value";
        let id = self.number("the type of a metadata value", LE::read_u32)?;
        Ok(match id {
            0 => Value::U8(self.byte(WHAT)?),
            1 => Value::I8(self.byte(WHAT)? as i8),
            2 => Value::U16(self.number(WHAT, LE::read_u16)?),
            3 => Value::I16(self.number(WHAT, LE::read_i16)?),
            4 => Value::U32(self.number(WHAT, LE::read_u32)?),
            5 => Value::I32(self.number(WHAT, LE::read_i32)?),
            6 => Value::F32(self.number(WHAT, LE::read_f32)?),
            7 => Value::Bool(truth(key, self.byte(WHAT)?)?),
            8 => Value::String(self.text(WHAT)?.into()),
            ARRAY_ID => Value::Array(self.array(key, 1)?),
            10 => Value::U64(self.number(WHAT, LE::read_u64)?),
            11 => Value::I64(self.number(WHAT, LE::read_i64)?),
            12 => Value::F64(self.number(WHAT, LE::read_f64)?),
            found => {
                return Err(Error::ValueType { key: key.into(), found });
            }
        })
    }

    /// An array with its type and count before it; `depth` is 1 for one that is not in another.
    fn array(&mut self, key: &str, depth: usize) -> Result<Array, Error> {
        const WHAT: &str = "a metadata array";
        if depth > MAX_DEPTH {
            return Err(Error::Depth { key: key.into() });
        }
        let id = self.number("the type of a metadata array", LE::read_u32)?;
        let count = self.number("the length of a metadata array", LE::read_u64)?;
        Ok(match id {
            0 => Array::U8(self.take(WHAT, count)?.to_vec()),
            1 => Array::I8(self.take(WHAT, count)?.iter().map(|&b| b as i8).collect()),
            2 => Array::U16(self.numbers(count, LE::read_u16_into)?),
            3 => Array::I16(self.numbers(count, LE::read_i16_into)?),
            4 => Array::U32(self.numbers(count, LE::read_u32_into)?),
            5 => Array::I32(self.numbers(count, LE::read_i32_into)?),
            6 => Array::F32(self.numbers(count, LE::read_f32_into)?),
            7 => {
                let bytes = self.take(WHAT, count)?.iter();
                Array::Bool(bytes.map(|&b| truth(key, b)).collect::<Result<_, _>>()?)
            }
            8 => {
                let count = self.check_count(WHAT, count, MIN_STRING)?;
                let mut items = Vec::with_capacity(count);
                for _ in 0..count {
                    items.push(self.text("a string in a metadata array")?.to_owned());
                }
                Array::String(items)
            }
            ARRAY_ID => {
                let count = self.check_count(WHAT, count, MIN_ARRAY)?;
                let mut items = Vec::with_capacity(count);
                for _ in 0..count {
                    items.push(self.array(key, depth + 1)?);
                }
                Array::Array(items)
            }
            10 => Array::U64(self.numbers(count, LE::read_u64_into)?),
            11 => Array::I64(self.numbers(count, LE::read_i64_into)?),
            12 => Array::F64(self.numbers(count, LE::read_f64_into)?),
            found => {
                return Err(Error::ValueType { key: key.into(), found });
            }
        })
    }

    /// An array's numbers, through one of [`LE`]'s readers.
    fn numbers<T: Clone + Default>(&mut self, count: u64, read: fn(&[u8], &mut [T])) -> Result<Vec<T>, Error> {
        let bytes = self.take("a metadata array", count.saturating_mul(size_of::<T>() as u64))?;
        let mut items = vec![T::default(); bytes.len() / size_of::<T>()];
        read(bytes, &mut items);
        Ok(items)
    }

    /// A tensor's entry in the list.
    fn tensor(&mut self, alignment: usize) -> Result<RawTensor, Error> {
        let name = self.name("a tensor name")?;
        let dim_count = self.number("the number of a tensor's dimensions", LE::read_u32)?;
        if dim_count as usize > MAX_DIMS {
            return Err(Error::Dims { tensor: name.into(), found: dim_count.into() });
        }
        let mut shape = [0; MAX_DIMS];
        let shape = &mut shape[..dim_count as usize];
        for dim in shape.iter_mut() {
            *dim = self.number("a tensor's shape", LE::read_u64)?;
        }
        let id = self.number("a tensor's type", LE::read_u32)?;
        let ty = TensorType::from_id(id).ok_or_else(|| Error::TensorType { tensor: name.into(), found: id })?;
        let bytes = tensor_bytes(name, ty, shape)?;
        let offset = self.number("a tensor's offset", LE::read_u64)?;
        if !offset.is_multiple_of(alignment as u64) {
            return Err(Error::Misaligned { tensor: name.into(), found: offset, alignment });
        }
        Ok(RawTensor {
            name: name.into(),
            ty,
            // The product of the dimensions fits in `usize` and none is 0, so each fits.
            dims: shape.iter().map(|&dim| dim as usize).collect(),
            offset,
            bytes,
        })
    }
}

/// A stored truth value.
fn truth(key: &str, byte: u8) -> Result<bool, Error> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(Error::Bool { key: key.into(), found }),
    }
}

//! PyTorch files (`.pt`, `.pth`, `.bin`), read without running what is in them.
//!
//! Such a file is a zip archive with the values of the tensors, as they lie in memory, and a pickle that names and
//! shapes them. A pickle is a program and can do anything to who runs it; here it is only looked at. It may hold a dict
//! of tensors, or such a dict under `model`, `state_dict` or `model_state_dict` among other things, as training programs
//! write it. Numbers, strings, lists and dicts beside the tensors are passed over. Anything else that the pickle asks for
//! is an error which names it.
//!
//! All sizes are checked against the file when it is opened, and values are read where they lie. Tensors may share
//! values, and may be transposed or cut out of others.

mod container;
mod error;
mod pickle;
mod value;

pub use error::TorchError;

use super::{TensorView, error::shorten};
use container::Container;
use pickle::Pickle;
use safetensors::Dtype;
use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    ops::Range,
};
use value::{Described, Storage, Value};

/// The most dimensions of a tensor; PyTorch has the same limit.
const DIMENSION_LIMIT: usize = 64;

/// Keys under which training programs put the dict of tensors.
const MODEL_KEYS: [&str; 3] = ["model", "state_dict", "model_state_dict"];

/// What a PyTorch file says about its tensors; their values stay in the file.
#[derive(Debug)]
pub struct TorchFile {
    tensors: BTreeMap<String, Placed>,
}

/// Where a tensor lies.
#[derive(Debug)]
struct Placed {
    dtype: Dtype,
    shape: Vec<usize>,
    /// In values, where the tensor is not contiguous.
    strides: Option<Vec<usize>>,
    /// From its first value to its last, in the file.
    bytes: Range<usize>,
}

impl TorchFile {
    /// Reads which tensors there are from the contents of a file.
    ///
    /// # Errors
    /// The file is no PyTorch file or from before version 1.6, is malformed, or asks for something else than tensors.
    pub fn parse(file: &[u8]) -> Result<Self, TorchError> {
        let Container { pickle, storages } = Container::parse(file)?;
        let (pickle, root) = Pickle::parse(pickle)?;
        let pairs = pickle.dict(root).ok_or_else(|| TorchError::NotADict { found: root.kind() })?;
        let inner = MODEL_KEYS.iter().find_map(|name| {
            pairs.iter().find_map(|&(key, value)| match key {
                Value::Str(key) if key == *name => pickle.dict(value),
                _ => None,
            })
        });
        let pairs = inner.unwrap_or(pairs);
        let mut placer = Placer { pickle: &pickle, storages, declared: HashMap::new() };
        let mut tensors = BTreeMap::new();
        for &(key, value) in pairs {
            let Some(tensor) = pickle.tensor(value) else { continue };
            let Value::Str(name) = key else {
                return Err(TorchError::Key { what: key.kind().to_owned(), twice: false });
            };
            match tensors.entry(name.to_owned()) {
                Entry::Vacant(vacant) => vacant.insert(placer.place(name, tensor)?),
                Entry::Occupied(_) => {
                    return Err(TorchError::Key { what: format!("{:?}", shorten(name)), twice: true });
                }
            };
        }
        if tensors.is_empty() {
            return Err(TorchError::NoTensors { keys: keys_text(pairs) });
        }
        Ok(Self { tensors })
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of this name in `file`, which has to be what was parsed. `None` if there is none, or if `file` is
    /// shorter.
    pub fn tensor<'a>(&'a self, file: &'a [u8], name: &str) -> Option<TensorView<'a>> {
        let (name, placed) = self.tensors.get_key_value(name)?;
        let data = file.get(placed.bytes.clone())?;
        let (shape, strides) = (placed.shape.clone(), placed.strides.clone());
        Some(TensorView { name, dtype: placed.dtype, shape, data, offset: placed.bytes.start, strides })
    }
}

/// The first few keys of a dict, for a message.
fn keys_text(pairs: &[(Value<'_>, Value<'_>)]) -> String {
    if pairs.is_empty() {
        return "none".to_owned();
    }
    let shown = pairs.iter().take(8).map(|(key, _)| match key {
        Value::Str(key) => format!("{:?}", shorten(key)),
        other => other.kind().to_owned(),
    });
    let more = if pairs.len() > 8 { ", ..." } else { "" };
    shorten(&shown.collect::<Vec<_>>().join(", ")) + more
}

/// Finds the bytes of tensors.
struct Placer<'p, 'a> {
    pickle: &'p Pickle<'a>,
    storages: HashMap<Vec<u8>, Range<usize>>,
    /// How each storage was described first.
    declared: HashMap<&'a str, (Dtype, i64)>,
}

impl<'a> Placer<'_, 'a> {
    fn place(&mut self, name: &str, tensor: &Described<'a>) -> Result<Placed, TorchError> {
        let storage = self.storage(name, &tensor.storage)?;
        let value_bytes = tensor.storage.dtype.bitsize() / 8;
        self.layout(tensor, storage, value_bytes)
            .map_err(|problem| TorchError::Layout { tensor: shorten(name), problem })
    }

    /// The bytes of a storage; they are as many as the pickle says.
    fn storage(&mut self, name: &str, storage: &Storage<'a>) -> Result<Range<usize>, TorchError> {
        let Storage { dtype, key, values } = *storage;
        let bytes = self
            .storages
            .get(key.as_bytes())
            .ok_or_else(|| TorchError::NoStorage { tensor: shorten(name), key: shorten(key) })?;
        let expected = usize::try_from(values).ok().and_then(|values| values.checked_mul(dtype.bitsize() / 8));
        let first = *self.declared.entry(key).or_insert((dtype, values));
        if expected != Some(bytes.len()) || first != (dtype, values) {
            return Err(TorchError::StorageSize {
                tensor: shorten(name),
                key: shorten(key),
                expected: values,
                dtype,
                found: bytes.len() as u64,
            });
        }
        Ok(bytes.clone())
    }

    /// Checks that all values of a tensor lie in its storage.
    fn layout(
        &self,
        tensor: &Described<'a>,
        storage: Range<usize>,
        value_bytes: usize,
    ) -> Result<Placed, &'static str> {
        const OUTSIDE: &str = "reaches beyond the values that are stored for it";
        let sizes = |value, problem| {
            let tuple = self.pickle.tuple(value).ok_or(problem)?;
            if tuple.len() > DIMENSION_LIMIT {
                return Err("has more than 64 dimensions");
            }
            let size = |value: &Value<'a>| match value {
                Value::Int(int) => usize::try_from(*int).map_err(|_| problem),
                _ => Err(problem),
            };
            tuple.iter().map(size).collect::<Result<Vec<usize>, _>>()
        };
        let shape = sizes(tensor.shape, "has a shape which is no tuple of sizes")?;
        let strides = sizes(tensor.strides, "has strides which are no tuple of sizes")?;
        if shape.len() != strides.len() {
            return Err("has a shape and strides of different lengths");
        }
        let offset = usize::try_from(tensor.offset).map_err(|_| "begins before its storage")?;
        let stored = storage.len() / value_bytes;

        // A dimension of 0 makes the tensor empty, however large the others are.
        let values = if shape.contains(&0) {
            0
        } else {
            shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim)).ok_or(OUTSIDE)?
        };
        let last = shape
            .iter()
            .zip(&strides)
            .try_fold(0usize, |last, (&dim, &stride)| last.checked_add(stride.checked_mul(dim.saturating_sub(1))?));
        let span = if values == 0 { 0 } else { last.and_then(|last| last.checked_add(1)).ok_or(OUTSIDE)? };
        let end = offset.checked_add(span).filter(|&end| end <= stored).ok_or(OUTSIDE)?;
        if values > span {
            return Err("repeats its values, as expand() does; save it after contiguous()");
        }

        let mut contiguous = true;
        let mut expected = 1;
        for (&dim, &stride) in shape.iter().zip(&strides).rev() {
            contiguous &= dim == 1 || stride == expected;
            // Only in an empty tensor can this be too large.
            expected = expected.saturating_mul(dim);
        }
        Ok(Placed {
            dtype: tensor.storage.dtype,
            shape,
            strides: (values > 0 && !contiguous).then_some(strides),
            // `end` values fit into the storage, so this does not overflow.
            bytes: storage.start + offset * value_bytes..storage.start + end * value_bytes,
        })
    }
}

#[cfg(test)]
mod tests;

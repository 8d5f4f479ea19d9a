//! Norm weights and biases: small, used as f32, and not looked at before they are needed.

use crate::files::Bytes;
use crate::quant::BlockFormat;
use std::ops::{Deref, Range};
use std::sync::OnceLock;

/// A vector of a model file. It derefs to its values, `[len]` f32, which are read from the file at first use, so that opening a
/// model touches no page but its header's.
#[derive(Clone)]
pub struct Vector {
    stored: Option<Stored>,
    len: usize,
    values: OnceLock<Box<[f32]>>,
}

/// Where the values of a vector are.
#[derive(Clone)]
struct Stored {
    bytes: Bytes,
    data: Range<usize>,
    format: &'static dyn BlockFormat,
}

impl Vector {
    /// `len` values stored in `format` at `data`, which is inside `bytes` and has the size that the format needs.
    pub(super) fn new(bytes: Bytes, data: Range<usize>, len: usize, format: &'static dyn BlockFormat) -> Self {
        Self { stored: Some(Stored { bytes, data, format }), len, values: OnceLock::new() }
    }

    /// `len` ones that are in no file.
    pub(crate) fn ones(len: usize) -> Self {
        Self { stored: None, len, values: OnceLock::new() }
    }

    /// Values from a file's metadata.
    pub(crate) fn of(values: &[f32]) -> Self {
        Self { stored: None, len: values.len(), values: OnceLock::from(Box::from(values)) }
    }
}

impl Deref for Vector {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.values.get_or_init(|| {
            let mut values = vec![1.0; self.len].into_boxed_slice();
            if let Some(Stored { bytes, data, format }) = &self.stored {
                format.dequantize(&bytes[data.clone()], &mut values);
            }
            values
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::TensorType;
    use crate::quant;

    #[test]
    fn values_are_read_at_first_use() {
        let bytes = Bytes::from([1.5f32, -2.0, 0.25].map(f32::to_le_bytes).concat());
        let format = quant::format(TensorType::F32).unwrap();
        let vector = Vector::new(bytes, 4..12, 2, format);
        assert!(vector.values.get().is_none());
        assert_eq!(*vector, [-2.0, 0.25]);
        assert!(vector.values.get().is_some());
    }
}

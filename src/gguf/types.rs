//! Tensor types: a stand-in with the variants that `quant` and `checkpoint` use.

use std::fmt;

/// How the values of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
#[non_exhaustive]
pub enum TensorType {
    /// 32 bit float.
    F32,
    /// 16 bit IEEE float.
    F16,
    /// Blocks of 32 values of 4 bits with one scale.
    Q4_0,
    /// Blocks of 32 values of 4 bits with a scale and a minimum.
    Q4_1,
    /// Blocks of 32 values of 8 bits with one scale.
    Q8_0,
    /// bfloat16.
    BF16,
}

impl TensorType {
    /// The type with ggml's number `id`.
    pub fn from_id(id: u32) -> Option<Self> {
        [
            Self::F32,
            Self::F16,
            Self::Q4_0,
            Self::Q4_1,
            Self::Q8_0,
            Self::BF16,
        ]
        .into_iter()
        .find(|ty| ty.id() == id)
    }

    /// ggml's number of the type.
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 8,
            Self::BF16 => 30,
        }
    }

    /// ggml's name of the type.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q8_0 => "q8_0",
            Self::BF16 => "bf16",
        }
    }

    /// Values in a block.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
        }
    }

    /// Bytes in a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
        }
    }

    /// Bytes in a row of `k` values; `None` unless `k` is a whole number of blocks and the result fits.
    pub fn row_bytes(self, k: usize) -> Option<usize> {
        (k.is_multiple_of(self.block_len()))
            .then(|| (k / self.block_len()).checked_mul(self.block_bytes()))?
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

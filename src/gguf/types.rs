//! The tensor types of ggml: their ids in a file, names and block sizes.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use thiserror::Error;

/// Makes the enum and its lookups from one table, so that no type can miss a property.
macro_rules! tensor_types {
    ($($variant:ident = $id:literal, $name:literal, $len:literal values in $bytes:literal bytes, $doc:literal;)*) => {
        /// How a tensor's values are stored. Variants, ids and names are those of `ggml_type` in ggml.h.
        ///
        /// A type is known here when its size is known; that says nothing about whether its values can be
        /// computed with.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[expect(non_camel_case_types, reason = "the formats are known by ggml's names")]
        #[non_exhaustive]
        pub enum TensorType {
            $(#[doc = $doc] $variant,)*
        }

        impl TensorType {
            /// Every type, in order of id.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The type with this id in a file; `None` for ids that ggml dropped or that are newer than this
            /// table.
            pub const fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The id that stands in a file.
            pub const fn id(self) -> u32 {
                match self { $(Self::$variant => $id,)* }
            }

            /// ggml's name: `"f16"`, `"q4_0"`, `"q4_K"`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Values per block: 1 for plain numbers, 32 to 256 for the block formats.
            pub const fn block_len(self) -> usize {
                match self { $(Self::$variant => $len,)* }
            }

            /// Bytes per block.
            pub const fn block_bytes(self) -> usize {
                match self { $(Self::$variant => $bytes,)* }
            }
        }
    };
}

// Sizes: the static asserts beside each `block_*` struct in ggml-common.h.
tensor_types! {
    F32 = 0, "f32", 1 values in 4 bytes, "32-bit float.";
    F16 = 1, "f16", 1 values in 2 bytes, "IEEE 16-bit float.";
    Q4_0 = 2, "q4_0", 32 values in 18 bytes, "4 bits, one f16 scale per block.";
    Q4_1 = 3, "q4_1", 32 values in 20 bytes, "4 bits, f16 scale and minimum per block.";
    Q5_0 = 6, "q5_0", 32 values in 22 bytes, "5 bits, one f16 scale per block.";
    Q5_1 = 7, "q5_1", 32 values in 24 bytes, "5 bits, f16 scale and minimum per block.";
    Q8_0 = 8, "q8_0", 32 values in 34 bytes, "8 bits, one f16 scale per block.";
    Q8_1 = 9, "q8_1", 32 values in 36 bytes, "8 bits, f16 scale and scaled sum; ggml's activation format, not meant for files.";
    Q2_K = 10, "q2_K", 256 values in 84 bytes, "2 bits in super-blocks.";
    Q3_K = 11, "q3_K", 256 values in 110 bytes, "3 bits in super-blocks.";
    Q4_K = 12, "q4_K", 256 values in 144 bytes, "4 bits in super-blocks.";
    Q5_K = 13, "q5_K", 256 values in 176 bytes, "5 bits in super-blocks.";
    Q6_K = 14, "q6_K", 256 values in 210 bytes, "6 bits in super-blocks.";
    Q8_K = 15, "q8_K", 256 values in 292 bytes, "8 bits, f32 scale and sums; ggml's activation format, not meant for files.";
    IQ2_XXS = 16, "iq2_xxs", 256 values in 66 bytes, "Codebook, 2.06 bits per value.";
    IQ2_XS = 17, "iq2_xs", 256 values in 74 bytes, "Codebook, 2.31 bits per value.";
    IQ3_XXS = 18, "iq3_xxs", 256 values in 98 bytes, "Codebook, 3.06 bits per value.";
    IQ1_S = 19, "iq1_s", 256 values in 50 bytes, "Codebook, 1.56 bits per value.";
    IQ4_NL = 20, "iq4_nl", 32 values in 18 bytes, "4 bits on a non-linear scale.";
    IQ3_S = 21, "iq3_s", 256 values in 110 bytes, "Codebook, 3.44 bits per value.";
    IQ2_S = 22, "iq2_s", 256 values in 82 bytes, "Codebook, 2.56 bits per value.";
    IQ4_XS = 23, "iq4_xs", 256 values in 136 bytes, "4 bits on a non-linear scale, in super-blocks.";
    I8 = 24, "i8", 1 values in 1 bytes, "8-bit signed integer.";
    I16 = 25, "i16", 1 values in 2 bytes, "16-bit signed integer.";
    I32 = 26, "i32", 1 values in 4 bytes, "32-bit signed integer.";
    I64 = 27, "i64", 1 values in 8 bytes, "64-bit signed integer.";
    F64 = 28, "f64", 1 values in 8 bytes, "64-bit float.";
    IQ1_M = 29, "iq1_m", 256 values in 56 bytes, "Codebook, 1.75 bits per value.";
    BF16 = 30, "bf16", 1 values in 2 bytes, "The upper half of a 32-bit float.";
    TQ1_0 = 34, "tq1_0", 256 values in 54 bytes, "Ternary, 1.69 bits per value.";
    TQ2_0 = 35, "tq2_0", 256 values in 66 bytes, "Ternary, 2.06 bits per value.";
    MXFP4 = 39, "mxfp4", 32 values in 17 bytes, "4-bit float, one power-of-two scale per block.";
    NVFP4 = 40, "nvfp4", 64 values in 36 bytes, "4-bit float, one 8-bit float scale per 16 values.";
    Q1_0 = 41, "q1_0", 128 values in 18 bytes, "1 bit, one f16 scale per block.";
    Q2_0 = 42, "q2_0", 64 values in 18 bytes, "2 bits, one f16 scale per block.";
}

impl TensorType {
    /// Bytes of a row of `k` values; `None` unless `k` is a whole number of blocks and the size fits in
    /// `usize`.
    pub const fn row_bytes(self, k: usize) -> Option<usize> {
        if !k.is_multiple_of(self.block_len()) {
            return None;
        }
        (k / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Storage cost in bits per value, scales included: 4.5 for `q4_0`.
    pub fn bits_per_value(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Serialises as the name.
impl Serialize for TensorType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A name that is no tensor type's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown tensor type {name:?}; the types are {}", names())]
pub struct UnknownType {
    /// The name as given.
    pub name: String,
}

fn names() -> String {
    TensorType::ALL.iter().map(|ty| ty.name()).collect::<Vec<_>>().join(", ")
}

/// Parses a name in either case: `Q4_K` is `q4_K`.
impl FromStr for TensorType {
    type Err = UnknownType;

    fn from_str(name: &str) -> Result<Self, UnknownType> {
        Self::ALL
            .iter()
            .copied()
            .find(|ty| ty.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| UnknownType { name: name.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_lead_back() {
        for &ty in TensorType::ALL {
            assert_eq!(TensorType::from_id(ty.id()), Some(ty));
            assert_eq!(ty.name().parse(), Ok(ty));
            assert_eq!(ty.to_string().to_uppercase().parse(), Ok(ty));
        }
        assert!(TensorType::ALL.windows(2).all(|pair| pair[0].id() < pair[1].id()));
    }

    #[test]
    fn dropped_and_future_ids_are_unknown() {
        for id in [4, 5, 31, 32, 33, 36, 37, 38, 43, 142, u32::MAX] {
            assert_eq!(TensorType::from_id(id), None, "{id}");
        }
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(TensorType::F32.row_bytes(3), Some(12));
        assert_eq!(TensorType::Q4_0.row_bytes(64), Some(36));
        assert_eq!(TensorType::Q4_0.row_bytes(33), None);
        assert_eq!(TensorType::Q6_K.row_bytes(5280), None);
        assert_eq!(TensorType::Q6_K.row_bytes(17920), Some(70 * 210));
        assert_eq!(TensorType::F32.row_bytes(usize::MAX), None);
        assert_eq!(TensorType::Q4_0.row_bytes(0), Some(0));
        assert_eq!(TensorType::Q4_0.bits_per_value(), 4.5);
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = "q9_9".parse::<TensorType>().unwrap_err();
        assert!(error.to_string().contains("q8_0, "), "{error}");
    }
}

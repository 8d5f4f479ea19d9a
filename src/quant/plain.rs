//! f32, f16 and bf16: one value to a block, each rounded to nearest with ties to even.
//!
//! Importance is ignored: every value is stored as well as the type can. Non-finite values keep their class: NaN stays
//! NaN, an infinity stays itself. A finite value past the type's range becomes an infinity of its sign, which
//! [`quantize_rows`](super::quantize_rows) refuses beforehand.

use super::Coder;
use crate::{float16, gguf::TensorType};

/// 32 bit float, little endian.
pub(super) struct F32;

/// IEEE half precision.
pub(super) struct F16;

/// bfloat16: the upper half of an f32.
pub(super) struct BF16;

impl Coder for F32 {
    fn tensor_type(&self) -> TensorType {
        TensorType::F32
    }

    fn limit(&self) -> f32 {
        f32::MAX
    }

    #[inline(always)]
    fn quantize<const L: usize>(&self, src: &[f32], dst: &mut [u8], _: Option<&[f32]>) {
        for (bytes, x) in dst.as_chunks_mut().0.iter_mut().zip(src) {
            *bytes = x.to_le_bytes();
        }
    }

    #[inline(always)]
    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        for (x, &bytes) in dst.iter_mut().zip(src.as_chunks().0) {
            *x = f32::from_le_bytes(bytes);
        }
    }
}

impl Coder for F16 {
    fn tensor_type(&self) -> TensorType {
        TensorType::F16
    }

    fn limit(&self) -> f32 {
        65520.0f32.next_down()
    }

    #[inline(always)]
    fn quantize<const L: usize>(&self, src: &[f32], dst: &mut [u8], _: Option<&[f32]>) {
        for (bytes, &x) in dst.as_chunks_mut().0.iter_mut().zip(src) {
            *bytes = float16::f32_to_f16(x).to_le_bytes();
        }
    }

    #[inline(always)]
    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        for (x, &bytes) in dst.iter_mut().zip(src.as_chunks().0) {
            *x = float16::f16_to_f32(u16::from_le_bytes(bytes));
        }
    }
}

impl Coder for BF16 {
    fn tensor_type(&self) -> TensorType {
        TensorType::BF16
    }

    fn limit(&self) -> f32 {
        // The largest f32 that rounds to the largest finite bfloat16, 0x7f7f.
        f32::from_bits(0x7f7f_7fff)
    }

    #[inline(always)]
    fn quantize<const L: usize>(&self, src: &[f32], dst: &mut [u8], _: Option<&[f32]>) {
        for (bytes, &x) in dst.as_chunks_mut().0.iter_mut().zip(src) {
            *bytes = float16::f32_to_bf16(x).to_le_bytes();
        }
    }

    #[inline(always)]
    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        for (x, &bytes) in dst.iter_mut().zip(src.as_chunks().0) {
            *x = float16::bf16_to_f32(u16::from_le_bytes(bytes));
        }
    }
}

//! q8_0: blocks of 32 values, each `d * q` with `q` in -127..=127.
//!
//! ```text
//! byte 0..2   d   f16, the largest magnitude / 127
//! byte 2..34  q   i8 [32]
//! ```
//! Importance is ignored, as in ggml: the scale is fixed by the largest value. A non-finite value in a block makes the
//! whole block meaningless. Values so small that `d` is zero in f16 are read back as zero.

use super::{BlockFormat, check_lengths};
use crate::{
    float16::{f16_to_f32, f32_to_f16},
    gguf::TensorType,
};

const LEN: usize = 32;
const BYTES: usize = 2 + LEN;

/// The format; see the module.
pub(super) struct Q8_0;

impl BlockFormat for Q8_0 {
    fn tensor_type(&self) -> TensorType {
        TensorType::Q8_0
    }

    fn limit(&self) -> f32 {
        127.0 * 65504.0
    }

    fn quantize(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        check_lengths(self, src.len(), dst.len(), importance);
        for (x, block) in src.as_chunks::<LEN>().0.iter().zip(dst.as_chunks_mut::<BYTES>().0) {
            let largest = x.iter().fold(0.0f32, |m, v| if m > v.abs() { m } else { v.abs() });
            let d = largest / 127.0;
            // 1/d is infinite for the smallest subnormal d, which f16 stores as zero anyway.
            let inverse = if d == 0.0 || (1.0 / d).is_infinite() { 0.0 } else { 1.0 / d };
            let (head, q) = block.split_at_mut(2);
            head.copy_from_slice(&f32_to_f16(d).to_le_bytes());
            for (q, x) in q.iter_mut().zip(x) {
                *q = (x * inverse).round() as i8 as u8;
            }
        }
    }

    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        check_lengths(self, dst.len(), src.len(), None);
        for (block, x) in src.as_chunks::<BYTES>().0.iter().zip(dst.as_chunks_mut::<LEN>().0) {
            let [d0, d1, q @ ..] = block;
            let d = f16_to_f32(u16::from_le_bytes([*d0, *d1]));
            for (x, &q) in x.iter_mut().zip(q) {
                *x = f32::from(q as i8) * d;
            }
        }
    }
}

//! q8_0: blocks of 32 values, each `d * q` with `q` in -127..=127.
//!
//! ```text
//! byte 0..2   d   f16, the largest magnitude / 127
//! byte 2..34  q   i8 [32]
//! ```
//! Importance is ignored, as in ggml: the scale is fixed by the largest value. A non-finite value in a block makes the
//! whole block meaningless. Values so small that `d` is zero in f16 are read back as zero.

use super::{Coder, blocks, blocks_mut, half, inverse, range, round, store_half};
use crate::gguf::TensorType;

const LEN: usize = 32;

/// The format; see the module.
pub(super) struct Q8_0;

impl Coder for Q8_0 {
    fn tensor_type(&self) -> TensorType {
        TensorType::Q8_0
    }

    fn limit(&self) -> f32 {
        127.0 * 65504.0
    }

    #[inline(always)]
    fn quantize<const L: usize>(&self, src: &[f32], dst: &mut [u8], _: Option<&[f32]>) {
        for (x, block) in blocks_mut::<LEN>(TensorType::Q8_0, src, dst) {
            let (least, most) = range(x);
            let d = if most > -least { most } else { least }.abs() / 127.0;
            let inverse = inverse(d);
            store_half(block, 0, d);
            for (q, x) in block[2..].iter_mut().zip(x) {
                *q = round::low_byte(round::nearest_away(x * inverse));
            }
        }
    }

    #[inline(always)]
    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        for (block, x) in blocks::<LEN>(TensorType::Q8_0, src, dst) {
            let d = half(block, 0);
            for (x, &q) in x.iter_mut().zip(&block[2..]) {
                *x = f32::from(q as i8) * d;
            }
        }
    }
}

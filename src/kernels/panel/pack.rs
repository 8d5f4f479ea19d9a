//! From rows as they are stored to panels.

use super::PanelLayout;
use super::formats::{Bits, Shape};
use crate::gguf::TensorType;
use crate::kernels::Q8_BLOCK;

/// Weights 0 to 31 of a sub-block, four to a word.
type Words = [u32; Q8_BLOCK / 4];

fn words(bytes: &[u8; Q8_BLOCK]) -> Words {
    let mut out = Words::default();
    for (word, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    out
}

/// 16 bytes of nibbles, element `i` low and element `i + 16` high.
fn split(qs: &[u8]) -> [u8; Q8_BLOCK] {
    let mut out = [0; Q8_BLOCK];
    for (i, q) in qs.iter().enumerate() {
        out[i] = q & 15;
        out[i + 16] = q >> 4;
    }
    out
}

/// Fifth bits from the bits of a little-endian word.
fn with_fifth(mut q: [u8; Q8_BLOCK], bits: &[u8]) -> [u8; Q8_BLOCK] {
    for (i, q) in q.iter_mut().enumerate() {
        *q |= (bits[i / 8] >> (i % 8) & 1) << 4;
    }
    q
}

/// 32 bytes, the `shift`th bit on up.
fn shifted(bytes: &[u8], shift: usize, mask: u8) -> [u8; Q8_BLOCK] {
    let mut out = [0; Q8_BLOCK];
    for (out, b) in out.iter_mut().zip(bytes) {
        *out = b >> shift & mask;
    }
    out
}

/// Six bits of scale and of minimum of sub-block `j` in the twelve bytes of q4_K and q5_K.
fn k_scales(p: &[u8], j: usize) -> [u8; 2] {
    if j < 4 {
        [p[j] & 63, p[j + 4] & 63]
    } else {
        [p[j + 4] & 15 | p[j - 4] >> 6 << 4, p[j + 4] >> 4 | p[j] >> 6 << 4]
    }
}

/// One sub-block: its small scales, and its weights as numbers from zero, or signed bytes.
struct Sub {
    scales: [u8; 2],
    q: [u8; Q8_BLOCK],
}

/// Sub-block `j` of a stored block.
fn sub_block(ty: TensorType, block: &[u8], j: usize) -> Sub {
    let plain = |q| Sub { scales: [0; 2], q };
    match ty {
        TensorType::Q4_0 | TensorType::IQ4_NL => plain(split(&block[2..18])),
        TensorType::Q4_1 => plain(split(&block[4..20])),
        TensorType::Q5_0 => plain(with_fifth(split(&block[6..22]), &block[2..6])),
        TensorType::Q5_1 => plain(with_fifth(split(&block[8..24]), &block[4..8])),
        TensorType::Q8_0 => plain(shifted(&block[2..34], 0, 255)),
        TensorType::Q4_K => {
            Sub { scales: k_scales(&block[4..16], j), q: shifted(&block[16 + j / 2 * 32..][..32], j % 2 * 4, 15) }
        }
        TensorType::Q5_K => {
            let mut q = shifted(&block[48 + j / 2 * 32..][..32], j % 2 * 4, 15);
            for (q, bits) in q.iter_mut().zip(&block[16..48]) {
                *q |= (bits >> j & 1) << 4;
            }
            Sub { scales: k_scales(&block[4..16], j), q }
        }
        TensorType::Q6_K => {
            let (part, run) = (j / 4, j % 4);
            let mut q = shifted(&block[64 * part + run % 2 * 32..][..32], run / 2 * 4, 15);
            for (q, bits) in q.iter_mut().zip(&block[128 + 32 * part..][..32]) {
                *q |= (bits >> (2 * run) & 3) << 4;
            }
            Sub { scales: [block[192 + 2 * j], block[193 + 2 * j]], q }
        }
        TensorType::IQ4_XS => {
            let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * j) & 3;
            let low = block[4 + j / 2] >> (j % 2 * 4) & 15;
            let scale = (high as u8 * 16 + low).wrapping_sub(32);
            Sub { scales: [scale, 0], q: split(&block[8 + 16 * j..][..16]) }
        }
        // A layout has a block type.
        _ => plain([0; Q8_BLOCK]),
    }
}

/// Where the halves of a block are.
fn half_at(ty: TensorType) -> usize {
    if ty == TensorType::Q6_K { 208 } else { 0 }
}

pub(super) fn pack(layout: &PanelLayout, stored: &[u8], panel: &mut [u8]) {
    let &PanelLayout { ty, k, panel_rows } = layout;
    let (Some(shape), Some([halves, sub, quants])) = (Shape::of(ty), layout.parts()) else { return };
    let (block_bytes, blocks) = (ty.block_bytes(), k / ty.block_len());
    let row_bytes = blocks * block_bytes;
    assert!(stored.len().is_multiple_of(row_bytes) && stored.len() <= panel_rows * row_bytes);
    assert_eq!(panel.len(), layout.panel_bytes());
    panel.fill(0);
    let subs = ty.block_len() / Q8_BLOCK;
    for (r, row) in stored.chunks_exact(row_bytes).enumerate() {
        for (b, block) in row.chunks_exact(block_bytes).enumerate() {
            for h in 0..shape.halves {
                let (from, to) = (half_at(ty) + 2 * h, halves.start + 2 * ((b * shape.halves + h) * panel_rows + r));
                panel[to..to + 2].copy_from_slice(&block[from..from + 2]);
            }
            for j in 0..subs {
                let Sub { scales, q } = sub_block(ty, block, j);
                let at = b * subs + j;
                for (h, scale) in scales.iter().take(shape.sub).enumerate() {
                    panel[sub.start + (at * shape.sub + h) * panel_rows + r] = *scale;
                }
                let start = quants.start + at * shape.quants() * panel_rows;
                let to = &mut panel[start..start + shape.quants() * panel_rows];
                interleave(shape.bits, &words(&q), panel_rows, r, to);
            }
        }
    }
}

/// Puts one row's 32 weights where they belong among those of its panel.
fn interleave(bits: Bits, q: &Words, panel_rows: usize, r: usize, to: &mut [u8]) {
    let mut put = |vector: usize, word: u32| {
        let at = 4 * (vector * panel_rows + r);
        to[at..at + 4].copy_from_slice(&word.to_le_bytes());
    };
    if bits == Bits::Eight {
        q.iter().enumerate().for_each(|(g, &word)| put(g, word));
        return;
    }
    // Every byte of a word is below 64, so shifts by four do not mix them.
    const LOW: u32 = 0x0f0f_0f0f;
    for g in 0..4 {
        put(g, q[g] & LOW | (q[g + 4] & LOW) << 4);
    }
    match bits {
        Bits::Five => put(4, (0..8).fold(0, |all, g| all | (q[g] >> 4 & 0x0101_0101) << g)),
        Bits::Six => {
            for h in 0..2 {
                put(4 + h, (0..4).fold(0, |all, m| all | (q[4 * h + m] >> 4 & 0x0303_0303) << (2 * m)));
            }
        }
        Bits::Four | Bits::Eight => {}
    }
}

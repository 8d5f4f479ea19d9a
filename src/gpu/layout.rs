//! How a matrix lies on the device: its blocks' bodies, whole words each, then their heads (scales, in half precision).
//!
//! In a file blocks of 18, 22, 34 or 210 bytes follow each other, and what a kernel reads is at odds with its words. Here the same
//! bits are sorted so that every load is of whole words and neighbours' loads are neighbours; nothing is rounded or added but
//! zeros that fill up a row of plain numbers to a multiple of 32.

use crate::gguf::TensorType;

/// Weights that kernels take together.
pub(super) const PIECE: usize = 32;

/// The sizes of one block on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    ty: TensorType,
    /// Weights of a block.
    len: usize,
    /// Words of its body.
    body: usize,
    /// Half-precision numbers of its head.
    head: usize,
    /// Where the head is in the file's block.
    head_at: usize,
}

impl Layout {
    pub(super) fn of(ty: TensorType) -> Self {
        let (len, bytes) = (ty.block_len(), ty.block_bytes());
        let head = match ty {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => 0,
            TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => 2,
            // The second is no number but the scales' upper bits.
            TensorType::IQ4_XS => 2,
            _ => 1,
        };
        let head_at = if ty == TensorType::Q6_K { bytes - 2 } else { 0 };
        // Plain numbers go by the piece.
        if head == 0 {
            Self { ty, len: PIECE, body: PIECE * bytes / 4, head, head_at }
        } else {
            Self { ty, len, body: (bytes - 2 * head) / 4, head, head_at }
        }
    }

    /// Blocks of a row of `cols` weights.
    pub(super) fn blocks(&self, cols: usize) -> usize {
        cols.div_ceil(self.len)
    }

    /// Pieces of a row of `cols` weights.
    pub(super) fn pieces(&self, cols: usize) -> usize {
        cols.div_ceil(PIECE)
    }

    /// Words of the bodies of `rows` rows, and of their heads.
    pub(super) fn words(&self, rows: usize, cols: usize) -> (usize, usize) {
        let blocks = rows * self.blocks(cols);
        (blocks * self.body, (blocks * self.head).div_ceil(2))
    }

    /// Sorts the bytes of whole rows, as they are in a file, into words of bodies and of heads. The heads of an odd number of blocks
    /// end with half a word of zeros.
    pub(super) fn sort(&self, stored: &[u8], cols: usize, bodies: &mut Vec<u32>, heads: &mut Vec<u32>) {
        bodies.clear();
        heads.clear();
        let word = |b: &[u8]| b.iter().rev().fold(0u32, |w, &b| w << 8 | u32::from(b));
        if self.head == 0 {
            let row_words = self.blocks(cols) * self.body;
            for row in stored.chunks_exact(cols * self.ty.block_bytes()) {
                let end = bodies.len() + row_words;
                bodies.extend(row.chunks(4).map(word));
                bodies.resize(end, 0);
            }
            return;
        }
        let mut half = None;
        for block in stored.chunks_exact(self.ty.block_bytes()) {
            let (before, rest) = block.split_at(self.head_at);
            let (head, after) = rest.split_at(2 * self.head);
            bodies.extend(
                before.as_chunks::<4>().0.iter().chain(after.as_chunks::<4>().0).map(|b| u32::from_le_bytes(*b)),
            );
            for number in head.as_chunks::<2>().0 {
                let number = u32::from(u16::from_le_bytes(*number));
                match half.take() {
                    None => half = Some(number),
                    Some(low) => heads.push(low | number << 16),
                }
            }
        }
        heads.extend(half);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::WEIGHT_TYPES;

    /// Every byte of a file's rows is on the device once, and no other.
    #[test]
    fn sorting_loses_and_invents_nothing() {
        for ty in WEIGHT_TYPES {
            let layout = Layout::of(ty);
            let (rows, cols) = (3, ty.block_len().max(2) * 3);
            let bytes = ty.row_bytes(cols).unwrap() * rows;
            let stored: Vec<u8> = (0..bytes).map(|i| (i * 7 + 1) as u8 | 1).collect();
            let (mut bodies, mut heads) = (Vec::new(), Vec::new());
            layout.sort(&stored, cols, &mut bodies, &mut heads);
            assert_eq!((bodies.len(), heads.len()), layout.words(rows, cols), "{ty}");
            let mut found: Vec<u8> =
                bodies.iter().chain(&heads).flat_map(|w| w.to_le_bytes()).filter(|&b| b != 0).collect();
            let mut expected = stored;
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected, "{ty}");
        }
    }
}

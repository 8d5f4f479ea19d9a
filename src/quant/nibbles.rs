//! Thirty-two levels of four or five bits as the formats with blocks of 32 store them.
//!
//! ```text
//! 4 bits, 16 bytes: byte i holds level i in its low half and level i + 16 in its high half
//! 5 bits, 20 bytes: 4 bytes whose bit i (little endian) is the fifth bit of level i, then the low bits as above
//! ```

use super::round;

/// Levels in a block.
pub(super) const LEN: usize = 32;
const HALF: usize = LEN / 2;

/// Writes levels, which are integers; five bits of each where `dst` has 20 bytes, four where it has 16.
#[inline(always)]
pub(super) fn pack(levels: &[f32; LEN], dst: &mut [u8]) {
    let (high, low) = dst.split_at_mut(dst.len() - HALF);
    let (first, second) = levels.split_at(HALF);
    for (q, (&a, &b)) in low.iter_mut().zip(first.iter().zip(second)) {
        *q = (round::low_bits(a) & 15 | round::low_bits(b) << 4) as u8;
    }
    // Empty for four bits.
    for (fifth, levels) in high.iter_mut().zip(levels.as_chunks::<8>().0) {
        let bits = u64::from_le_bytes(round::low_bytes(levels)) >> 4 & 0x0101_0101_0101_0101;
        // The product moves bit 0 of byte i to bit 56 + i.
        *fifth = (bits.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
}

/// Reads what [`pack`] wrote.
#[inline(always)]
pub(super) fn unpack(src: &[u8]) -> [u8; LEN] {
    let (high, low) = src.split_at(src.len() - HALF);
    let mut levels = [0; LEN];
    for (i, &q) in low.iter().enumerate() {
        levels[i] = q & 15;
        levels[i + HALF] = q >> 4;
    }
    for (levels, &fifth) in levels.as_chunks_mut::<8>().0.iter_mut().zip(high) {
        for (i, q) in levels.iter_mut().enumerate() {
            *q |= (fifth >> i & 1) << 4;
        }
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_come_back() {
        let levels: [u8; LEN] = std::array::from_fn(|i| (i * 7 % 32) as u8);
        let mut dst = [0; 20];
        pack(&levels.map(f32::from), &mut dst);
        assert_eq!(unpack(&dst), levels);
        // Level 31 is 25: its fifth bit is the last of the first four bytes.
        assert_eq!((levels[31], dst[3] >> 7, dst[19] >> 4), (25, 1, 9));
        let mut dst = [0; 16];
        pack(&levels.map(|q| f32::from(q & 15)), &mut dst);
        assert_eq!(unpack(&dst), levels.map(|q| q & 15));
    }
}

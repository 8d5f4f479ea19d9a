//! Thirty-two levels of four or five bits as the formats with blocks of 32 store them.
//!
//! ```text
//! 4 bits, 16 bytes: byte i holds level i in its low half and level i + 16 in its high half
//! 5 bits, 20 bytes: 4 bytes whose bit i (little endian) is the fifth bit of level i, then the low bits as above
//! ```

/// Levels in a block.
pub(super) const LEN: usize = 32;
const HALF: usize = LEN / 2;

/// Writes levels; five bits of each where `dst` has 20 bytes, four where it has 16.
pub(super) fn pack(levels: &[u8; LEN], dst: &mut [u8]) {
    let (high, low) = dst.split_at_mut(dst.len() - HALF);
    let mut fifth = 0u32;
    for (i, q) in low.iter_mut().enumerate() {
        let (a, b) = (levels[i], levels[i + HALF]);
        *q = a & 15 | b << 4;
        fifth |= u32::from(a >> 4 & 1) << i | u32::from(b >> 4 & 1) << (i + HALF);
    }
    // Empty for four bits.
    high.copy_from_slice(&fifth.to_le_bytes()[..high.len()]);
}

/// Reads what [`pack`] wrote.
pub(super) fn unpack(src: &[u8]) -> [u8; LEN] {
    let (high, low) = src.split_at(src.len() - HALF);
    let fifth = high.first_chunk().map_or(0, |&high| u32::from_le_bytes(high));
    let mut levels = [0; LEN];
    for (i, &q) in low.iter().enumerate() {
        levels[i] = q & 15 | ((fifth >> i & 1) as u8) << 4;
        levels[i + HALF] = q >> 4 | ((fifth >> (i + HALF) & 1) as u8) << 4;
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
        pack(&levels, &mut dst);
        assert_eq!(unpack(&dst), levels);
        // Level 31 is 25: its fifth bit is the last of the first four bytes.
        assert_eq!((levels[31], dst[3] >> 7, dst[19] >> 4), (25, 1, 9));
        let mut dst = [0; 16];
        pack(&levels.map(|q| q & 15), &mut dst);
        assert_eq!(unpack(&dst), levels.map(|q| q & 15));
    }
}

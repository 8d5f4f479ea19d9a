//! Bounds on sizes from files: far above any real model, far below what overflows or exhausts memory.

pub(super) const MOST_BLOCKS: usize = 4096;
pub(super) const MOST_WIDTH: usize = 1 << 20;
pub(super) const MOST_HEADS: usize = 1 << 16;
pub(super) const MOST_STEPS: usize = 1 << 16;
pub(super) const MOST_TOKENS: usize = 1 << 26;
pub(super) const MOST_CONTEXT: usize = 1 << 30;

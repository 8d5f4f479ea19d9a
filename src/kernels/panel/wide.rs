//! What an instruction set must do to multiply panels.

use super::formats::Packed;
use crate::kernels::{ByteScale, Q8_BLOCK, WideScale};

/// Groups of four weights in 32.
pub(in crate::kernels) const GROUPS: usize = Q8_BLOCK / 4;

/// Where one block of 32 activations of each of a tile's rows is: that of row `j` lies `j * stride` blocks behind that of row 0.
///
/// Raw, since a slice per row and block would cost more than the products. Whoever makes one promises that the blocks of all
/// rows of its tile are there, in the form that the weights multiply.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Columns {
    pub q: *const i8,
    pub scales: *const ByteScale,
    pub wide: *const i16,
    pub high: *const i8,
    pub low: *const i8,
    pub wide_scales: *const WideScale,
    pub stride: usize,
}

impl Columns {
    /// The next block of all rows.
    #[inline(always)]
    pub(super) fn next(&mut self) {
        self.q = self.q.wrapping_add(Q8_BLOCK);
        self.scales = self.scales.wrapping_add(1);
        self.wide = self.wide.wrapping_add(Q8_BLOCK);
        self.high = self.high.wrapping_add(Q8_BLOCK);
        self.low = self.low.wrapping_add(Q8_BLOCK);
        self.wide_scales = self.wide_scales.wrapping_add(1);
    }

    #[inline(always)]
    pub(super) fn q(&self, j: usize) -> *const i8 {
        self.q.wrapping_add(j * self.stride * Q8_BLOCK)
    }

    #[inline(always)]
    pub(super) fn wide(&self, j: usize) -> *const i16 {
        self.wide.wrapping_add(j * self.stride * Q8_BLOCK)
    }

    #[inline(always)]
    pub(super) fn high(&self, j: usize) -> *const i8 {
        self.high.wrapping_add(j * self.stride * Q8_BLOCK)
    }

    #[inline(always)]
    pub(super) fn low(&self, j: usize) -> *const i8 {
        self.low.wrapping_add(j * self.stride * Q8_BLOCK)
    }

    /// # Safety
    /// Row `j` has a block in the form of bytes here.
    #[inline(always)]
    pub(super) unsafe fn scale(&self, j: usize) -> &ByteScale {
        // SAFETY: as the caller promises.
        unsafe { &*self.scales.wrapping_add(j * self.stride) }
    }

    /// # Safety
    /// Row `j` has a block in the form of 16-bit numbers here.
    #[inline(always)]
    pub(super) unsafe fn wide_scale(&self, j: usize) -> &WideScale {
        // SAFETY: as the caller promises.
        unsafe { &*self.wide_scales.wrapping_add(j * self.stride) }
    }
}

/// One lane per weight row of a panel, and exact products of groups of four weights.
///
/// As for [`Simd`](crate::kernels::simd::Simd), a value is a proof that the CPU has the instructions, every method is one IEEE
/// operation per lane or an exact integer sum rounded once, and all of them must be inlined.
///
/// The products take 32 weights of every row and `C` rows of activations at once, so that an implementation may order its loops
/// as suits its registers. All unsafe ones want [`Columns`] of at least `C` rows.
pub(in crate::kernels) trait Wide: Copy {
    /// Weight rows of a panel.
    const ROWS: usize;
    /// Activation rows of the largest tile, 4 or 8.
    const COLUMNS: usize;
    /// Whether tiles of every number of activation rows up to seven have code of their own, instead of those of 1, 2, 4 and
    /// [`COLUMNS`](Self::COLUMNS).
    const EVERY: bool = false;
    /// Activation rows of a tile of [`many`](Self::many), up to sixteen; 0: there is no such way.
    const MANY: usize = 0;
    /// An f32 per row.
    type F: Copy;
    /// Four bytes per row.
    type Q: Copy;

    /// Asks for the cache line at an address, which may be anywhere: a hint, never a fault.
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
    fn splat(self, x: f32) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// # Safety
    /// Room for an f32 per row behind `p`.
    unsafe fn store(self, v: Self::F, p: *mut f32);
    /// An f32 per row.
    ///
    /// # Safety
    /// A readable f32 per row.
    unsafe fn floats(self, p: *const f32) -> Self::F;
    /// An IEEE half float per row.
    ///
    /// # Safety
    /// Two readable bytes per row.
    unsafe fn halves(self, p: *const u8) -> Self::F;
    /// A byte per row.
    ///
    /// # Safety
    /// A readable byte per row.
    unsafe fn unsigned(self, p: *const u8) -> Self::F;
    /// A signed byte per row.
    ///
    /// # Safety
    /// A readable byte per row.
    unsafe fn signed(self, p: *const u8) -> Self::F;

    /// # Safety
    /// Four readable bytes per row.
    unsafe fn load(self, p: *const u8) -> Self::Q;
    /// The lower four bits of every byte.
    fn low(self, q: Self::Q) -> Self::Q;
    /// The upper four bits of every byte.
    fn high(self, q: Self::Q) -> Self::Q;
    /// `q` with those bits of `bits` that stand in `mask` (1 or 3), `from` (at most 7) bits up, put in from bit 4 on.
    fn raise(self, q: Self::Q, bits: Self::Q, from: u32, mask: u8) -> Self::Q;
    /// What nibbles stand for in a table.
    fn lookup(self, q: Self::Q, table: &[i8; 16]) -> Self::Q;

    /// Stores unpacked weights for [`many`](Self::many), where there is one, or to be loaded again.
    ///
    /// # Safety
    /// Room for four bytes per row.
    unsafe fn keep<P: Packed>(self, q: Self::Q, p: *mut u8);
    /// Comes before calls of [`many`](Self::many).
    #[inline(always)]
    fn begin_many<P: Packed>(self) {}
    /// Comes after them.
    #[inline(always)]
    fn end_many(self) {}
    /// A panel that is unpacked at `quants` and `scales`, `subs` times 32 weights of every row, times `MANY` rows of
    /// activations.
    ///
    /// # Safety
    /// So much is there, `begin_many` has been called for `P`, and `a` has `MANY` rows.
    #[inline(always)]
    unsafe fn many<P: Packed>(
        self,
        _quants: *const u8,
        _scales: *const f32,
        _subs: usize,
        _a: Columns,
    ) -> [Self::F; 16] {
        [self.splat(0.0); 16]
    }

    /// Per row of activations, `start[j]` plus the products of weights up to 15 and activations in ±127.
    unsafe fn dot_u4<const C: usize>(self, w: &[Self::Q; GROUPS], a: &Columns, start: [i32; C]) -> [Self::F; C];
    /// As `dot_u4`, for weights up to 31.
    unsafe fn dot_u5<const C: usize>(self, w: &[Self::Q; GROUPS], a: &Columns, start: [i32; C]) -> [Self::F; C];
    /// Per row of activations, the products of weights up to 63, less 32, for the first and the second sixteen.
    unsafe fn dot_u6<const C: usize>(self, w: &[Self::Q; GROUPS], a: &Columns) -> [[Self::F; 2]; C];
    /// Per row of activations, the products of signed weights in ±127 and activations in ±127.
    unsafe fn dot_s8<const C: usize>(self, w: &[Self::Q; GROUPS], a: &Columns) -> [Self::F; C];
    /// Per row of activations, the products of signed weights and 16-bit activations.
    unsafe fn dot_wide<const C: usize>(self, w: &[Self::Q; GROUPS], a: &Columns) -> [Self::F; C];
}

//! One lane is one block: the searches run over `L` blocks at once, each lane doing the sums of its own block.
//!
//! So the code of a search reads as it would for one block, every lane rounds as one block would, and a block's bytes
//! depend neither on `L` nor on its neighbours. The type is a plain array, which the compiler keeps in vector registers of
//! whatever width the instruction set has that the calling [`Tier`](super::tier::Tier) was compiled for.

use super::round;
use crate::float16::{f16_to_f32, f32_to_f16};
use std::ops::{Add, AddAssign, BitAnd, Div, Mul, Neg, Not, Sub};

/// A number for each of `L` blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Lanes<const L: usize>(pub(super) [f32; L]);

/// A yes or no for each of `L` blocks.
#[derive(Clone, Copy)]
pub(super) struct Mask<const L: usize>([bool; L]);

/// Lanes of `N` values, on a boundary that no vector load has to straddle.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Columns<const N: usize, const L: usize>(pub(super) [Lanes<L>; N]);

macro_rules! lane_by_lane {
    ($($trait:ident $method:ident $op:tt),*) => {$(
        impl<const L: usize> $trait for Lanes<L> {
            type Output = Self;
            #[inline(always)]
            fn $method(mut self, other: Self) -> Self {
                for (a, b) in self.0.iter_mut().zip(other.0) {
                    *a $op b;
                }
                self
            }
        }
    )*};
}
lane_by_lane!(Add add +=, Sub sub -=, Mul mul *=, Div div /=);

impl<const L: usize> AddAssign for Lanes<L> {
    #[inline(always)]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl<const L: usize> Neg for Lanes<L> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        self.map(|x| -x)
    }
}

impl<const L: usize> Lanes<L> {
    #[inline(always)]
    pub(super) fn splat(x: f32) -> Self {
        Self([x; L])
    }

    #[inline(always)]
    fn map(mut self, f: impl Fn(f32) -> f32) -> Self {
        for x in &mut self.0 {
            *x = f(*x);
        }
        self
    }

    #[inline(always)]
    fn compare(self, other: Self, f: impl Fn(f32, f32) -> bool) -> Mask<L> {
        let mut mask = [false; L];
        for (m, (a, b)) in mask.iter_mut().zip(self.0.iter().zip(other.0)) {
            *m = f(*a, b);
        }
        Mask(mask)
    }

    #[inline(always)]
    pub(super) fn gt(self, other: Self) -> Mask<L> {
        self.compare(other, |a, b| a > b)
    }

    #[inline(always)]
    pub(super) fn ge(self, other: Self) -> Mask<L> {
        self.compare(other, |a, b| a >= b)
    }

    #[inline(always)]
    pub(super) fn ne(self, other: Self) -> Mask<L> {
        self.compare(other, |a, b| a != b)
    }

    #[inline(always)]
    pub(super) fn abs(self) -> Self {
        self.map(f32::abs)
    }

    #[inline(always)]
    pub(super) fn sqrt(self) -> Self {
        self.map(f32::sqrt)
    }

    /// `self` where it is greater, else `other`.
    #[inline(always)]
    pub(super) fn max(self, other: Self) -> Self {
        self.gt(other).select(self, other)
    }

    /// `self` where it is less, else `other`.
    #[inline(always)]
    pub(super) fn min(self, other: Self) -> Self {
        other.gt(self).select(self, other)
    }

    /// As [`round::nearest`].
    #[inline(always)]
    pub(super) fn nearest(self) -> Self {
        self.map(round::nearest)
    }

    /// As [`round::nearest_wrapping`].
    #[inline(always)]
    pub(super) fn nearest_wrapping(self) -> Self {
        self.map(round::nearest_wrapping)
    }

    /// Integers as they come out of a byte.
    #[inline(always)]
    pub(super) fn wrapping_byte(self) -> Self {
        self.map(|x| f32::from(round::low_byte(x)))
    }

    /// Rounded to half precision and back.
    #[inline(always)]
    pub(super) fn to_half(self) -> Self {
        self.map(|x| f16_to_f32(f32_to_f16(x)))
    }
}

impl<const L: usize> Mask<L> {
    /// `yes` where the mask holds, else `no`.
    #[inline(always)]
    pub(super) fn select(self, yes: Lanes<L>, no: Lanes<L>) -> Lanes<L> {
        let mut out = no;
        for (l, out) in out.0.iter_mut().enumerate() {
            *out = if self.0[l] { yes.0[l] } else { *out };
        }
        out
    }

    #[inline(always)]
    pub(super) fn any(self) -> bool {
        self.0.into_iter().fold(false, |any, m| any | m)
    }
}

impl<const L: usize> Not for Mask<L> {
    type Output = Self;
    #[inline(always)]
    fn not(mut self) -> Self {
        for m in &mut self.0 {
            *m = !*m;
        }
        self
    }
}

impl<const L: usize> BitAnd for Mask<L> {
    type Output = Self;
    #[inline(always)]
    fn bitand(mut self, other: Self) -> Self {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a &= b;
        }
        self
    }
}

impl<const N: usize, const L: usize> Columns<N, L> {
    pub(super) const ZERO: Self = Self([Lanes([0.0; L]); N]);

    /// Value `i` of block `l` goes to lane `l` of column `i`.
    #[inline(always)]
    pub(super) fn of(blocks: [&[f32; N]; L]) -> Self {
        let mut columns = Self::ZERO;
        for (l, block) in blocks.into_iter().enumerate() {
            for (column, &x) in columns.0.iter_mut().zip(block) {
                column.0[l] = x;
            }
        }
        columns
    }

    /// The values of one block.
    #[inline(always)]
    pub(super) fn block(&self, l: usize) -> [f32; N] {
        let mut block = [0.0; N];
        for (x, column) in block.iter_mut().zip(&self.0) {
            *x = column.0[l];
        }
        block
    }
}

//! The block formats in panels.

use super::wide::{Columns, GROUPS, Wide};
use crate::gguf::TensorType;
use crate::kernels::Q8_BLOCK;
use crate::quant::IQ4_VALUES;

/// Bits of a weight beside the nibbles, or in their place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) enum Bits {
    /// Nibbles alone.
    Four,
    /// A fifth bit.
    Five,
    /// Two more bits.
    Six,
    /// No nibbles: a signed byte.
    Eight,
}

/// How a format lies in panels: its bytes per weight row.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Shape {
    /// Half floats of a block.
    pub(super) halves: usize,
    /// Bytes of scale that a sub-block of 32 has besides.
    pub(super) sub: usize,
    pub(super) bits: Bits,
}

impl Shape {
    /// Bytes of 32 weights.
    pub(super) const fn quants(&self) -> usize {
        match self.bits {
            Bits::Four => 16,
            Bits::Five => 20,
            Bits::Six => 24,
            Bits::Eight => 32,
        }
    }

    /// `None` for formats without blocks.
    pub(super) const fn of(ty: TensorType) -> Option<Self> {
        let (halves, sub, bits) = match ty {
            TensorType::Q4_0 | TensorType::IQ4_NL => (1, 0, Bits::Four),
            TensorType::Q4_1 => (2, 0, Bits::Four),
            TensorType::Q5_0 => (1, 0, Bits::Five),
            TensorType::Q5_1 => (2, 0, Bits::Five),
            TensorType::Q8_0 => (1, 0, Bits::Eight),
            TensorType::Q4_K => (2, 2, Bits::Four),
            TensorType::Q5_K => (2, 2, Bits::Five),
            TensorType::Q6_K => (1, 2, Bits::Six),
            TensorType::IQ4_XS => (1, 1, Bits::Four),
            _ => return None,
        };
        Some(Self { halves, sub, bits })
    }
}

/// What of a panel belongs to one block, and to one sub-block of it.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Place {
    pub(super) halves: *const u8,
    pub(super) sub: *const u8,
    pub(super) quants: *const u8,
}

/// A block format: how 32 weights of every row of a panel add to the sums of `C` activation rows. The sequence of operations
/// per row is that of the same format in [`formats`](crate::kernels::formats).
pub(in crate::kernels) trait Packed {
    const TYPE: TensorType;
    const SHAPE: Shape = match Shape::of(Self::TYPE) {
        Some(shape) => shape,
        None => panic!("a block format"),
    };
    /// Sub-blocks of 32 in a block.
    const SUBS: usize = Self::TYPE.block_len() / Q8_BLOCK;

    /// # Safety
    /// `p` is a place in a whole panel, `h` are the halves there (twice the same where there is one), and `a` has `C` rows.
    unsafe fn add<W: Wide, const C: usize>(w: W, h: [W::F; 2], p: Place, a: &Columns, acc: &mut [W::F; C]);

    /// The halves of a block.
    ///
    /// # Safety
    /// `p` is a place in a whole panel.
    #[inline(always)]
    unsafe fn halves<W: Wide>(w: W, p: Place) -> [W::F; 2] {
        // SAFETY: a panel has as many halves per row as the shape says.
        unsafe {
            let first = w.halves(p.halves);
            [first, if Self::SHAPE.halves == 2 { w.halves(p.halves.add(2 * W::ROWS)) } else { first }]
        }
    }
}

/// Nibbles of 32 weights.
#[inline(always)]
unsafe fn nibbles<W: Wide>(w: W, p: *const u8) -> [W::Q; GROUPS] {
    // SAFETY: the caller promises 16 bytes per row.
    unsafe {
        let mut q = [w.load(p); GROUPS];
        for g in 0..GROUPS / 2 {
            let both = w.load(p.add(g * 4 * W::ROWS));
            q[g] = w.low(both);
            q[g + GROUPS / 2] = w.high(both);
        }
        q
    }
}

/// Nibbles and a fifth bit.
#[inline(always)]
unsafe fn fives<W: Wide>(w: W, p: *const u8) -> [W::Q; GROUPS] {
    // SAFETY: the caller promises 20 bytes per row.
    unsafe {
        let (mut q, bits) = (nibbles(w, p), w.load(p.add(16 * W::ROWS)));
        for (g, q) in q.iter_mut().enumerate() {
            *q = w.raise(*q, bits, g as u32, 1);
        }
        q
    }
}

/// Adds `(scale · d) · isum`.
#[inline(always)]
unsafe fn add_scaled<W: Wide, const C: usize>(w: W, scale: W::F, isums: [W::F; C], a: &Columns, acc: &mut [W::F; C]) {
    for (j, (acc, isum)) in acc.iter_mut().zip(isums).enumerate() {
        // SAFETY: the caller promises `C` rows.
        let d = w.splat(unsafe { a.scale(j) }.d);
        *acc = w.fma(w.mul(scale, d), isum, *acc);
    }
}

/// Adds `(scale · d) · isum`, then `other · (d · Σ a)`.
#[inline(always)]
unsafe fn add_shifted<W: Wide, const C: usize>(
    w: W,
    [scale, other]: [W::F; 2],
    isums: [W::F; C],
    a: &Columns,
    acc: &mut [W::F; C],
) {
    for (j, (acc, isum)) in acc.iter_mut().zip(isums).enumerate() {
        // SAFETY: the caller promises `C` rows.
        let of = unsafe { a.scale(j) };
        let sum = w.fma(w.mul(scale, w.splat(of.d)), isum, *acc);
        *acc = w.fma(other, w.splat(of.d_sum), sum);
    }
}

/// `minus_8` of every row, `times` over.
#[inline(always)]
unsafe fn minus_8<const C: usize>(a: &Columns, times: i32) -> [i32; C] {
    let mut start = [0; C];
    for (j, start) in start.iter_mut().enumerate() {
        // SAFETY: the caller promises `C` rows.
        *start = unsafe { a.scale(j) }.minus_8 * times;
    }
    start
}

/// Scale and what is added, of q4_K and q5_K: the halves times six bits each, the second taken off.
#[inline(always)]
unsafe fn k_scales<W: Wide>(w: W, h: [W::F; 2], p: Place) -> [W::F; 2] {
    // SAFETY: the caller promises two bytes per row.
    let (scale, min) = unsafe { (w.unsigned(p.sub), w.unsigned(p.sub.add(W::ROWS))) };
    [w.mul(h[0], scale), w.mul(w.mul(h[1], w.splat(-1.0)), min)]
}

macro_rules! packed {
    ($name:ident, $ty:ident, |$w:ident, $h:ident, $p:ident, $a:ident, $acc:ident| $body:expr) => {
        pub(in crate::kernels) struct $name;
        impl Packed for $name {
            const TYPE: TensorType = TensorType::$ty;
            #[inline(always)]
            unsafe fn add<W: Wide, const C: usize>(
                $w: W,
                $h: [W::F; 2],
                $p: Place,
                $a: &Columns,
                $acc: &mut [W::F; C],
            ) {
                // SAFETY: as the caller promises; a panel of the type has the bytes that the body reads.
                unsafe { $body }
            }
        }
    };
}

packed!(Q4_0, Q4_0, |w, h, p, a, acc| {
    let isums = w.dot_u4(&nibbles(w, p.quants), a, minus_8(a, 1));
    add_scaled(w, h[0], isums, a, acc);
});
packed!(Q5_0, Q5_0, |w, h, p, a, acc| {
    let isums = w.dot_u5(&fives(w, p.quants), a, minus_8(a, 2));
    add_scaled(w, h[0], isums, a, acc);
});
packed!(Q4_1, Q4_1, |w, h, p, a, acc| {
    let isums = w.dot_u4(&nibbles(w, p.quants), a, [0; C]);
    add_shifted(w, h, isums, a, acc);
});
packed!(Q5_1, Q5_1, |w, h, p, a, acc| {
    let isums = w.dot_u5(&fives(w, p.quants), a, [0; C]);
    add_shifted(w, h, isums, a, acc);
});
packed!(Q4K, Q4_K, |w, h, p, a, acc| {
    let isums = w.dot_u4(&nibbles(w, p.quants), a, [0; C]);
    add_shifted(w, k_scales(w, h, p), isums, a, acc);
});
packed!(Q5K, Q5_K, |w, h, p, a, acc| {
    let isums = w.dot_u5(&fives(w, p.quants), a, [0; C]);
    add_shifted(w, k_scales(w, h, p), isums, a, acc);
});
packed!(Q6K, Q6_K, |w, h, p, a, acc| {
    let mut q = nibbles(w, p.quants);
    for half in 0..2 {
        let bits = w.load(p.quants.add((16 + 4 * half) * W::ROWS));
        for m in 0..4 {
            q[4 * half + m] = w.raise(q[4 * half + m], bits, 2 * m as u32, 3);
        }
    }
    let scales = [w.mul(h[0], w.signed(p.sub)), w.mul(h[0], w.signed(p.sub.add(W::ROWS)))];
    for (j, (acc, isums)) in acc.iter_mut().zip(w.dot_u6::<C>(&q, a)).enumerate() {
        let d = w.splat(a.scale(j).d);
        let sum = w.fma(w.mul(scales[0], d), isums[0], *acc);
        *acc = w.fma(w.mul(scales[1], d), isums[1], sum);
    }
});
packed!(Iq4Nl, IQ4_NL, |w, h, p, a, acc| {
    let mut q = nibbles(w, p.quants);
    for q in &mut q {
        *q = w.lookup(*q, &IQ4_VALUES);
    }
    add_scaled(w, h[0], w.dot_s8(&q, a), a, acc);
});
packed!(Iq4Xs, IQ4_XS, |w, h, p, a, acc| {
    let mut q = nibbles(w, p.quants);
    for q in &mut q {
        *q = w.lookup(*q, &IQ4_VALUES);
    }
    let scale = w.mul(h[0], w.signed(p.sub));
    add_scaled(w, scale, w.dot_s8(&q, a), a, acc);
});
packed!(Q8_0, Q8_0, |w, h, p, a, acc| {
    for (j, (acc, isum)) in acc.iter_mut().zip(w.dot_wide::<C>(p.quants, a)).enumerate() {
        let d = w.splat(a.wide_scale(j).d);
        *acc = w.fma(w.mul(h[0], d), isum, *acc);
    }
});

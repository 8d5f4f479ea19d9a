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

impl Place {
    #[inline(always)]
    pub(super) fn next_sub<P: Packed>(&mut self, rows: usize) {
        self.sub = self.sub.wrapping_add(P::SHAPE.sub * rows);
        self.quants = self.quants.wrapping_add(P::SHAPE.quants() * rows);
    }

    #[inline(always)]
    pub(super) fn next_block<P: Packed>(&mut self, rows: usize) {
        self.halves = self.halves.wrapping_add(2 * P::SHAPE.halves * rows);
    }
}

/// How a format's numbers become products.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) enum Kind {
    /// Weights are `scale · (q − 8 · n)`, q from zero.
    Around(i32),
    /// Weights are `scale · q + other`, q from zero.
    Shifted,
    /// Weights are `scale · (q − 32)`, and for the second sixteen `other · (q − 32)`, q from zero.
    Halves,
    /// Weights are `scale · q`, q signed.
    Signed,
    /// As `Signed`, against 16-bit activations.
    Wide,
}

/// A block format. The sequence of operations per row is that of the same format in [`formats`](crate::kernels::formats).
pub(in crate::kernels) trait Packed {
    const TYPE: TensorType;
    const KIND: Kind;
    const SHAPE: Shape = match Shape::of(Self::TYPE) {
        Some(shape) => shape,
        None => panic!("a block format"),
    };
    /// Sub-blocks of 32 in a block.
    const SUBS: usize = Self::TYPE.block_len() / Q8_BLOCK;

    /// The numbers of 32 weights of every row.
    ///
    /// # Safety
    /// `p` is a place in a whole panel.
    #[inline(always)]
    unsafe fn unpack<W: Wide>(w: W, p: Place) -> [W::Q; GROUPS] {
        // SAFETY: a panel of this shape has the bytes that are read.
        unsafe {
            match Self::SHAPE.bits {
                Bits::Four => nibbles(w, p.quants),
                Bits::Five => fives(w, p.quants),
                Bits::Six => sixes(w, p.quants),
                Bits::Eight => bytes(w, p.quants),
            }
        }
    }

    /// Their scales: `scale` and `other`, or twice the same. `h` is what [`Packed::halves`] gave.
    ///
    /// # Safety
    /// `p` is a place in a whole panel.
    #[inline(always)]
    unsafe fn scales<W: Wide>(_: W, h: [W::F; 2], _: Place) -> [W::F; 2] {
        h
    }

    /// The halves of a block, twice the same where there is one.
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

/// Nibbles and two more bits.
#[inline(always)]
unsafe fn sixes<W: Wide>(w: W, p: *const u8) -> [W::Q; GROUPS] {
    // SAFETY: the caller promises 24 bytes per row.
    unsafe {
        let mut q = nibbles(w, p);
        for half in 0..2 {
            let bits = w.load(p.add((16 + 4 * half) * W::ROWS));
            for m in 0..4 {
                q[4 * half + m] = w.raise(q[4 * half + m], bits, 2 * m as u32, 3);
            }
        }
        q
    }
}

/// Bytes.
#[inline(always)]
pub(super) unsafe fn bytes<W: Wide>(w: W, p: *const u8) -> [W::Q; GROUPS] {
    // SAFETY: the caller promises 32 bytes per row.
    unsafe {
        let mut q = [w.load(p); GROUPS];
        for (g, q) in q.iter_mut().enumerate() {
            *q = w.load(p.add(g * 4 * W::ROWS));
        }
        q
    }
}

/// Nibbles that stand for the values of a table.
#[inline(always)]
unsafe fn looked_up<W: Wide>(w: W, p: *const u8) -> [W::Q; GROUPS] {
    // SAFETY: the caller promises 16 bytes per row.
    let mut q = unsafe { nibbles(w, p) };
    for q in &mut q {
        *q = w.lookup(*q, &IQ4_VALUES);
    }
    q
}

/// Adds the products of 32 weights of every row of a panel, `q` with their `scales`, to the sums of `C` rows of activations.
///
/// # Safety
/// `a` has `C` rows.
#[inline(always)]
pub(super) unsafe fn add<W: Wide, P: Packed, const C: usize>(
    w: W,
    q: &[W::Q; GROUPS],
    scales: [W::F; 2],
    a: &Columns,
    acc: &mut [W::F; C],
) {
    // SAFETY: as the caller promises.
    unsafe {
        match P::KIND {
            Kind::Around(times) => add_scaled(w, scales[0], dot::<W, P, C>(w, q, a, minus_8(a, times)), a, acc),
            Kind::Signed => add_scaled(w, scales[0], w.dot_s8(q, a), a, acc),
            Kind::Shifted => {
                for (j, (acc, isum)) in acc.iter_mut().zip(dot::<W, P, C>(w, q, a, [0; C])).enumerate() {
                    let of = a.scale(j);
                    let sum = w.fma(w.mul(scales[0], w.splat(of.d)), isum, *acc);
                    *acc = w.fma(scales[1], w.splat(of.d_sum), sum);
                }
            }
            Kind::Halves => {
                for (j, (acc, isums)) in acc.iter_mut().zip(w.dot_u6::<C>(q, a)).enumerate() {
                    let d = w.splat(a.scale(j).d);
                    let sum = w.fma(w.mul(scales[0], d), isums[0], *acc);
                    *acc = w.fma(w.mul(scales[1], d), isums[1], sum);
                }
            }
            Kind::Wide => {
                for (j, (acc, isum)) in acc.iter_mut().zip(w.dot_wide::<C>(q, a)).enumerate() {
                    let d = w.splat(a.wide_scale(j).d);
                    *acc = w.fma(w.mul(scales[0], d), isum, *acc);
                }
            }
        }
    }
}

/// Products of numbers from zero: those of four bits leave more room.
#[inline(always)]
unsafe fn dot<W: Wide, P: Packed, const C: usize>(w: W, q: &[W::Q; GROUPS], a: &Columns, start: [i32; C]) -> [W::F; C] {
    // SAFETY: as the caller promises.
    unsafe {
        match P::SHAPE.bits {
            Bits::Four => w.dot_u4(q, a, start),
            _ => w.dot_u5(q, a, start),
        }
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
    ($($name:ident, $ty:ident, $kind:expr $(, $body:item)*;)*) => { $(
        pub(in crate::kernels) struct $name;
        impl Packed for $name {
            const TYPE: TensorType = TensorType::$ty;
            const KIND: Kind = $kind;
            $($body)*
        }
    )* };
}

packed! {
    Q4_0, Q4_0, Kind::Around(1);
    Q5_0, Q5_0, Kind::Around(2);
    Q4_1, Q4_1, Kind::Shifted;
    Q5_1, Q5_1, Kind::Shifted;
    Q8_0, Q8_0, Kind::Wide;
    Q4K, Q4_K, Kind::Shifted,
        #[inline(always)]
        unsafe fn scales<W: Wide>(w: W, h: [W::F; 2], p: Place) -> [W::F; 2] {
            // SAFETY: as the caller promises.
            unsafe { k_scales(w, h, p) }
        };
    Q5K, Q5_K, Kind::Shifted,
        #[inline(always)]
        unsafe fn scales<W: Wide>(w: W, h: [W::F; 2], p: Place) -> [W::F; 2] {
            // SAFETY: as the caller promises.
            unsafe { k_scales(w, h, p) }
        };
    Q6K, Q6_K, Kind::Halves,
        #[inline(always)]
        unsafe fn scales<W: Wide>(w: W, h: [W::F; 2], p: Place) -> [W::F; 2] {
            // SAFETY: the caller promises two bytes per row.
            unsafe { [w.mul(h[0], w.signed(p.sub)), w.mul(h[0], w.signed(p.sub.add(W::ROWS)))] }
        };
    Iq4Nl, IQ4_NL, Kind::Signed,
        #[inline(always)]
        unsafe fn unpack<W: Wide>(w: W, p: Place) -> [W::Q; GROUPS] {
            // SAFETY: as the caller promises.
            unsafe { looked_up(w, p.quants) }
        };
    Iq4Xs, IQ4_XS, Kind::Signed,
        #[inline(always)]
        unsafe fn unpack<W: Wide>(w: W, p: Place) -> [W::Q; GROUPS] {
            // SAFETY: as the caller promises.
            unsafe { looked_up(w, p.quants) }
        },
        #[inline(always)]
        unsafe fn scales<W: Wide>(w: W, h: [W::F; 2], p: Place) -> [W::F; 2] {
            // SAFETY: the caller promises a byte per row.
            let scale = w.mul(h[0], unsafe { w.signed(p.sub) });
            [scale, scale]
        };
}

//! Panels times activation rows.

use super::PanelLayout;
use super::formats::{Kind, Packed, Place, add, bytes};
use super::wide::{Columns, GROUPS, Wide};
use crate::kernels::{Acts, Form, Q8_BLOCK};
use std::cell::RefCell;

/// Activation rows from which on the weights of a panel are unpacked once for all of them, and not once per tile.
const SLAB_FROM: usize = 16;

/// How far ahead weights are asked for. Of 512 to 8192, 512 and 1024 were best on a Sapphire Rapids: 12 GB/s against 11 from
/// memory in small pages, 22 against 15 in huge ones, 27 against 25 from the last-level cache.
const PREFETCH: usize = 1024;
/// As far where several rows of activations take more time per weight: 5% more speed for 8 rows of q4_0, 3% less for q8_0, whose
/// weights are longer.
const PREFETCH_FAR: usize = 8192;
const CACHE_LINE: usize = 64;

/// Rows of the largest panel.
pub(super) const MOST_ROWS: usize = 16;

/// `out[c * rows + r]` = weight row `skip + r` · activation row `c`. `ONE`: there is one activation row, and code for no more.
#[inline(always)]
pub(in crate::kernels) fn multiply<W: Wide, P: Packed, const ONE: bool>(
    w: W,
    panels: &[u8],
    skip: usize,
    rows: usize,
    acts: Acts<'_>,
    out: &mut [f32],
) {
    let Some(layout) = PanelLayout::new(P::TYPE, acts.k, W::ROWS) else { panic!("rows of {} weights", acts.k) };
    let size = layout.panel_bytes();
    assert!(skip < W::ROWS && panels.len() == layout.panels(skip + rows) * size);
    assert!(out.len() == rows * acts.rows);
    assert!(!ONE || acts.rows == 1);
    acts.check(Form::of(P::TYPE));
    // 8-bit weights are as good as unpacked.
    let slab = !ONE && acts.rows >= SLAB_FROM && (W::MANY > 0 || P::KIND != Kind::Wide);
    // Taken out and put back: a closure would be a function of its own, without the instruction set.
    let mut unpacked = slab.then(|| SLAB.take());
    panels_times::<W, P, ONE>(w, panels, &layout, skip, rows, &acts, out, unpacked.as_mut());
    if let Some(slab) = unpacked {
        SLAB.set(slab);
    }
}

thread_local! {
    /// One panel's weights, unpacked.
    static SLAB: RefCell<Slab> = const { RefCell::new(Slab { quants: Vec::new(), scales: Vec::new() }) };
}

/// The weights of a panel as bytes, `[k / 32][8][row][4]`, and their scales, `[k / 32][2][row]`.
#[derive(Default)]
struct Slab {
    quants: Vec<Line>,
    scales: Vec<f32>,
}

/// Aligned as the widest registers like it.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "written and read through pointers")] [u8; CACHE_LINE]);

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "an inlined part of `multiply`, which has the narrow interface")]
fn panels_times<W: Wide, P: Packed, const ONE: bool>(
    w: W,
    panels: &[u8],
    layout: &PanelLayout,
    skip: usize,
    rows: usize,
    acts: &Acts<'_>,
    out: &mut [f32],
    mut slab: Option<&mut Slab>,
) {
    if let Some(slab) = &mut slab {
        let subs = acts.k / Q8_BLOCK;
        slab.quants.resize(subs * Q8_BLOCK * W::ROWS / CACHE_LINE, Line([0; CACHE_LINE]));
        slab.scales.resize(subs * 2 * W::ROWS, 0.0);
        w.begin_many::<P>();
    }
    for (i, panel) in panels.chunks_exact(layout.panel_bytes()).enumerate() {
        // Lanes of this panel that are wanted, and where the first of them goes.
        let lanes = if i == 0 { skip } else { 0 }..(skip + rows - i * W::ROWS).min(W::ROWS);
        let to = Target { lanes: (lanes.start, lanes.end), at: i * W::ROWS + lanes.start - skip, rows };
        if ONE {
            // SAFETY: the panel is whole, and the row is there.
            unsafe { tile::<W, P, 1>(w, panel, layout, acts, 0, to, out) };
            continue;
        }
        let mut c = 0;
        if let Some(slab) = &mut slab {
            // SAFETY: the panel is whole, the slab has room for it, and the activations are there.
            unsafe {
                unpack::<W, P>(w, panel, layout, slab);
                let (quants, scales) = (slab.quants.as_ptr().cast::<u8>(), slab.scales.as_ptr());
                if W::MANY > 0 {
                    while acts.rows - c >= W::MANY {
                        let sums = w.many::<P>(quants, scales, acts.k / Q8_BLOCK, columns(acts, c));
                        for (j, sum) in sums.into_iter().enumerate() {
                            to.put(w, sum, c + j, out);
                        }
                        c += W::MANY;
                    }
                } else {
                    // What is left over is not worth code of its own.
                    while acts.rows - c >= W::COLUMNS {
                        c += match W::COLUMNS {
                            8 => from_slab::<W, P, 8>(w, quants, scales, acts, c, to, out),
                            _ => from_slab::<W, P, 4>(w, quants, scales, acts, c, to, out),
                        };
                    }
                }
            }
        }
        while c < acts.rows {
            // SAFETY: the panel is whole, and the activations are there from row `c` on.
            unsafe {
                c += match next_tile::<W, P>(acts.rows - c) {
                    1 => tile::<W, P, 1>(w, panel, layout, acts, c, to, out),
                    2 => tile::<W, P, 2>(w, panel, layout, acts, c, to, out),
                    3 if W::EVERY => tile::<W, P, 3>(w, panel, layout, acts, c, to, out),
                    5 if W::EVERY => tile::<W, P, 5>(w, panel, layout, acts, c, to, out),
                    6 if W::EVERY => tile::<W, P, 6>(w, panel, layout, acts, c, to, out),
                    7 if W::EVERY => tile::<W, P, 7>(w, panel, layout, acts, c, to, out),
                    8 if W::COLUMNS == 8 => tile::<W, P, 8>(w, panel, layout, acts, c, to, out),
                    _ => tile::<W, P, 4>(w, panel, layout, acts, c, to, out),
                };
            }
        }
    }
    if slab.is_some() {
        w.end_many();
    }
}

/// Activation rows of the next tile where there are `n`.
#[inline(always)]
fn next_tile<W: Wide, P: Packed>(n: usize) -> usize {
    // Sums of 16-bit activations are two per row: more rows do not fit the registers.
    let wide = P::KIND == Kind::Wide;
    if W::EVERY {
        let most = if wide { 4 } else { 7 };
        // Tiles of about the same size: eight as twice four.
        return if n <= most { n } else { n.div_ceil(n.div_ceil(most)) };
    }
    match n {
        0..=2 => n,
        3 => 2,
        8.. if W::COLUMNS == 8 && !wide => 8,
        _ => 4,
    }
}

/// What becomes of the lanes of a panel.
#[derive(Clone, Copy)]
struct Target {
    /// From, and up to.
    lanes: (usize, usize),
    /// The weight row, of those wanted, that the first is.
    at: usize,
    /// Weight rows wanted.
    rows: usize,
}

impl Target {
    /// Puts the lanes of activation row `c` where they belong.
    #[inline(always)]
    fn put<W: Wide>(self, w: W, lanes: W::F, c: usize, out: &mut [f32]) {
        let (at, n) = (c * self.rows + self.at, self.lanes.1 - self.lanes.0);
        let out = &mut out[at..at + n];
        if n == W::ROWS {
            // SAFETY: there is room for all lanes.
            unsafe { w.store(lanes, out.as_mut_ptr()) };
        } else {
            let mut t = [0.0; MOST_ROWS];
            // SAFETY: no panel has more rows.
            unsafe { w.store(lanes, t.as_mut_ptr()) };
            out.copy_from_slice(&t[self.lanes.0..self.lanes.1]);
        }
    }
}

/// The first blocks of the activation rows from `c` on.
#[inline(always)]
fn columns(acts: &Acts<'_>, c: usize) -> Columns {
    let stride = acts.k / Q8_BLOCK;
    let (first, block) = (c * acts.k, c * stride);
    Columns {
        q: acts.q.as_ptr().wrapping_add(first),
        scales: acts.scales.as_ptr().wrapping_add(block),
        wide: acts.wide.as_ptr().wrapping_add(first),
        high: acts.high.as_ptr().wrapping_add(first),
        low: acts.low.as_ptr().wrapping_add(first),
        wide_scales: acts.wide_scales.as_ptr().wrapping_add(block),
        stride,
    }
}

/// The first place of a panel.
#[inline(always)]
fn place(panel: &[u8], layout: &PanelLayout) -> Place {
    let starts = layout.parts().map_or([0; 3], |parts| parts.map(|part| part.start));
    let [halves, sub, quants] = starts.map(|start| panel.as_ptr().wrapping_add(start));
    Place { halves, sub, quants }
}

/// One panel times `C` activation rows from row `c` on. Gives `C`.
///
/// # Safety
/// The panel is whole, and the activations are there in the form that it multiplies.
#[inline(always)]
unsafe fn tile<W: Wide, P: Packed, const C: usize>(
    w: W,
    panel: &[u8],
    layout: &PanelLayout,
    acts: &Acts<'_>,
    c: usize,
    to: Target,
    out: &mut [f32],
) -> usize {
    let (mut a, mut p) = (columns(acts, c), place(panel, layout));
    let mut next = panel.as_ptr().wrapping_add(panel.len());
    let mut acc = [w.splat(0.0); C];
    for _ in 0..acts.k / (P::SUBS * Q8_BLOCK) {
        // SAFETY: `p` and `a` walk over the blocks of a whole panel and of the rows, as the caller promises them.
        unsafe {
            let h = P::halves(w, p);
            for _ in 0..P::SUBS {
                if c == 0 {
                    // The hardware's own prefetching ends at every 4 KiB page and begins late on the next. The first tile of a
                    // panel is the one that waits for memory.
                    let ahead = if C < 4 || P::KIND == Kind::Wide { PREFETCH } else { PREFETCH_FAR };
                    for line in 0..P::SHAPE.quants() * W::ROWS / CACHE_LINE {
                        w.prefetch(p.quants.wrapping_add(ahead + line * CACHE_LINE));
                    }
                    // A line of the next panel too, so that its scales and first weights are there when it begins: 14% more
                    // speed for one row of q4_0 from memory, 5% for K formats.
                    w.prefetch(next);
                    next = next.wrapping_add(CACHE_LINE);
                }
                add::<W, P, C>(w, &P::unpack(w, p), P::scales(w, h, p), &a, &mut acc);
                p.next_sub::<P>(W::ROWS);
                a.next();
            }
        }
        p.next_block::<P>(W::ROWS);
    }
    for (j, acc) in acc.into_iter().enumerate() {
        to.put(w, acc, c + j, out);
    }
    C
}

/// Unpacks a panel.
///
/// # Safety
/// The panel is whole, and the slab has room for it.
#[inline(always)]
unsafe fn unpack<W: Wide, P: Packed>(w: W, panel: &[u8], layout: &PanelLayout, slab: &mut Slab) {
    let mut p = place(panel, layout);
    let (mut quants, mut scales) = (slab.quants.as_mut_ptr().cast::<u8>(), slab.scales.as_mut_ptr());
    for _ in 0..layout.k / (P::SUBS * Q8_BLOCK) {
        // SAFETY: as in `tile`; the slab is written from its beginning on, as much as a panel has.
        unsafe {
            let h = P::halves(w, p);
            for _ in 0..P::SUBS {
                for q in P::unpack(w, p) {
                    w.keep::<P>(q, quants);
                    quants = quants.add(4 * W::ROWS);
                }
                for scale in P::scales(w, h, p) {
                    w.store(scale, scales);
                    scales = scales.add(W::ROWS);
                }
                p.next_sub::<P>(W::ROWS);
            }
        }
        p.next_block::<P>(W::ROWS);
    }
}

/// As [`tile`], from unpacked weights.
///
/// # Safety
/// A whole panel is unpacked at `quants` and `scales`, and the activations are there.
#[inline(always)]
unsafe fn from_slab<W: Wide, P: Packed, const C: usize>(
    w: W,
    mut quants: *const u8,
    mut scales: *const f32,
    acts: &Acts<'_>,
    c: usize,
    to: Target,
    out: &mut [f32],
) -> usize {
    let mut a = columns(acts, c);
    let mut acc = [w.splat(0.0); C];
    for _ in 0..acts.k / Q8_BLOCK {
        // SAFETY: as the caller promises.
        unsafe {
            let of = [w.floats(scales), w.floats(scales.add(W::ROWS))];
            add::<W, P, C>(w, &bytes(w, quants), of, &a, &mut acc);
        }
        a.next();
        quants = quants.wrapping_add(4 * GROUPS * W::ROWS);
        scales = scales.wrapping_add(2 * W::ROWS);
    }
    for (j, acc) in acc.into_iter().enumerate() {
        to.put(w, acc, c + j, out);
    }
    C
}

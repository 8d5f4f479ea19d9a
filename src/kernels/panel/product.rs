//! Panels times activation rows.

use super::PanelLayout;
use super::formats::{Packed, Place};
use super::wide::{Columns, Wide};
use crate::kernels::{Acts, Form, Q8_BLOCK};

/// `out[c * rows + r]` = weight row `skip + r` · activation row `c`.
#[inline(always)]
pub(in crate::kernels) fn multiply<W: Wide, P: Packed>(
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
    acts.check(Form::of(P::TYPE));
    for (i, panel) in panels.chunks_exact(size).enumerate() {
        // Lanes of this panel that are wanted, and where the first of them goes.
        let lanes = if i == 0 { skip } else { 0 }..(skip + rows - i * W::ROWS).min(W::ROWS);
        let to = Target { lanes: (lanes.start, lanes.end), at: i * W::ROWS + lanes.start - skip, rows };
        let mut c = 0;
        while c < acts.rows {
            // SAFETY: the panel is whole, and the activations are there from row `c` on.
            unsafe {
                c += match acts.rows - c {
                    1 => tile::<W, P, 1>(w, panel, &layout, &acts, c, to, out),
                    2 => tile::<W, P, 2>(w, panel, &layout, &acts, c, to, out),
                    3 => tile::<W, P, 3>(w, panel, &layout, &acts, c, to, out),
                    n if n >= 8 && W::COLUMNS >= 8 => tile::<W, P, 8>(w, panel, &layout, &acts, c, to, out),
                    _ => tile::<W, P, 4>(w, panel, &layout, &acts, c, to, out),
                };
            }
        }
    }
}

/// How far ahead weights are asked for. Of 512 to 8192, 512 and 1024 were best on a Sapphire Rapids: 12 GB/s against 11 from
/// memory in small pages, 22 against 15 in huge ones, 27 against 25 from the last-level cache.
const PREFETCH: usize = 1024;
const CACHE_LINE: usize = 64;

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
    let stride = acts.k / Q8_BLOCK;
    let (first, block) = (c * acts.k, c * stride);
    let mut a = Columns {
        q: acts.q.as_ptr().wrapping_add(first),
        scales: acts.scales.as_ptr().wrapping_add(block),
        wide: acts.wide.as_ptr().wrapping_add(first),
        high: acts.high.as_ptr().wrapping_add(first),
        low: acts.low.as_ptr().wrapping_add(first),
        wide_scales: acts.wide_scales.as_ptr().wrapping_add(block),
        stride,
    };
    let Some([halves, sub, quants]) = layout.parts() else { return C };
    let p = panel.as_ptr();
    let mut p = Place {
        halves: p.wrapping_add(halves.start),
        sub: p.wrapping_add(sub.start),
        quants: p.wrapping_add(quants.start),
    };
    let mut acc = [w.splat(0.0); C];
    for _ in 0..acts.k / (P::SUBS * Q8_BLOCK) {
        // SAFETY: `p` and `a` walk over the blocks of a whole panel and of the rows, as the caller promises them.
        unsafe {
            let h = P::halves(w, p);
            for _ in 0..P::SUBS {
                if c == 0 {
                    // The hardware's own prefetching ends at every 4 KiB page and begins late on the next. The first tile of a
                    // panel is the one that waits for memory.
                    for line in 0..P::SHAPE.quants() * W::ROWS / CACHE_LINE {
                        w.prefetch(p.quants.wrapping_add(PREFETCH + line * CACHE_LINE));
                    }
                }
                P::add::<W, C>(w, h, p, &a, &mut acc);
                p.sub = p.sub.wrapping_add(P::SHAPE.sub * W::ROWS);
                p.quants = p.quants.wrapping_add(P::SHAPE.quants() * W::ROWS);
                a.next();
            }
        }
        p.halves = p.halves.wrapping_add(2 * P::SHAPE.halves * W::ROWS);
    }
    let n = to.lanes.1 - to.lanes.0;
    for (j, acc) in acc.into_iter().enumerate() {
        let at = (c + j) * to.rows + to.at;
        let out = &mut out[at..at + n];
        if n == W::ROWS {
            // SAFETY: there is room for all lanes.
            unsafe { w.store(acc, out.as_mut_ptr()) };
        } else {
            let mut t = [0.0; MOST_ROWS];
            // SAFETY: no panel has more rows.
            unsafe { w.store(acc, t.as_mut_ptr()) };
            out.copy_from_slice(&t[to.lanes.0..to.lanes.1]);
        }
    }
    C
}

/// Rows of the largest panel.
const MOST_ROWS: usize = 16;

//! Panels against the same rows as they are stored, bit for bit.

use super::{bits, scalar, values, weights};
use crate::gguf::TensorType;
use crate::kernels::{ActRows, Kernels, PanelLayout, WEIGHT_TYPES};

/// A whole matrix in panels.
pub(in crate::kernels) fn packed(layout: &PanelLayout, stored: &[u8], rows: usize) -> Vec<u8> {
    let row_bytes = stored.len() / rows;
    let mut panels = vec![0xa5; layout.bytes(rows).expect("a small one")];
    for (stored, panel) in
        stored.chunks(layout.panel_rows * row_bytes).zip(panels.chunks_exact_mut(layout.panel_bytes()))
    {
        layout.pack(stored, panel);
    }
    panels
}

pub(super) fn suite(kernels: &Kernels) {
    for ty in WEIGHT_TYPES {
        let block = ty.block_len();
        for k in [block, 3 * block, 1280 / block * block] {
            if block == 1 {
                assert!(kernels.panel(ty, k).is_none());
                continue;
            }
            assert!(kernels.panel(ty, k + block / 2).is_none() && kernels.panel(ty, 0).is_none());
            let (layout, multiply) = kernels.panel(ty, k).expect("a block type");
            for rows in [1, 3, 8, 16, 17, 40] {
                let (stored, _) = weights(ty, 5 + k as u64, rows * k);
                let panels = packed(&layout, &stored, rows);
                assert_eq!(panels.len(), layout.panels(rows) * layout.panel_bytes());
                let x = ActRows::new(&scalar::KERNELS, values(7 + rows as u64, 19 * k), k);
                let row_bytes = stored.len() / rows;
                for n in [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19] {
                    for range in [0..rows, 0..1, rows / 2..rows, rows - 1..rows, rows / 3..rows / 3 + 1] {
                        let mut want = vec![0.0; n * range.len()];
                        let of = &stored[range.start * row_bytes..range.end * row_bytes];
                        scalar::KERNELS.matmul(ty).expect("a kernel")(of, range.len(), x.acts(0..n), &mut want);
                        let (cover, skip) = layout.cover(&range);
                        let mut got = vec![f32::NAN; n * range.len()];
                        let of = &panels[cover.start * layout.panel_bytes()..cover.end * layout.panel_bytes()];
                        multiply(of, skip, range.len(), x.acts(0..n), &mut got);
                        assert_eq!(bits(&got), bits(&want), "{ty} {k}: rows {range:?} of {rows}, {n} columns");
                    }
                }
            }
        }
    }
}

/// Levels at their ends, against activations at theirs: partial sums of 16 bits must hold them.
pub(super) fn extremes(kernels: &Kernels) {
    let k = 256;
    for ty in WEIGHT_TYPES.into_iter().filter(|ty| ty.block_len() > 1) {
        let (layout, multiply) = kernels.panel(ty, k).expect("a block type");
        for fill in [0x00, 0xff, 0x0f, 0xf0, 0x80, 0x7f] {
            let mut stored = vec![fill; 16 * ty.row_bytes(k).expect("whole blocks")];
            for block in stored.chunks_exact_mut(ty.block_bytes()) {
                for &at in super::half_floats(ty) {
                    block[at..at + 2].copy_from_slice(&0x3c00u16.to_le_bytes());
                }
            }
            for sign in [1.0, -1.0] {
                let mut x = vec![sign; 4 * k];
                x[k..2 * k].iter_mut().step_by(2).for_each(|x| *x = -*x);
                let x = ActRows::new(&scalar::KERNELS, x, k);
                let (mut want, mut got) = (vec![0.0; 4 * 16], vec![0.0; 4 * 16]);
                scalar::KERNELS.matmul(ty).expect("a kernel")(&stored, 16, x.acts(0..4), &mut want);
                multiply(&packed(&layout, &stored, 16), 0, 16, x.acts(0..4), &mut got);
                assert_eq!(bits(&got), bits(&want), "{ty} of {fill:#x} against {sign}");
            }
        }
    }
}

#[test]
fn sizes_that_have_no_number_are_refused() {
    for k in [usize::MAX / 32 * 32, usize::MAX / 64 / 32 * 32] {
        assert!(PanelLayout::new(TensorType::Q8_0, k, 16).is_none());
    }
    let layout = PanelLayout::new(TensorType::Q4_0, 64, 16).expect("whole blocks");
    assert_eq!(layout.panel_bytes(), 16 * 2 * 18);
    assert_eq!((layout.panels(0), layout.panels(1), layout.panels(17)), (0, 1, 2));
    assert_eq!(layout.cover(&(15..33)), (0..3, 15));
    assert!(layout.bytes(usize::MAX).is_none());
}

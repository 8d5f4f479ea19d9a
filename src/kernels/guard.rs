//! Weights that end where memory ends: a kernel that reads behind its last row, or before its first, dies of it.
//!
//! Pages of a mapping that lie wholly behind the end of its file cannot be touched (SIGBUS), which makes a guard page without
//! any call beyond the mapping itself. Only weights are read through pointers; everything else is indexed.

use super::tests::panels::packed;
use super::{ActRows, AttendScratch, Attention, Isa, Kernels, KvType, WEIGHT_TYPES};
use std::io::Write;

/// A multiple of every page size in use.
const PAGE: usize = 1 << 16;

/// Maps `bytes` so that the byte behind the last one is beyond the end of the file, and gives the mapping and the place.
fn guarded(bytes: &[u8]) -> (memmap2::Mmap, std::ops::Range<usize>) {
    let size = bytes.len().next_multiple_of(PAGE);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0; size - bytes.len()]).unwrap();
    file.write_all(bytes).unwrap();
    // SAFETY: the file has no name, so nobody else can change it.
    let map = unsafe { memmap2::MmapOptions::new().len(size + PAGE).map(&file).unwrap() };
    (map, size - bytes.len()..size)
}

#[test]
fn products_stay_inside_the_weights() {
    for isa in Isa::ALL {
        let Ok(kernels) = Kernels::of(isa) else {
            eprintln!("SKIPPED: this machine has no {isa}");
            continue;
        };
        for ty in WEIGHT_TYPES {
            let multiply = kernels.matmul(ty).unwrap();
            for k in [32, 41, 64, 96, 160, 256, 768, 1024].into_iter().filter(|k| k % ty.block_len() == 0) {
                for rows in [1, 2, 7, 8, 9, 33] {
                    let plain = vec![1; rows * ty.row_bytes(k).unwrap()];
                    let (map, at) = guarded(&plain);
                    for columns in [1, 3, 8] {
                        let x = ActRows::new(kernels, vec![0.5; columns * k], k);
                        let acts = x.acts(0..columns);
                        let (mut found, mut expected) = (vec![f32::NAN; rows * columns], vec![0.0; rows * columns]);
                        multiply(&map[at.clone()], rows, acts, &mut found);
                        multiply(&plain, rows, acts, &mut expected);
                        assert_eq!(found, expected, "{isa}, {ty}, {rows} rows of {k}, {columns} columns");
                    }
                }
            }
        }
    }
}

#[test]
fn products_stay_inside_the_panels() {
    for isa in Isa::ALL {
        let Ok(kernels) = Kernels::of(isa) else {
            eprintln!("SKIPPED: this machine has no {isa}");
            continue;
        };
        for ty in WEIGHT_TYPES {
            for k in [32, 64, 96, 160, 256, 768] {
                let Some((layout, multiply)) = kernels.panel(ty, k) else { continue };
                for rows in [1, 16, 33] {
                    let plain = packed(&layout, &vec![1; rows * ty.row_bytes(k).unwrap()], rows);
                    let (map, at) = guarded(&plain);
                    for columns in [1, 2, 3, 4, 8, 16, 21] {
                        let x = ActRows::new(kernels, vec![0.5; columns * k], k);
                        let acts = x.acts(0..columns);
                        let (mut found, mut expected) = (vec![f32::NAN; rows * columns], vec![0.0; rows * columns]);
                        multiply(&map[at.clone()], 0, rows, acts, &mut found);
                        multiply(&plain, 0, rows, acts, &mut expected);
                        assert_eq!(found, expected, "{isa}, {ty}, {rows} rows of {k}, {columns} columns");
                    }
                }
            }
        }
    }
}

/// Keys and values that end where memory ends, for rows alone and in groups.
#[test]
fn attention_stays_inside_the_cache() {
    for isa in Isa::ALL {
        let Ok(kernels) = Kernels::of(isa) else {
            eprintln!("SKIPPED: this machine has no {isa}");
            continue;
        };
        for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
            for dim in [7, 24, 32, 96, 127, 128] {
                let Some(row_bytes) = kv.row_bytes(dim) else { continue };
                for n in [1, 47, 50, 257] {
                    let mut plain = vec![0; n * row_bytes];
                    for (i, row) in plain.chunks_mut(row_bytes).enumerate() {
                        kernels.store_kv(kv)(&vec![i as f32 / 100.0; dim], row);
                    }
                    let (map, at) = guarded(&plain);
                    for rows in [1, 6, 9, 33] {
                        let (q, seen) = (vec![0.1; rows * dim], vec![n; rows]);
                        let run = |keys: &[u8]| {
                            let attention = Attention { kv, dim, scale: 0.1, q: &q, seen: &seen, keys, values: keys };
                            let mut out = vec![f32::NAN; rows * dim];
                            (kernels.attend)(attention, &mut AttendScratch::new(dim), &mut out);
                            out
                        };
                        assert_eq!(run(&map[at.clone()]), run(&plain), "{isa}, {kv}, {rows} rows, {n} keys of {dim}");
                    }
                }
            }
        }
    }
}

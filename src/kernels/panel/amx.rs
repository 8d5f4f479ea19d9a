//! Sixteen rows of activations times a panel of sixteen rows, with the matrix unit of Intel's server processors (AMX).
//!
//! A tile register holds up to sixteen rows of 64 bytes. 32 weights of a panel are a tile as they lie in it: the instruction
//! wants, in its second factor, four consecutive weights of sixteen rows side by side. Its first factor is sixteen rows of
//! activations, its sum sixteen by sixteen exact 32-bit integers, from which on everything is as for other registers: the same
//! f32 operations in the same order, so the same bits.
//!
//! The compiler's own functions for these instructions are not stable, hence assembly. It uses no tile register itself, so what
//! one block of assembly leaves in them the next one finds.

use super::formats::Kind;
use super::wide::Columns;
use crate::kernels::Q8_BLOCK;
use core::arch::asm;
use core::arch::x86_64::*;

/// Rows of activations of a tile.
pub(super) const ROWS: usize = 16;

/// Has the CPU the instructions, and does the system let this process use them?
///
/// Linux wants to be asked first, since tiles make the frames of signal handlers larger; other systems are not known here.
pub(in crate::kernels) fn detect() -> bool {
    #[cfg(target_os = "linux")]
    {
        use std::sync::LazyLock;
        static ALLOWED: LazyLock<bool> = LazyLock::new(|| has_instructions() && permitted());
        *ALLOWED
    }
    #[cfg(not(target_os = "linux"))]
    false
}

#[cfg(target_os = "linux")]
fn has_instructions() -> bool {
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    const TILE_STATE: u64 = 1 << 17 | 1 << 18;
    if !is_x86_feature_detected!("xsave") || __get_cpuid_max(0).0 < 7 {
        return false;
    }
    let (low, high): (u32, u32);
    // SAFETY: `xgetbv` is there where the system uses `xsave`, which the detection above asks for, and reads a register.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    let enabled = u64::from(high) << 32 | u64::from(low);
    __cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8 && enabled & TILE_STATE == TILE_STATE
}

/// Asks the system for the use of tiles. It holds for all threads.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let result: i64;
    // SAFETY: the call asks for a permission and touches no memory; the kernel clobbers rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Shapes of the tile registers.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Registers 0 and 3 are sums, 1 and 4 activations, 2 and 5 weights, `depth` of them at a time.
const fn config(depth: usize) -> Config {
    let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut i = 0;
    while i < 6 {
        (config.row_bytes[i], config.rows[i]) = (64, ROWS as u8);
        (config.row_bytes[i + 1], config.rows[i + 1]) = (depth as u16, ROWS as u8);
        (config.row_bytes[i + 2], config.rows[i + 2]) = (64, depth as u8 / 4);
        i += 3;
    }
    config
}

static WHOLE: Config = config(Q8_BLOCK);
static HALF: Config = config(Q8_BLOCK / 2);

/// Gets the tile registers ready.
///
/// # Safety
/// The CPU has AMX, and the process may use it.
#[inline(always)]
pub(super) unsafe fn begin(kind: Kind) {
    let config = if kind == Kind::Halves { &HALF } else { &WHOLE };
    // SAFETY: the caller promises the instruction; it reads 64 bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) config, options(nostack, readonly, preserves_flags)) };
}

/// Gives them back, so that the system need not save them when it switches threads.
///
/// # Safety
/// As [`begin`].
#[inline(always)]
pub(super) unsafe fn end() {
    // SAFETY: the caller promises the instruction.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
}

/// Sums of one tile: `[activation row][weight row]`.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Sums([[i32; 16]; ROWS]);

/// `to` = activations at `a`, `stride` bytes from row to row, times weights at `w`, in three registers: sums, activations, weights.
macro_rules! product {
    ($name:ident, $sum:literal, $acts:literal, $weights:literal) => {
        #[inline(always)]
        unsafe fn $name(a: *const i8, stride: usize, w: *const u8, to: *mut Sums) {
            // SAFETY: the caller promises AMX with registers ready, rows of activations of their size, `stride` apart, a tile
            // of weights, and room for the sums.
            unsafe {
                asm!(
                    concat!("tilezero ", $sum),
                    concat!("tileloadd ", $acts, ", [{a} + {stride}*1]"),
                    concat!("tileloadd ", $weights, ", [{w} + {line}*1]"),
                    concat!("tdpbssd ", $sum, ", ", $acts, ", ", $weights),
                    concat!("tilestored [{to} + {line}*1], ", $sum),
                    a = in(reg) a,
                    stride = in(reg) stride,
                    w = in(reg) w,
                    to = in(reg) to,
                    line = in(reg) 64usize,
                    options(nostack, preserves_flags),
                );
            }
        }
    };
}
product!(first, "tmm0", "tmm1", "tmm2");
product!(second, "tmm3", "tmm4", "tmm5");

/// The exact sums that block `i` needs, in one tile, or two where a format wants them apart.
#[inline(always)]
unsafe fn issue(kind: Kind, i: usize, quants: *const u8, a: &Columns, to: *mut [Sums; 2]) {
    let stride = a.stride * Q8_BLOCK;
    // SAFETY: as the caller of `sixteen` promises.
    unsafe {
        let (w, to) = (quants.add(i * Q8_BLOCK * 16), to.cast::<Sums>());
        match kind {
            Kind::Wide => {
                first(a.high.add(i * Q8_BLOCK), stride, w, to);
                second(a.low.add(i * Q8_BLOCK), stride, w, to.add(1));
            }
            Kind::Halves => {
                first(a.q.add(i * Q8_BLOCK), stride, w, to);
                second(a.q.add(i * Q8_BLOCK + 16), stride, w.add(256), to.add(1));
            }
            // Neighbours in other registers, so that they need not wait for each other.
            _ if i.is_multiple_of(2) => first(a.q.add(i * Q8_BLOCK), stride, w, to),
            _ => second(a.q.add(i * Q8_BLOCK), stride, w, to),
        }
    }
}

#[inline(always)]
unsafe fn load(sums: *const [Sums; 2], tile: usize, j: usize) -> __m512i {
    // SAFETY: the caller promises AVX-512 and a row below sixteen.
    unsafe { _mm512_load_si512((&raw const (*sums)[tile].0[j]).cast()) }
}

/// A panel, unpacked to signed bytes, times sixteen rows of activations.
///
/// # Safety
/// The CPU has AVX-512 and AMX, [`begin`] was called for the kind, `subs` blocks of sixteen rows are unpacked at `quants` and
/// `scales`, and `a` has sixteen rows.
#[inline(always)]
pub(super) unsafe fn sixteen(
    kind: Kind,
    quants: *const u8,
    scales: *const f32,
    subs: usize,
    a: Columns,
) -> [__m512; ROWS] {
    // SAFETY: as the caller promises.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); ROWS];
        // The sums of a block are turned to f32 while the tiles work on the next.
        let mut sums = [[Sums([[0; 16]; ROWS]); 2]; 2];
        issue(kind, 0, quants, &a, &raw mut sums[0]);
        for i in 0..subs {
            if i + 1 < subs {
                issue(kind, i + 1, quants, &a, &raw mut sums[(i + 1) % 2]);
            }
            let sums = &raw const sums[i % 2];
            let scale = [_mm512_loadu_ps(scales.add(32 * i)), _mm512_loadu_ps(scales.add(32 * i + 16))];
            for (j, acc) in acc.iter_mut().enumerate() {
                let isum = load(sums, 0, j);
                match kind {
                    Kind::Wide => {
                        let d = _mm512_set1_ps((*a.wide_scales.add(j * a.stride + i)).d);
                        let isum = _mm512_add_epi32(_mm512_slli_epi32(isum, 7), load(sums, 1, j));
                        *acc = _mm512_fmadd_ps(_mm512_mul_ps(scale[0], d), _mm512_cvtepi32_ps(isum), *acc);
                    }
                    Kind::Halves => {
                        let d = _mm512_set1_ps((*a.scales.add(j * a.stride + i)).d);
                        let sum = _mm512_fmadd_ps(_mm512_mul_ps(scale[0], d), _mm512_cvtepi32_ps(isum), *acc);
                        *acc = _mm512_fmadd_ps(_mm512_mul_ps(scale[1], d), _mm512_cvtepi32_ps(load(sums, 1, j)), sum);
                    }
                    Kind::Around(_) | Kind::Signed | Kind::Shifted => {
                        let of = a.scales.add(j * a.stride + i);
                        let d = _mm512_set1_ps((*of).d);
                        *acc = _mm512_fmadd_ps(_mm512_mul_ps(scale[0], d), _mm512_cvtepi32_ps(isum), *acc);
                        if kind == Kind::Shifted {
                            *acc = _mm512_fmadd_ps(scale[1], _mm512_set1_ps((*of).d_sum), *acc);
                        }
                    }
                }
            }
        }
        acc
    }
}

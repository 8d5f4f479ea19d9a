//! How an instruction set becomes a table of kernels.

/// Stamps out the table of one instruction set, inside its module, from three tokens: its eight lanes, its panels, and its
/// vectors of rows. `TABLE` is what another instruction set takes over, with panels (`panels:`) or attention (`attention:`) of
/// its own.
///
/// The wrappers are safe functions around `target_feature` functions. They are reachable only through `KERNELS`, which
/// [`Kernels::of`] hands out after it has detected the features.
macro_rules! stamp {
    (@entry $token:expr, $features:tt, $name:ident, $args:tt $(-> $ret:ty)?, $path:path) => {
        stamp!(@function (), $token, $features, $name, $args $(-> $ret)?, $path);
    };
    (@pub_entry $token:expr, $features:tt, $name:ident, $args:tt $(-> $ret:ty)?, $path:path) => {
        stamp!(@function (pub(super)), $token, $features, $name, $args $(-> $ret)?, $path);
    };
    (@function ($($vis:tt)*), $token:expr, ($($feature:literal)?), $name:ident, ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?,
        $path:path) => {
        $($vis)* fn $name($($arg: $ty),*) $(-> $ret)? {
            $(#[target_feature(enable = $feature)])?
            unsafe fn inner($($arg: $ty),*) $(-> $ret)? {
                $path($token, $($arg),*)
            }
            // SAFETY: only `KERNELS` refers to this function, and it is handed out where the CPU has the features.
            unsafe { inner($($arg),*) }
        }
    };
    (@matmul $token:expr, $features:tt, $name:ident, $path:path) => {
        stamp!(@entry $token, $features, $name, (w: &[u8], rows: usize, acts: Acts<'_>, out: &mut [f32]), $path);
    };
    (@panel $token:expr, $features:tt, $name:ident, $ty:ident) => {
        fn $name(panels: &[u8], skip: usize, rows: usize, acts: Acts<'_>, out: &mut [f32]) {
            // One row has a function to itself, where the loops of tiles of more have no say in what it keeps in registers.
            stamp!(@panel_of $token, $features, one, panel::multiply::<_, panel::$ty, true>);
            stamp!(@panel_of $token, $features, more, panel::multiply::<_, panel::$ty, false>);
            if acts.rows == 1 { one(panels, skip, rows, acts, out) } else { more(panels, skip, rows, acts, out) }
        }
    };
    (@panel_of $token:expr, $features:tt, $name:ident, $path:path) => {
        stamp!(@entry $token, $features, $name,
            (panels: &[u8], skip: usize, rows: usize, acts: Acts<'_>, out: &mut [f32]), $path);
    };
    (@phases $token:expr, $features:tt, $name:ident, $vectors:literal) => {
        mod $name {
            use super::*;
            stamp!(@phase $token, $features, score, attention_rows::score::<_, $vectors, TILE>);
            stamp!(@phase $token, $features, soften, attention_rows::soften::<_, $vectors>);
            stamp!(@phase $token, $features, weigh, attention_rows::weigh::<_, $vectors, TILE>);
            stamp!(@phase $token, $features, combine, attention_rows::combine::<_, $vectors>);
            stamp!(@phase $token, $features, finish, attention_rows::finish::<_, $vectors>);
            pub(super) const PHASES: Phases = Phases { score, soften, weigh, combine, finish };
        }
    };
    (@phase $token:expr, $features:tt, $name:ident, $path:path) => {
        stamp!(@entry $token, $features, $name, (band: &Band, step: Step, parts: &mut Parts<'_>), $path);
    };
    (panels: $token:expr $(, $feature:literal)?) => {
        mod panels {
            use crate::kernels::panel::{self, wide::Wide};
            use crate::kernels::stamp::stamp;
            use crate::kernels::{Acts, PanelKernels};

            stamp!(@panel $token, ($($feature)?), panel_q8_0, Q8_0);
            stamp!(@panel $token, ($($feature)?), panel_q4_0, Q4_0);
            stamp!(@panel $token, ($($feature)?), panel_q4_1, Q4_1);
            stamp!(@panel $token, ($($feature)?), panel_q5_0, Q5_0);
            stamp!(@panel $token, ($($feature)?), panel_q5_1, Q5_1);
            stamp!(@panel $token, ($($feature)?), panel_q4_k, Q4K);
            stamp!(@panel $token, ($($feature)?), panel_q5_k, Q5K);
            stamp!(@panel $token, ($($feature)?), panel_q6_k, Q6K);
            stamp!(@panel $token, ($($feature)?), panel_iq4_nl, Iq4Nl);
            stamp!(@panel $token, ($($feature)?), panel_iq4_xs, Iq4Xs);

            const fn rows_of<W: Wide>(_: W) -> usize {
                W::ROWS
            }

            pub(in crate::kernels) static PANELS: PanelKernels = PanelKernels {
                rows: rows_of($token),
                multiply: [
                    None,
                    None,
                    None,
                    Some(panel_q8_0),
                    Some(panel_q4_0),
                    Some(panel_q4_1),
                    Some(panel_q5_0),
                    Some(panel_q5_1),
                    Some(panel_q4_k),
                    Some(panel_q5_k),
                    Some(panel_q6_k),
                    Some(panel_iq4_nl),
                    Some(panel_iq4_xs),
                ],
            };
        }
    };
    (attention: $token:expr, $rows:expr $(, $feature:literal)?) => {
        mod attention {
            use super::*;
            use crate::kernels::attention;
            use crate::kernels::attention_rows::{self, Band, Parts, Phases, Step, Ways};
            use crate::kernels::stamp::stamp;
            use crate::kernels::{AttendScratch, Attention};

            /// Keys and outputs per tile of attention.
            const TILE: usize = attention_rows::tile_of($rows);
            stamp!(@phases $rows, ($($feature)?), two, 2);
            stamp!(@phases $rows, ($($feature)?), one, 1);
            stamp!(@phases $token, ($($feature)?), eight, 1);
            static WAYS: Ways = Ways {
                lanes: attention_rows::lanes_of($rows),
                two: two::PHASES,
                one: one::PHASES,
                eight: eight::PHASES,
            };
            stamp!(@pub_entry ($token, &WAYS), ($($feature)?), attend,
                (a: Attention<'_>, scratch: &mut AttendScratch, out: &mut [f32]), attention::attend::<_, TILE>);
        }
    };
    ($token:expr, $panels:expr, $rows:expr $(, $feature:literal)?) => {
        $crate::kernels::stamp::stamp!(panels: $panels $(, $feature)?);
        $crate::kernels::stamp::stamp!(attention: $token, $rows $(, $feature)?);
        mod table {
            use super::*;
            use crate::kernels::attention::{KvF16, KvF32, KvQ8, store};
            use crate::kernels::formats::{Iq4Nl, Iq4Xs, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
            use crate::kernels::matmul::{Bf16, F16, F32, blocks, dense};
            use crate::kernels::stamp::stamp;
            use crate::kernels::{Acts, ByteScale, LatentSums, WideScale, generic};

            stamp!(@entry $token, ($($feature)?), rms_norm,
                (x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]), generic::rms_norm);
            stamp!(@entry $token, ($($feature)?), silu_mul,
                (gate: &[f32], up: &[f32], out: &mut [f32]), generic::silu_mul);
            stamp!(@entry $token, ($($feature)?), add, (x: &[f32], out: &mut [f32]), generic::add);
            stamp!(@entry $token, ($($feature)?), layer_norm,
                (x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]), generic::layer_norm);
            stamp!(@entry $token, ($($feature)?), dot, (x: &[f32], y: &[f32]) -> f32, generic::dot);
            stamp!(@entry $token, ($($feature)?), sigmoid_mul, (gate: &[f32], out: &mut [f32]), generic::sigmoid_mul);
            stamp!(@entry $token, ($($feature)?), gelu_tanh, (x: &mut [f32]), generic::gelu_tanh);
            stamp!(@entry $token, ($($feature)?), half_relu_squared, (x: &mut [f32]), generic::half_relu_squared);
            stamp!(@entry $token, ($($feature)?), add_product,
                (x: &[f32], y: &[f32], out: &mut [f32]), generic::add_product);
            stamp!(@entry $token, ($($feature)?), rope_interleaved,
                (x: &mut [f32], cos: &[f32], sin: &[f32]), generic::rope_interleaved);
            stamp!(@entry $token, ($($feature)?), rope_halves,
                (x: &mut [f32], cos: &[f32], sin: &[f32]), generic::rope_halves);
            stamp!(@entry $token, ($($feature)?), quantize_row,
                (x: &[f32], q: &mut [i8], scales: &mut [ByteScale]), generic::quantize_row);
            stamp!(@entry $token, ($($feature)?), quantize_row_wide,
                (x: &[f32], wide: &mut [i16], high: &mut [i8], low: &mut [i8], scales: &mut [WideScale]),
                generic::quantize_row_wide);
            stamp!(@entry $token, ($($feature)?), latent_sums,
                (new: &[f32], state: &mut [f32], delta: &mut [f32]) -> LatentSums, generic::latent_sums);
            stamp!(@matmul $token, ($($feature)?), matmul_f32, dense::<_, F32>);
            stamp!(@matmul $token, ($($feature)?), matmul_f16, dense::<_, F16>);
            stamp!(@matmul $token, ($($feature)?), matmul_bf16, dense::<_, Bf16>);
            stamp!(@matmul $token, ($($feature)?), matmul_q8_0, blocks::<_, Q8_0>);
            stamp!(@matmul $token, ($($feature)?), matmul_q4_0, blocks::<_, Q4_0>);
            stamp!(@matmul $token, ($($feature)?), matmul_q4_1, blocks::<_, Q4_1>);
            stamp!(@matmul $token, ($($feature)?), matmul_q5_0, blocks::<_, Q5_0>);
            stamp!(@matmul $token, ($($feature)?), matmul_q5_1, blocks::<_, Q5_1>);
            stamp!(@matmul $token, ($($feature)?), matmul_q4_k, blocks::<_, Q4K>);
            stamp!(@matmul $token, ($($feature)?), matmul_q5_k, blocks::<_, Q5K>);
            stamp!(@matmul $token, ($($feature)?), matmul_q6_k, blocks::<_, Q6K>);
            stamp!(@matmul $token, ($($feature)?), matmul_iq4_nl, blocks::<_, Iq4Nl>);
            stamp!(@matmul $token, ($($feature)?), matmul_iq4_xs, blocks::<_, Iq4Xs>);
            stamp!(@entry $token, ($($feature)?), store_f32, (x: &[f32], row: &mut [u8]), store::<_, KvF32>);
            stamp!(@entry $token, ($($feature)?), store_f16, (x: &[f32], row: &mut [u8]), store::<_, KvF16>);
            stamp!(@entry $token, ($($feature)?), store_q8, (x: &[f32], row: &mut [u8]), store::<_, KvQ8>);

            pub(in crate::kernels) const TABLE: crate::kernels::Kernels = crate::kernels::Kernels {
                isa: ISA,
                rms_norm,
                silu_mul,
                add,
                layer_norm,
                dot,
                sigmoid_mul,
                gelu_tanh,
                half_relu_squared,
                add_product,
                rope_interleaved,
                rope_halves,
                quantize_row,
                quantize_row_wide,
                latent_sums,
                panels: &super::panels::PANELS,
                matmul: [
                    matmul_f32,
                    matmul_f16,
                    matmul_bf16,
                    matmul_q8_0,
                    matmul_q4_0,
                    matmul_q4_1,
                    matmul_q5_0,
                    matmul_q5_1,
                    matmul_q4_k,
                    matmul_q5_k,
                    matmul_q6_k,
                    matmul_iq4_nl,
                    matmul_iq4_xs,
                ],
                attend: super::attention::attend,
                store: [store_f32, store_f16, store_q8],
            };
        }
        pub(super) use table::TABLE;
        pub(super) static KERNELS: crate::kernels::Kernels = TABLE;
    };
}
pub(super) use stamp;

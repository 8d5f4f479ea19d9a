//! The same code compiled for several instruction sets, one of which is chosen at run time.
//!
//! No tier has fused multiply-add among its features, so none can contract what another rounds twice, and all give the
//! same bytes.

use std::sync::OnceLock;

/// An instruction set that the formats are compiled for, in ascending order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tier {
    /// One block at a time with what every CPU of the architecture has: the oracle for the others.
    Scalar,
    /// Eight blocks at a time with what every CPU of the architecture has, which on 64-bit ARM includes NEON.
    Portable,
    /// Eight blocks at a time with AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

/// Something to be compiled for every tier. All that `run` calls must be inlined into it to be compiled for the tier.
pub(super) trait Work {
    /// What it gives.
    type Output;

    /// Does it, `L` blocks at a time.
    fn run<const L: usize>(self) -> Self::Output;
}

impl Tier {
    /// Every tier of the architecture.
    const ALL: &[Tier] = &[
        Tier::Scalar,
        Tier::Portable,
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2,
    ];

    /// The name in `RDT_ISA`, where the tier stands for one of the instruction sets named there.
    fn name(self) -> &'static str {
        match self {
            Tier::Scalar => "scalar",
            Tier::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => "avx2",
        }
    }

    fn is_available(self) -> bool {
        match self {
            Tier::Scalar | Tier::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => is_x86_feature_detected!("avx2"),
        }
    }

    /// The tiers that this machine can run.
    pub(super) fn available() -> impl DoubleEndedIterator<Item = Tier> {
        Self::ALL.iter().copied().filter(|tier| tier.is_available())
    }

    /// The best tier of this machine, or the one that `RDT_ISA` names. A name that means nothing here is for the
    /// kernels to refuse.
    pub(super) fn best() -> Tier {
        static BEST: OnceLock<Tier> = OnceLock::new();
        *BEST.get_or_init(|| {
            let forced = crate::isa::forced();
            let named = Self::available().find(|tier| forced.as_deref() == Some(tier.name()));
            named.or_else(|| Self::available().next_back()).unwrap_or(Tier::Scalar)
        })
    }

    /// Does the work as compiled for this tier, which must be one of [`Tier::available`].
    #[inline]
    pub(super) fn run<W: Work>(self, work: W) -> W::Output {
        match self {
            Tier::Scalar => work.run::<1>(),
            Tier::Portable => work.run::<8>(),
            // SAFETY: a tier is only handed out by `available` and `best`, where the CPU has its features.
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => unsafe { avx2(work) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<W: Work>(work: W) -> W::Output {
    work.run::<8>()
}

//! The KV cache under recurrence: core blocks keep keys and values per loop step, up to a number of slots.

use super::{Error, LoopPlan};
use crate::kernels::KvType;
use crate::team::Buffer;
use std::ops::Range;

/// How large a cache is, decided before it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Storage format.
    pub ty: KvType,
    /// Positions per sequence.
    pub context: usize,
    /// Loop steps that keep keys and values of their own: step j (from 0) writes slot j mod `slots`.
    pub slots: usize,
    /// Independent sequences.
    pub sequences: usize,
    /// Bytes in all.
    pub bytes: u64,
}

/// What a session asks of its cache; `None` means "choose".
#[derive(Debug, Clone, Copy)]
pub(super) struct KvRequest {
    pub ty: KvType,
    pub context: Option<usize>,
    pub slots: Option<usize>,
    pub sequences: usize,
    /// Steps that rows may take: all slots keep this many.
    pub steps: usize,
    pub budget: u64,
}

/// Below this many positions the automatic choice gives up loop slots before context.
const COMFORTABLE_CONTEXT: usize = 2048;

impl KvShape {
    /// Chooses context and slots within the budget: all slots unless that exceeds it; then the context is shortened, then the
    /// slots (16, 8, 4, 2, 1), then the context again. What the caller has fixed is kept. `kv_heads`: of every block.
    pub(super) fn choose(
        request: KvRequest,
        trained_context: usize,
        plan: &LoopPlan,
        kv_heads: &[usize],
        head_dim: usize,
    ) -> Result<Self, Error> {
        let KvRequest { ty, sequences, budget, .. } = request;
        let row = ty.row_bytes(head_dim).ok_or_else(|| {
            Error::Option(format!(
                "KV type {ty} needs a head size that is a multiple of 32, this model's is {head_dim}; use f16"
            ))
        })?;
        let bytes = |context: usize, slots: usize| -> Option<u64> {
            let rows = kv_heads.iter().enumerate().try_fold(0u64, |n, (b, &heads)| {
                let slots = if plan.core.contains(&b) { slots } else { 1 };
                n.checked_add((heads as u64).checked_mul(slots as u64)?)
            })?;
            [sequences, context, row, 2].iter().try_fold(rows, |n, &f| n.checked_mul(f as u64))
        };
        let shape = |context: usize, slots: usize| {
            let bytes = bytes(context, slots).unwrap_or(u64::MAX);
            KvShape { ty, context, slots, sequences, bytes }
        };
        let wanted_context = request.context.unwrap_or(trained_context);
        let wanted_slots = request.slots.unwrap_or(request.steps).min(request.steps);
        let mut candidates = vec![(wanted_context, wanted_slots)];
        let shorter = |from: usize, floor: usize| {
            std::iter::successors(Some(from / 2), |c| Some(c / 2))
                .take_while(move |&c| c >= floor.max(1))
                .collect::<Vec<_>>()
        };
        let floor = if request.context.is_some() { wanted_context } else { wanted_context.min(COMFORTABLE_CONTEXT) };
        candidates.extend(shorter(wanted_context, floor).into_iter().map(|c| (c, wanted_slots)));
        let last_context = candidates.last().map_or(wanted_context, |c| c.0);
        let mut last_slots = wanted_slots;
        if request.slots.is_none() {
            for slots in [16, 8, 4, 2, 1].into_iter().filter(|&s| s < wanted_slots) {
                candidates.push((last_context, slots));
                last_slots = slots;
            }
        }
        if request.context.is_none() {
            candidates.extend(shorter(last_context, 128).into_iter().map(|c| (c, last_slots)));
        }
        // The largest number stands for more than any number: it fits no budget.
        let fits = |s: &KvShape| s.bytes < u64::MAX && s.bytes <= budget;
        candidates.iter().map(|&(c, s)| shape(c, s)).find(fits).ok_or_else(|| {
            let smallest = candidates.last().map_or(shape(wanted_context, 1), |&(c, s)| shape(c, s));
            Error::KvMemory { context: smallest.context, needed: smallest.bytes, budget }
        })
    }
}

/// Where the planes of a block lie.
#[derive(Debug, Clone, Copy)]
struct Planes {
    /// First byte of the block's slot 0.
    offset: usize,
    /// Bytes of one slot: `[sequence][head][position][row]`.
    slot: usize,
    slots: usize,
    heads: usize,
}

/// Keys and values, each `[block][slot][sequence][head][position][head_dim]`.
pub(super) struct KvCache {
    pub keys: Buffer<u8>,
    pub values: Buffer<u8>,
    blocks: Vec<Planes>,
    context: usize,
    row: usize,
}

impl KvCache {
    pub(super) fn new(shape: &KvShape, plan: &LoopPlan, kv_heads: &[usize], head_dim: usize) -> Result<Self, Error> {
        let none = || Error::Memory { bytes: shape.bytes };
        // The offsets below stay under this, so their arithmetic cannot overflow.
        let size = usize::try_from(shape.bytes / 2).map_err(|_| none())?;
        let row = shape.ty.row_bytes(head_dim).unwrap_or(0);
        let mut end = 0;
        let blocks = kv_heads
            .iter()
            .enumerate()
            .map(|(b, &heads)| {
                let slots = if plan.core.contains(&b) { shape.slots } else { 1 };
                let slot = shape.sequences * heads * shape.context * row;
                let planes = Planes { offset: end, slot, slots, heads };
                end += slot * slots;
                planes
            })
            .collect();
        debug_assert_eq!(end, size);
        let part = || Buffer::try_zeroed(size).ok_or_else(none);
        Ok(Self { keys: part()?, values: part()?, blocks, context: shape.context, row })
    }

    /// Bytes of positions `positions` of one head.
    pub(super) fn rows(
        &self,
        block: usize,
        slot: usize,
        sequence: usize,
        head: usize,
        positions: Range<usize>,
    ) -> Range<usize> {
        let p = &self.blocks[block];
        debug_assert!(slot < p.slots && head < p.heads && positions.end <= self.context);
        let base = p.offset + slot * p.slot + (sequence * p.heads + head) * self.context * self.row;
        base + positions.start * self.row..base + positions.end * self.row
    }

    /// After a row has left the loop with `steps` done, shows its last keys and values in the slots it never wrote.
    ///
    /// # Safety
    /// Nobody else reads or writes this block's keys and values at this row's position.
    pub(super) unsafe fn fill_forward(&self, block: usize, sequence: usize, position: usize, steps: usize) {
        let p = self.blocks[block];
        for head in 0..p.heads {
            // With fewer slots than steps, every slot has been written.
            for slot in steps..p.slots {
                let from = self.rows(block, steps - 1, sequence, head, position..position + 1);
                let to = self.rows(block, slot, sequence, head, position..position + 1);
                for part in [&self.keys, &self.values] {
                    // SAFETY: the caller has this position of the block to itself, and the two slots are disjoint.
                    unsafe { part.write(to.clone()).copy_from_slice(part.read(from.clone())) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One prelude, two core and one coda block of four heads of 32 values.
    const HEADS: [usize; 4] = [4; 4];
    const HEAD_DIM: usize = 32;
    const TRAINED: usize = 8192;
    /// Bytes of a position in f16: keys and values, with `slots` slots.
    fn position(slots: u64) -> u64 {
        (2 + 2 * slots) * 4 * 32 * 2 * 2
    }

    fn request(budget: u64) -> KvRequest {
        KvRequest { ty: KvType::F16, context: None, slots: None, sequences: 1, steps: 32, budget }
    }

    fn choose(request: KvRequest) -> Result<KvShape, Error> {
        KvShape::choose(request, TRAINED, &LoopPlan::new(1, 2, 1), &HEADS, HEAD_DIM)
    }

    fn chosen(request: KvRequest) -> (usize, usize) {
        let shape = choose(request).unwrap();
        assert!(shape.bytes <= request.budget);
        assert_eq!(shape.bytes, position(shape.slots as u64) * (shape.context * shape.sequences) as u64);
        (shape.context, shape.slots)
    }

    /// Halving the budget again and again: the context goes first, to a quarter, then the slots, then the context again.
    #[test]
    fn context_goes_first_then_slots_then_context() {
        let ladder = [
            (8192, 32),
            (4096, 32),
            (2048, 32),
            (2048, 16),
            (2048, 8),
            (2048, 4),
            (2048, 2),
            (2048, 1),
            (1024, 1),
            (512, 1),
            (256, 1),
            (128, 1),
        ];
        for (i, &(context, slots)) in ladder.iter().enumerate() {
            let exact = position(slots as u64) * context as u64;
            assert_eq!(chosen(request(exact)), (context, slots), "exactly enough");
            if let Some(&next) = ladder.get(i + 1) {
                assert_eq!(chosen(request(exact - 1)), next, "one byte too few");
            }
        }
        let least = position(1) * 128;
        match choose(request(least - 1)) {
            Err(Error::KvMemory { context: 128, needed, budget }) => assert_eq!((needed, budget), (least, least - 1)),
            other => panic!("{other:?}"),
        }
        assert_eq!(chosen(request(u64::MAX)), (TRAINED, 32));
    }

    #[test]
    fn what_the_caller_fixes_is_kept() {
        let small = position(3) * 2048;
        // The context is fixed: only slots go.
        assert_eq!(chosen(KvRequest { context: Some(2048), ..request(small) }), (2048, 2));
        assert_eq!(chosen(KvRequest { context: Some(100), ..request(small) }), (100, 32));
        // The slots are fixed: only the context goes, and further down than usual.
        assert_eq!(chosen(KvRequest { slots: Some(16), ..request(small) }), (256, 16));
        // Both are: take it or leave it.
        let both = KvRequest { context: Some(2048), slots: Some(3), ..request(small) };
        assert_eq!(chosen(both), (2048, 3));
        let error = choose(KvRequest { budget: small - 1, ..both }).unwrap_err();
        assert!(matches!(error, Error::KvMemory { context: 2048, needed, .. } if needed == small));
        // More slots than steps are never used.
        assert_eq!(chosen(KvRequest { slots: Some(1000), ..request(u64::MAX) }), (TRAINED, 32));
        assert_eq!(chosen(KvRequest { slots: Some(usize::MAX), steps: 3, ..request(u64::MAX) }), (TRAINED, 3));
    }

    #[test]
    fn few_steps_skip_the_slots_they_would_not_use() {
        let steps_6 = |budget| chosen(KvRequest { steps: 6, ..request(budget) });
        assert_eq!(steps_6(position(6) * 2048 - 1), (2048, 4));
        assert_eq!(steps_6(position(1) * 2048 - 1), (1024, 1));
        // One step, one slot: nothing but the context can go.
        assert_eq!(chosen(KvRequest { steps: 1, ..request(position(1) * 2048 - 1) }), (1024, 1));
    }

    /// Contexts that the comfortable one does not divide are not cut below it while there are slots to give up.
    #[test]
    fn odd_contexts_are_halved() {
        let of = |trained, budget| {
            let plan = LoopPlan::new(1, 2, 1);
            let shape = KvShape::choose(request(budget), trained, &plan, &HEADS, HEAD_DIM).unwrap();
            (shape.context, shape.slots)
        };
        assert_eq!(of(3000, position(32) * 3000), (3000, 32));
        assert_eq!(of(3000, position(32) * 3000 - 1), (3000, 16));
        assert_eq!(of(3000, position(1) * 3000 - 1), (1500, 1));
        assert_eq!(of(5000, position(32) * 5000 - 1), (2500, 32));
        // Short ones give up slots at once, and are not cut to nothing.
        assert_eq!(of(100, position(1) * 100), (100, 1));
    }

    #[test]
    fn huge_numbers_are_too_much_rather_than_an_overflow() {
        let huge = usize::MAX;
        for request in [
            KvRequest { context: Some(huge), ..request(1 << 30) },
            KvRequest { sequences: huge, ..request(1 << 30) },
            KvRequest { slots: Some(huge), steps: huge, ..request(1 << 30) },
            KvRequest { slots: Some(huge), steps: huge, context: Some(huge), sequences: huge, ..request(u64::MAX - 1) },
        ] {
            match choose(request) {
                Err(Error::KvMemory { needed, budget, .. }) => assert!(needed > budget),
                other => panic!("{other:?}"),
            }
        }
        // Any number of steps is fine as long as the slots are not fixed.
        assert_eq!(chosen(KvRequest { steps: huge, ..request(position(8) * 2048) }), (2048, 8));
        let blocks = vec![huge; 3];
        let plan = LoopPlan::new(1, 1, 1);
        assert!(KvShape::choose(request(1 << 40), 1, &plan, &blocks, 32).is_err());
    }

    /// A budget without a limit, even the largest number there is, does not turn an overflow into a cache that fits.
    #[test]
    fn an_overflow_never_fits() {
        let r = KvRequest { context: Some(usize::MAX), slots: Some(4), ..request(u64::MAX) };
        assert!(matches!(choose(r), Err(Error::KvMemory { .. })), "{:?}", choose(r));
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        let shape = KvShape { ty: KvType::F16, context: 1, slots: 1, sequences: 1, bytes: u64::MAX - 1 };
        let plan = LoopPlan::new(0, 1, 0);
        let shape = KvShape { context: (shape.bytes / 2 / 2) as usize / 32, ..shape };
        let shape = KvShape { bytes: shape.context as u64 * 128, ..shape };
        assert!(matches!(KvCache::new(&shape, &plan, &[1], 32), Err(Error::Memory { .. })));
    }

    #[test]
    fn head_sizes_that_a_type_cannot_store_are_refused() {
        let plan = LoopPlan::new(0, 1, 0);
        let r = KvRequest { ty: KvType::Q8_0, ..request(u64::MAX) };
        assert!(matches!(KvShape::choose(r, 10, &plan, &[1], 48), Err(Error::Option(_))));
        assert_eq!(KvShape::choose(r, 10, &plan, &[1], 64).unwrap().bytes, 32 * 10 * 2 * 68);
    }

    /// Planes of all blocks, slots, sequences and heads are disjoint and fill the cache.
    #[test]
    fn planes_are_disjoint_and_complete() {
        let (plan, heads) = (LoopPlan::new(1, 2, 1), [1, 3, 2, 1]);
        let r = KvRequest { sequences: 2, steps: 3, context: Some(5), ..request(u64::MAX) };
        let shape = KvShape::choose(r, 5, &plan, &heads, 8).unwrap();
        let mut cache = KvCache::new(&shape, &plan, &heads, 8).unwrap();
        assert_eq!(cache.keys.len() as u64 * 2, shape.bytes);
        let mut seen = vec![0u8; cache.keys.len()];
        for (block, &heads) in heads.iter().enumerate() {
            for slot in 0..if plan.core.contains(&block) { 3 } else { 1 } {
                for (sequence, head) in (0..2).flat_map(|s| (0..heads).map(move |h| (s, h))) {
                    for p in 0..5 {
                        seen[cache.rows(block, slot, sequence, head, p..p + 1)].iter_mut().for_each(|n| *n += 1);
                    }
                }
            }
        }
        assert!(seen.iter().all(|&n| n == 1));

        // Filling forward copies the last slot written to those behind it, at one position of one sequence.
        let (keys, values) = (cache.keys.get_mut(), cache.values.get_mut());
        for i in 0..keys.len() {
            (keys[i], values[i]) = (i as u8, !(i as u8));
        }
        let before = (keys.to_vec(), values.to_vec());
        // SAFETY: nobody else has the cache.
        unsafe { cache.fill_forward(1, 1, 3, 2) };
        let mut expected = before.clone();
        for head in 0..3 {
            let (from, to) = (cache.rows(1, 1, 1, head, 3..4), cache.rows(1, 2, 1, head, 3..4));
            expected.0.copy_within(from.clone(), to.start);
            expected.1.copy_within(from, to.start);
        }
        assert!(cache.keys.get_mut() == expected.0 && cache.values.get_mut() == expected.1);
        // As many steps as slots or more: all were written.
        for steps in [3, 4, 100] {
            // SAFETY: as above.
            unsafe { cache.fill_forward(1, 1, 3, steps) };
            assert!(cache.keys.get_mut() == expected.0);
        }
    }
}

//! The KV cache under recurrence: core blocks keep keys and values per loop step, up to a number of slots.

use super::{Block, Error, LoopPlan, Segment};
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

/// What a cache keeps of every physical block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvLayout {
    blocks: Vec<BlockKv>,
    head_dim: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BlockKv {
    /// Key and value heads.
    heads: usize,
    /// Runs per loop step, each with keys and values of its own; 0: outside the loop, where there is one run in all.
    passes: usize,
}

impl BlockKv {
    /// Planes of `[sequence][head][position]` with this many slots.
    fn planes(self, slots: usize) -> Option<usize> {
        if self.passes == 0 { Some(1) } else { slots.checked_mul(self.passes) }
    }
}

impl KvLayout {
    /// The layout of a model.
    pub fn of(plan: &LoopPlan, blocks: &[Block], head_dim: usize) -> Self {
        let passes = |b: usize| {
            plan.segments.iter().fold(0, |n, s| match s {
                Segment::Once(_) => n,
                Segment::Looped(l) => n.max(l.passes_over(b)),
            })
        };
        let blocks = blocks.iter().enumerate().map(|(b, block)| BlockKv { heads: block.kv_heads, passes: passes(b) });
        Self { blocks: blocks.collect(), head_dim }
    }

    /// Bytes of keys and values per position, where `slots` loop steps keep their own; `None` for a format that cannot store heads
    /// of this size, or a number beyond 64 bits.
    pub fn bytes_per_position(&self, ty: KvType, slots: usize) -> Option<u64> {
        let row = ty.row_bytes(self.head_dim)?;
        let rows = self
            .blocks
            .iter()
            .try_fold(0u64, |n, b| n.checked_add((b.heads as u64).checked_mul(b.planes(slots)? as u64)?))?;
        rows.checked_mul(2)?.checked_mul(row as u64)
    }

    /// Planes of keys (and of values) of a block per loop slot, one for every pass of a step over it; `None`: it is outside any loop, and
    /// has one plane in all.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn passes(&self, block: usize) -> Option<usize> {
        Some(self.blocks[block].passes).filter(|&n| n > 0)
    }

    /// The largest budget with which no block's keys (or values) take more than `most` bytes.
    pub(super) fn budget_within(&self, most: u64) -> u64 {
        let heads = |b: &BlockKv| b.heads as u64 * b.passes.max(1) as u64;
        let share = |looped: bool| {
            // More slots make a block outside the loop a smaller part of all; of those inside, each keeps its part of the loop's.
            let all: u64 = self.blocks.iter().filter(|b| !looped || b.passes > 0).map(heads).sum();
            let largest = self.blocks.iter().filter(|b| looped == (b.passes > 0)).map(heads).max();
            largest.map_or(u64::MAX, |n| {
                (u128::from(most) * 2 * u128::from(all) / u128::from(n.max(1))).try_into().unwrap_or(u64::MAX)
            })
        };
        share(true).min(share(false))
    }
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
    /// slots (16, 8, 4, 2, 1), then the context again. What the caller has fixed is kept.
    pub(super) fn choose(request: KvRequest, trained_context: usize, layout: &KvLayout) -> Result<Self, Error> {
        let KvRequest { ty, sequences, budget, .. } = request;
        let head_dim = layout.head_dim;
        if ty.row_bytes(head_dim).is_none() {
            return Err(Error::Option(format!(
                "KV type {ty} needs a head size that is a multiple of 32, this model's is {head_dim}; use f16"
            )));
        }
        let bytes = |context: usize, slots: usize| -> Option<u64> {
            let position = layout.bytes_per_position(ty, slots)?;
            position.checked_mul(sequences as u64)?.checked_mul(context as u64)
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
    /// First byte of the block's plane 0.
    offset: usize,
    /// Bytes of one plane: `[sequence][head][position][row]`.
    plane: usize,
    /// Planes per slot: one for every pass of a loop step over the block.
    passes: usize,
    slots: usize,
    heads: usize,
}

/// Keys and values, each `[block][slot][pass][sequence][head][position][head_dim]`.
pub(super) struct KvCache {
    pub keys: Buffer<u8>,
    pub values: Buffer<u8>,
    blocks: Vec<Planes>,
    context: usize,
    row: usize,
}

impl KvCache {
    pub(super) fn new(shape: &KvShape, layout: &KvLayout) -> Result<Self, Error> {
        let none = || Error::Memory { bytes: shape.bytes };
        // The offsets below stay under this, so their arithmetic cannot overflow.
        let size = usize::try_from(shape.bytes / 2).map_err(|_| none())?;
        let row = shape.ty.row_bytes(layout.head_dim).unwrap_or(0);
        let mut end = 0;
        let blocks = layout
            .blocks
            .iter()
            .map(|&BlockKv { heads, passes }| {
                let (slots, passes) = if passes == 0 { (1, 1) } else { (shape.slots, passes) };
                let plane = shape.sequences * heads * shape.context * row;
                let planes = Planes { offset: end, plane, passes, slots, heads };
                end += plane * passes * slots;
                planes
            })
            .collect();
        debug_assert_eq!(end, size);
        let part = || Buffer::try_zeroed(size).ok_or_else(none);
        Ok(Self { keys: part()?, values: part()?, blocks, context: shape.context, row })
    }

    /// The plane of a block that loop step `step` (from 0) uses in its `pass`-th pass over the block.
    pub(super) fn plane(&self, block: usize, step: usize, pass: usize) -> usize {
        let p = &self.blocks[block];
        step % p.slots * p.passes + pass
    }

    /// Bytes of positions `positions` of one head in a [`plane`](Self::plane).
    pub(super) fn rows(
        &self,
        block: usize,
        plane: usize,
        sequence: usize,
        head: usize,
        positions: Range<usize>,
    ) -> Range<usize> {
        let p = &self.blocks[block];
        debug_assert!(plane < p.slots * p.passes && head < p.heads && positions.end <= self.context);
        let base = p.offset + plane * p.plane + (sequence * p.heads + head) * self.context * self.row;
        base + positions.start * self.row..base + positions.end * self.row
    }

    /// Keys and values of the first `n` positions of a sequence, of all planes of all blocks.
    #[cfg(test)]
    pub(super) fn bytes_of(&mut self, sequence: usize, n: usize) -> Vec<u8> {
        let mut ranges = Vec::new();
        for (b, p) in self.blocks.iter().enumerate() {
            for (plane, head) in (0..p.slots * p.passes).flat_map(|plane| (0..p.heads).map(move |head| (plane, head))) {
                ranges.push(self.rows(b, plane, sequence, head, 0..n));
            }
        }
        let (keys, values) = (self.keys.get_mut(), self.values.get_mut());
        ranges.into_iter().flat_map(|r| [keys[r.clone()].to_vec(), values[r].to_vec()].concat()).collect()
    }

    /// After a row has left the loop with `steps` done, shows its last keys and values in the slots it never wrote.
    ///
    /// # Safety
    /// Nobody else reads or writes this block's keys and values at this row's position.
    pub(super) unsafe fn fill_forward(&self, block: usize, sequence: usize, position: usize, steps: usize) {
        let p = self.blocks[block];
        // With fewer slots than steps, every slot has been written.
        for (pass, slot) in (0..p.passes).flat_map(|pass| (steps..p.slots).map(move |slot| (pass, slot))) {
            for head in 0..p.heads {
                let at = |step| self.rows(block, self.plane(block, step, pass), sequence, head, position..position + 1);
                let (from, to) = (at(steps - 1), at(slot));
                for part in [&self.keys, &self.values] {
                    // SAFETY: the caller has this position of the block to itself, and the two planes are disjoint.
                    unsafe { part.write(to.clone()).copy_from_slice(part.read(from.clone())) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD_DIM: usize = 32;

    /// Blocks of (heads, passes per loop step; 0 outside the loop).
    fn layout(blocks: &[(usize, usize)]) -> KvLayout {
        let blocks = blocks.iter().map(|&(heads, passes)| BlockKv { heads, passes }).collect();
        KvLayout { blocks, head_dim: HEAD_DIM }
    }

    /// One prelude, two core and one coda block of four heads of 32 values.
    fn usual() -> KvLayout {
        layout(&[(4, 0), (4, 1), (4, 1), (4, 0)])
    }

    const TRAINED: usize = 8192;
    /// Bytes of a position in f16: keys and values, with `slots` slots.
    fn position(slots: u64) -> u64 {
        (2 + 2 * slots) * 4 * 32 * 2 * 2
    }

    fn request(budget: u64) -> KvRequest {
        KvRequest { ty: KvType::F16, context: None, slots: None, sequences: 1, steps: 32, budget }
    }

    fn choose(request: KvRequest) -> Result<KvShape, Error> {
        KvShape::choose(request, TRAINED, &usual())
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
            let shape = KvShape::choose(request(budget), trained, &usual()).unwrap();
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
        assert!(KvShape::choose(request(1 << 40), 1, &layout(&[(huge, 0), (huge, 1)])).is_err());
        assert!(KvShape::choose(request(1 << 40), 1, &layout(&[(1, huge)])).is_err());
    }

    /// A device that holds so much of a block at once gets no larger block, and nearly one as large.
    #[test]
    fn budgets_within_a_limit_per_block() {
        for layout in [usual(), layout(&[(8, 0), (2, 1)]), layout(&[(1, 0), (4, 2), (2, 1)]), layout(&[(3, 1)])] {
            for most in [1 << 18, 1 << 20, 3 << 20] {
                let budget = layout.budget_within(most);
                let request = KvRequest { budget, ..request(0) };
                let Ok(shape) = KvShape::choose(request, TRAINED, &layout) else { panic!("{layout:?} in {most}") };
                let block = |b: &BlockKv| {
                    let planes = b.planes(shape.slots).unwrap();
                    (b.heads * planes * shape.context * HEAD_DIM * 2) as u64
                };
                let largest = layout.blocks.iter().map(block).max().unwrap();
                assert!(largest <= most, "{layout:?}: {largest} of {most}");
                assert!(
                    (shape.context, shape.slots) == (TRAINED, 32) || largest * 8 > most,
                    "{layout:?}: {largest} of {most}"
                );
            }
        }
        assert_eq!(usual().budget_within(u64::MAX), u64::MAX);
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
        let shape = KvShape { context: (shape.bytes / 2 / 2) as usize / 32, ..shape };
        let shape = KvShape { bytes: shape.context as u64 * 128, ..shape };
        assert!(matches!(KvCache::new(&shape, &layout(&[(1, 1)])), Err(Error::Memory { .. })));
    }

    #[test]
    fn head_sizes_that_a_type_cannot_store_are_refused() {
        let r = KvRequest { ty: KvType::Q8_0, ..request(u64::MAX) };
        let heads_of = |head_dim| KvLayout { head_dim, ..layout(&[(1, 1)]) };
        assert!(matches!(KvShape::choose(r, 10, &heads_of(48)), Err(Error::Option(_))));
        assert_eq!(heads_of(48).bytes_per_position(KvType::Q8_0, 1), None);
        assert_eq!(KvShape::choose(r, 10, &heads_of(64)).unwrap().bytes, 32 * 10 * 2 * 68);
    }

    /// Planes of all blocks, slots, sequences and heads are disjoint and fill the cache.
    #[test]
    fn planes_are_disjoint_and_complete() {
        let blocks = [(1, 0), (3, 2), (2, 1), (1, 0)];
        let layout = KvLayout { head_dim: 8, ..layout(&blocks) };
        let r = KvRequest { sequences: 2, steps: 3, context: Some(5), ..request(u64::MAX) };
        let shape = KvShape::choose(r, 5, &layout).unwrap();
        let mut cache = KvCache::new(&shape, &layout).unwrap();
        assert_eq!(cache.keys.len() as u64 * 2, shape.bytes);
        let mut seen = vec![0u8; cache.keys.len()];
        for (block, &(heads, passes)) in blocks.iter().enumerate() {
            let steps = if passes == 0 { 1 } else { 3 };
            for (step, pass) in (0..steps).flat_map(|s| (0..passes.max(1)).map(move |p| (s, p))) {
                let plane = cache.plane(block, step, pass);
                assert_eq!(plane, cache.plane(block, step + steps, pass), "steps beyond the slots share them");
                for (sequence, head) in (0..2).flat_map(|s| (0..heads).map(move |h| (s, h))) {
                    for p in 0..5 {
                        seen[cache.rows(block, plane, sequence, head, p..p + 1)].iter_mut().for_each(|n| *n += 1);
                    }
                }
            }
        }
        assert!(seen.iter().all(|&n| n == 1));

        // Filling forward copies the last slot written to those behind it, at one position of one sequence, for both passes.
        let (keys, values) = (cache.keys.get_mut(), cache.values.get_mut());
        for i in 0..keys.len() {
            (keys[i], values[i]) = (i as u8, !(i as u8));
        }
        let before = (keys.to_vec(), values.to_vec());
        // SAFETY: nobody else has the cache.
        unsafe { cache.fill_forward(1, 1, 3, 2) };
        let mut expected = before.clone();
        for (pass, head) in (0..2).flat_map(|p| (0..3).map(move |h| (p, h))) {
            let at = |step| cache.rows(1, cache.plane(1, step, pass), 1, head, 3..4);
            let (from, to) = (at(1), at(2));
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

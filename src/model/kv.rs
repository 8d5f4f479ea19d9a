//! The KV cache under recurrence: core blocks keep keys and values per loop step, up to a number of slots.

use super::{Block, Error, LoopPlan};
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
    /// slots (16, 8, 4, 2, 1), then the context again. What the caller has fixed is kept.
    pub(super) fn choose(
        request: KvRequest,
        trained_context: usize,
        plan: &LoopPlan,
        blocks: &[Block],
        head_dim: usize,
    ) -> Result<Self, Error> {
        let KvRequest { ty, sequences, budget, .. } = request;
        let row = ty.row_bytes(head_dim).ok_or_else(|| {
            Error::Option(format!(
                "KV type {ty} needs a head size that is a multiple of 32, this model's is {head_dim}; use f16"
            ))
        })?;
        let bytes = |context: usize, slots: usize| -> Option<u64> {
            let rows: usize = blocks
                .iter()
                .enumerate()
                .map(|(b, x)| x.kv_heads * if plan.core.contains(&b) { slots } else { 1 })
                .sum();
            [sequences, context, row, 2].iter().try_fold(rows as u64, |n, &f| n.checked_mul(f as u64))
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
        candidates.iter().map(|&(c, s)| shape(c, s)).find(|s| s.bytes <= budget).ok_or_else(|| {
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
    pub(super) fn new(shape: &KvShape, plan: &LoopPlan, blocks: &[Block], head_dim: usize) -> Self {
        let row = shape.ty.row_bytes(head_dim).unwrap_or(0);
        let mut end = 0;
        let planes = blocks
            .iter()
            .enumerate()
            .map(|(b, x)| {
                let slots = if plan.core.contains(&b) { shape.slots } else { 1 };
                let slot = shape.sequences * x.kv_heads * shape.context * row;
                let planes = Planes { offset: end, slot, slots, heads: x.kv_heads };
                end += slot * slots;
                planes
            })
            .collect();
        Self { keys: Buffer::new(end), values: Buffer::new(end), blocks: planes, context: shape.context, row }
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

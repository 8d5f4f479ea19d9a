//! A model's plan as a list of dispatches, put together once for each size of chunk ([`Builder`](super::builder::Builder)) and recorded
//! anew for every chunk.
//!
//! What depends on how deep rows go is decided on the device: inside a loop every dispatch takes its size from a buffer that
//! `decide.wgsl` writes after each step, rows that have left are no part of it, and once none is left the sizes are zero.

use super::buffers::Flow;
use super::shader::Pipeline;
use std::sync::Arc;

/// Which rows a dispatch is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// All rows of the chunk.
    All,
    /// Rows in the loop, where the device says how many.
    Active,
    /// The only row, if its read-out was asked for.
    Read,
    /// Rows whose logits are wanted.
    Wanted,
}

impl Over {
    pub(super) fn count(self) -> u32 {
        let word = match self {
            Over::All => Flow::ALL,
            Over::Active => Flow::ACTIVE,
            Over::Read => Flow::READ,
            Over::Wanted => Flow::WANTED,
        };
        word as u32
    }
}

/// How many workgroups a dispatch takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grid {
    /// Columns, and rows per workgroup; no columns: the rows are the columns.
    Rows {
        over: Over,
        x: u32,
        per: u32,
    },
    One,
}

/// A dispatch that is ready to be recorded.
pub(super) struct Op {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) group: wgpu::BindGroup,
    pub(super) grid: Grid,
    /// Where its size is in the buffer of sizes.
    pub(super) indirect: u64,
}

impl Op {
    /// Records it for a chunk of `all` rows of which `wanted` have logits.
    pub(super) fn record(&self, pass: &mut wgpu::ComputePass<'_>, sizes: &wgpu::Buffer, all: usize, wanted: usize) {
        pass.set_pipeline(&self.pipeline.compute);
        pass.set_bind_group(0, &self.group, &[]);
        let direct = |pass: &mut wgpu::ComputePass<'_>, x: u32, per: u32, n: usize| {
            let rows = (n as u32).div_ceil(per);
            if x == 0 { pass.dispatch_workgroups(rows, 1, 1) } else { pass.dispatch_workgroups(x, rows, 1) }
        };
        match self.grid {
            Grid::One => pass.dispatch_workgroups(1, 1, 1),
            Grid::Rows { over: Over::All, x, per } => direct(pass, x, per, all),
            Grid::Rows { over: Over::Wanted, x, per } => direct(pass, x, per, wanted),
            Grid::Rows { over: Over::Active | Over::Read, .. } => {
                pass.dispatch_workgroups_indirect(sizes, self.indirect);
            }
        }
    }
}

/// What a segment of the plan is on the device.
pub(super) enum Stage {
    /// Once over all rows.
    Once(Vec<Op>),
    /// As often as the exit rule says.
    Loop(LoopOps),
}

pub(super) struct LoopOps {
    pub(super) number: usize,
    /// Once before, over all rows.
    pub(super) enter: Vec<Op>,
    /// A step over the active rows, with its decision.
    pub(super) step: Vec<Op>,
    /// Once after, over all rows.
    pub(super) leave: Vec<Op>,
}

/// What a rule on the read-out needs after a step.
pub(super) struct ReadOps {
    /// Coda and head of the row, if it was asked for.
    pub(super) read: Vec<Op>,
    /// Its statistic, where it is the first, and where it is not.
    pub(super) measure: [Op; 2],
    pub(super) decide: Op,
    /// Before the last read-out.
    pub(super) last: Op,
}

/// A model's plan for chunks of a size.
pub(super) struct Program {
    pub(super) stages: Vec<Stage>,
    /// What follows the last loop, over all rows.
    pub(super) coda: Vec<Op>,
    /// Norm and head of one wanted row, and of several.
    pub(super) head: [Vec<Op>; 2],
    /// Where the chunk is a row on whose read-out a rule may act.
    pub(super) read: Option<ReadOps>,
    pub(super) sizes: wgpu::Buffer,
}

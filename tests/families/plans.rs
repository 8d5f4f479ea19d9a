//! What is told of every family's plan.

use crate::common::model;
use rdt::arch::{Anatomy, Part, plan_in_words};
use rdt::quant::Recipe;

#[test]
fn plans_in_words() {
    for (folder, words) in [
        (
            "huginn",
            "embedding -> block 0 once -> [inject: linear -> blocks 1-2] x 5 -> norm -> block 3 once -> norm -> head (tied)",
        ),
        (
            "hrm_text-shapes/split",
            "embedding -> [inject: inner state -> blocks 0-1 -> norm -> blocks 2-3 -> norm] x 3 (at most 3) -> head",
        ),
        (
            "hrm_text-shapes/wide",
            "embedding -> [inject: inner state -> (block 0 -> norm) x 3 -> block 1 -> norm] x 2 (at most 2) -> head",
        ),
        (
            "looped-gpt2",
            "embedding + positions -> blocks 0-3 once -> [block 4] x 4 -> [blocks 5-6] x 3 -> [block 7] x 5 \
             -> block 8 once -> norm -> head (tied)",
        ),
        (
            "parcae",
            "embedding -> blocks 0-1 once -> norm -> [inject: diagonal -> blocks 2-3] x 4 -> projection \
             -> blocks 4-5 once -> norm -> head (tied)",
        ),
        ("retrofit", "embedding -> block 0 once -> [inject: linear -> blocks 1-2] x 5 -> block 3 once -> norm -> head"),
        (
            "retrofit-shapes/tied",
            "embedding -> blocks 0-1 once -> [inject: linear -> block 2] x 4 -> blocks 3-4 once -> norm -> head (tied)",
        ),
    ] {
        assert_eq!(plan_in_words(&model(folder, Recipe::F32)), words, "{folder}");
    }
}

/// Every loop has a line of its own, and a stack that a step passes three times is read three times.
#[test]
fn steps_of_every_loop() {
    let gpt = model("looped-gpt2", Recipe::F32);
    let anatomy = Anatomy::of(&gpt);
    let block = |b: usize| -> u64 {
        let of_block = gpt.header().tensors.iter().filter(|t| t.name.starts_with(&format!("blk.{b}.")));
        of_block.map(|t| t.bytes as u64).sum()
    };
    let per_step: Vec<_> = anatomy.loops.iter().map(|l| (l.mean_steps, l.bytes_per_step)).collect();
    assert_eq!(per_step, [(4, block(4)), (3, block(5) + block(6)), (5, block(7))]);
    assert_eq!(
        anatomy.bytes_per_token(None) - anatomy.bytes_outside,
        4 * block(4) + 3 * (block(5) + block(6)) + 5 * block(7)
    );
    let other = anatomy.parts.iter().find(|s| s.part == Part::Other);
    assert_eq!(other, None);

    // One block per stack, the low one passed three times a step.
    let hrm = model("hrm_text-shapes/wide", Recipe::F32);
    let of_block = |b: &str| -> u64 {
        hrm.header().tensors.iter().filter(|t| t.name.starts_with(b)).map(|t| t.bytes as u64).sum()
    };
    assert_eq!(Anatomy::of(&hrm).loops[0].bytes_per_step, 3 * of_block("blk.0.") + of_block("blk.1."));
}

//! Llama blocks in Huginn's loop.

use crate::common::model;
use crate::edited::{File, conversion_refuses};
use crate::{bits_are_independent_of_company, is_the_reference};
use rdt::arch;
use rdt::quant::Recipe;
use serde_json::json;

/// Grouped queries, Llama 3's scaling, whose long contexts these few positions do not reach.
const LLAMA3: &str = "retrofit";
/// The scaling's three bands within these few positions.
const SHORT: &str = "retrofit-shapes/llama3";
/// No scaling, tied head, one key head, adapter bias, scaled embeddings.
const TIED: &str = "retrofit-shapes/tied";

#[test]
fn f32_is_the_reference() {
    for folder in [LLAMA3, SHORT, TIED] {
        is_the_reference(folder);
    }
}

#[test]
fn bits() {
    for folder in [LLAMA3, SHORT, TIED] {
        bits_are_independent_of_company(folder, "step-norm:0.3,max=12");
    }
}

#[test]
fn the_plan_in_words() {
    let words = |folder| arch::plan_in_words(&model(folder, Recipe::F32));
    assert_eq!(
        words(LLAMA3),
        "embedding -> block 0 once -> [inject: linear -> blocks 1-2] x 5 -> block 3 once -> norm -> head"
    );
    assert_eq!(
        words(TIED),
        "embedding -> blocks 0-1 once -> [inject: linear -> block 2] x 4 -> blocks 3-4 once -> norm -> head (tied)"
    );
    assert_eq!(
        words("huginn"),
        "embedding -> block 0 once -> [inject: linear -> blocks 1-2] x 5 -> norm -> block 3 once -> norm -> head (tied)"
    );
}

#[test]
fn malformed_files() {
    let file = File::of(SHORT);
    file.misses_everything(&[
        // A file that is silent has no limit, plain frequencies, as many key heads as heads, and what follows from others.
        "loop.max_steps",
        "rope.scaling.type",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
    ]);
    file.refuses_bad_counts();
    file.refuses("rope.scaling.type", "yarn");
    file.refuses("rope.scaling.factor", 0f32);
    file.refuses("rope.scaling.high_freq_factor", 0.5f32);
    file.refuses("rope.scaling.original_context_length", 0u32);
}

#[test]
fn other_variants_are_refused_by_name() {
    for (key, value) in [
        ("injection_type", json!("add")),
        ("state_init", json!("normal")),
        ("initial_state_mode", json!("skip-adapter")),
        ("nonlin_name", json!("GELU")),
        ("mlp_class_name", json!("BaseMLP")),
        ("norm_class_name", json!("LayerNorm")),
        ("block_class_name", json!("Other")),
        ("qk_bias", json!(true)),
        ("test_time_noise", json!(0.5)),
        ("num_key_value_heads", json!(4)),
        ("n_heads", json!(7)),
        ("rope_theta", json!(0)),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0})),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
        (
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}),
        ),
        ("mean_recurrence", json!(0)),
    ] {
        conversion_refuses(SHORT, key, value);
    }
}

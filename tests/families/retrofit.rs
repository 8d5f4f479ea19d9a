//! Llama blocks in Huginn's loop.

use crate::{bits_are_independent_of_company, is_the_reference, malformed};
use rdt::gguf::Value as Key;
use serde_json::json;

const NAME: &str = "huginn-retrofit";
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
        bits_are_independent_of_company(folder);
    }
}

#[test]
fn malformed_files_are_refused() {
    malformed::missing_tensors(SHORT, &[]);
    malformed::missing_keys(
        SHORT,
        // A file that is silent has plain frequencies, as many key heads as heads, and what follows from others.
        &[
            "rope.scaling.type",
            "loop.state_length",
            "attention.head_count_kv",
            "attention.key_length",
            "attention.value_length",
            "rope.dimension_count",
        ],
    );
    malformed::counts(SHORT, NAME);
    let key = |name: &str| format!("{NAME}.rope.scaling.{name}");
    for (name, value) in [
        ("type", Key::from("yarn")),
        ("factor", Key::from(0f32)),
        ("low_freq_factor", Key::from(f32::NAN)),
        ("high_freq_factor", Key::from(0.5f32)),
        ("original_context_length", Key::from(0u32)),
    ] {
        malformed::keys(SHORT, &[(&key(name), Some(value), &["rope.scaling", name])]);
    }
}

#[test]
fn other_variants_are_refused_by_name() {
    let scaling = |low: f32| {
        json!({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": low, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64})
    };
    malformed::configs(
        SHORT,
        &[
            ("injection_type", json!("add"), &["injection_type", "add"]),
            ("state_init", json!("normal"), &["state_init"]),
            ("initial_state_mode", json!("skip-adapter"), &["initial_state_mode", "skip-adapter"]),
            ("nonlin_name", json!("GELU"), &["nonlin_name", "GELU"]),
            ("mlp_class_name", json!("BaseMLP"), &["mlp_class_name", "BaseMLP"]),
            ("norm_class_name", json!("LayerNorm"), &["norm_class_name", "LayerNorm"]),
            ("block_class_name", json!("Other"), &["block_class_name", "Other"]),
            ("qk_bias", json!(true), &["qk_bias"]),
            ("test_time_noise", json!(0.5), &["test_time_noise", "0.5"]),
            ("num_key_value_heads", json!(4), &["num_key_value_heads", "6"]),
            ("n_heads", json!(7), &["n_heads", "7"]),
            ("rope_theta", json!(0), &["rope_theta"]),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0}), &["rope_scaling.rope_type", "yarn"]),
            ("rope_scaling", json!({"type": "linear", "factor": 2.0}), &["rope_scaling.rope_type", "linear"]),
            ("rope_scaling", scaling(4.0), &["rope_scaling.high_freq_factor"]),
            ("rope_scaling", scaling(0.0), &["rope_scaling.low_freq_factor"]),
            ("mean_recurrence", json!(0), &["mean_recurrence"]),
        ],
    );
}

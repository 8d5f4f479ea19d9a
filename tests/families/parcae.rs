//! Parcae.

use crate::common::{data, gguf, model};
use crate::{bits_are_independent_of_company, is_the_reference, malformed};
use rdt::arch::{self, Anatomy, Part};
use rdt::checkpoint::Checkpoint;
use rdt::gguf::{Header, TensorType, Value as Key};
use rdt::quant::Recipe;
use serde_json::json;

/// The loop is as wide as the stream; value embeddings in every second block, one of them in the loop.
const SAME: &str = "parcae";
/// A narrow loop with fewer heads, no prelude norm, an untied head.
const NARROW: &str = "parcae-shapes/narrow-loop";
/// A wide loop; tables and gates that never meet.
const WIDE: &str = "parcae-shapes/wide-loop";

#[test]
fn f32_is_the_reference() {
    for folder in [SAME, NARROW, WIDE] {
        is_the_reference(folder);
    }
}

#[test]
fn bits() {
    for folder in [SAME, NARROW, WIDE] {
        bits_are_independent_of_company(folder);
    }
}

/// What the reference leaves unused is left out, and said.
#[test]
fn tables_and_gates_without_each_other_are_left_out() {
    let notes = |folder| arch::conversion(&Checkpoint::open(data(folder)).unwrap()).unwrap().notes;
    assert_eq!(notes(SAME), [""; 0]);
    let narrow = notes(NARROW);
    assert_eq!(narrow.len(), 2, "{narrow:?}");
    assert!(narrow[0].contains("coda.0.attn.ve_gate"), "{narrow:?}");
    assert!(narrow[1].contains("value_embeds.5"), "{narrow:?}");
    assert_eq!(notes(WIDE).len(), 5);
    let tables = |folder| {
        let bytes = gguf(folder, Recipe::F32);
        let names: Vec<_> = Header::parse(&bytes).unwrap().tensors.into_iter().map(|t| t.name).collect();
        names.into_iter().filter(|n| n.contains("value_embd")).collect::<Vec<_>>()
    };
    assert_eq!(tables(NARROW), ["blk.1.value_embd.weight", "blk.3.value_embd.weight"]);
    assert_eq!(tables(WIDE), [""; 0]);
}

#[test]
fn formats_and_bytes() {
    let same = model(SAME, Recipe::Q4_0);
    let ty = |name: &str| same.header().tensor(name).unwrap().ty;
    assert_eq!(ty("blk.1.value_embd.weight"), TensorType::Q8_0);
    assert_eq!(ty("blk.1.value_gate.weight"), TensorType::F32);
    assert_eq!((ty("loop.a_log"), ty("loop.readout.weight")), (TensorType::F32, TensorType::Q8_0));
    // Tables are read a row at a time, so a step is the two blocks without them.
    let anatomy = Anatomy::of(&same);
    let tables = anatomy.parts.iter().find(|s| s.part == Part::Embedding).unwrap();
    assert_eq!((tables.tensors, tables.bytes), (4, 4 * 1024 * 128 / 32 * 34));
    let in_core = |name: &str| (name.starts_with("blk.2.") || name.starts_with("blk.3.")) && !name.contains("_embd");
    let core = same.header().tensors.iter().filter(|t| in_core(&t.name));
    assert_eq!(anatomy.loops[0].bytes_per_step, core.map(|t| t.bytes as u64).sum::<u64>());
    // The loop's blocks have heads of their own.
    let narrow = model(NARROW, Recipe::F32);
    let heads: Vec<_> = narrow.blocks().iter().map(|b| (b.heads, b.kv_heads, b.width())).collect();
    assert_eq!(heads, [(4, 2, 64), (2, 2, 32), (2, 2, 32), (2, 2, 32), (4, 2, 64), (4, 2, 64)]);
}

#[test]
fn malformed_files_are_refused() {
    malformed::missing_tensors(NARROW, &[]);
    malformed::missing_keys(
        NARROW,
        // A file that is silent has no such norm, as many key heads as heads, and what follows from others.
        &[
            "loop.qk_norm_epsilon",
            "attention.head_count_kv",
            "attention.key_length",
            "attention.value_length",
            "rope.dimension_count",
        ],
    );
    malformed::counts(NARROW, "parcae");
    let list = |numbers: &[u32]| Some(Key::from(numbers.to_vec()));
    let values = "parcae.loop.value_embedding";
    malformed::keys(
        NARROW,
        &[
            (values, list(&[0, 2, 0, 1, 0, 0]), &[values, "0 or 1"]),
            (values, list(&[0, 1]), &[values]),
            (values, list(&[1, 1, 0, 1, 0, 0]), &["blk.0.value_embd.weight"]),
            (values, list(&[0, 1, 0, 0, 0, 0]), &["blk.3.value_"]),
            ("parcae.loop.qk_norm_epsilon", Some(Key::from(0f32)), &["qk_norm_epsilon"]),
            ("parcae.loop.readout_norm", Some(Key::from(true)), &["readout_norm"]),
            ("parcae.loop.tied_head", Some(Key::from(true)), &["output.weight"]),
        ],
    );
}

#[test]
fn other_variants_are_refused_by_name() {
    malformed::configs(
        NARROW,
        &[
            ("injection_type", json!("linear"), &["injection_type", "linear"]),
            ("injection_type", json!("add"), &["injection_type", "add"]),
            ("state_init", json!("normal"), &["state_init"]),
            ("block_class_name", json!("TransformerPostNormBlock"), &["block_class_name", "TransformerPostNormBlock"]),
            ("norm_class_name", json!("LayerNorm"), &["norm_class_name", "LayerNorm"]),
            ("mlp_class_name", json!("GatedMLP"), &["mlp_class_name", "GatedMLP"]),
            ("nonlin_name", json!("GELU"), &["nonlin_name", "GELU"]),
            ("bias", json!(true), &["bias"]),
            ("qk_bias", json!(true), &["qk_bias"]),
            ("clip_qkv", json!(8.0), &["clip_qkv"]),
            ("logit_softcap", json!(15.0), &["logit_softcap", "15"]),
            ("mup_model_scaling_factor", json!(2), &["mup_model_scaling_factor"]),
            ("init_strategy", json!("takase-scaled"), &["init_strategy", "takase-scaled"]),
            ("use_fused_head", json!("full-triton"), &["use_fused_head", "full-triton"]),
            ("recurrent_num_attention_heads", json!(1), &["recurrent_num_attention_heads", "16"]),
            ("recurrent_num_attention_heads", json!(0), &["recurrent_num_attention_heads"]),
            ("num_key_value_heads", json!(3), &["num_key_value_heads", "4"]),
            ("n_layers_in_recurrent_block", json!(0), &["n_layers_in_recurrent_block"]),
            ("n_layers_in_prelude", json!(2), &["prelude.1."]),
            ("mean_recurrence", json!(0), &["mean_recurrence"]),
            ("n_embd", json!(1u64 << 40), &["n_embd"]),
            ("rope_settings", json!({"use_rope": false}), &["rope_settings.use_rope"]),
            ("rope_settings", json!({"rope_condense_ratio": 2}), &["rope_settings.rope_condense_ratio"]),
            ("_class_name", json!("GPTConfig"), &["cannot be converted"]),
        ],
    );
}

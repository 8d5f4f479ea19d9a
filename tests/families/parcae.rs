//! Parcae.

use crate::common::{data, gguf, model};
use crate::edited::{File, conversion_refusal, conversion_refuses};
use crate::{bits_are_independent_of_company, is_the_reference};
use rdt::arch::{self, Anatomy, Part};
use rdt::checkpoint::Checkpoint;
use rdt::gguf::{Header, TensorType};
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
    bits_are_independent_of_company(SAME, "step-norm:0.3,max=12");
    bits_are_independent_of_company(NARROW, "step-norm:0.3,max=12");
    bits_are_independent_of_company(WIDE, "step-norm:0.3,max=12");
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
fn the_plan_in_words_and_its_bytes() {
    let same = model(SAME, Recipe::Q4_0);
    assert_eq!(
        arch::plan_in_words(&same),
        "embedding -> blocks 0-1 once -> norm -> [inject: diagonal -> blocks 2-3] x 4 -> projection -> blocks 4-5 once \
         -> norm -> head (tied)"
    );
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
fn malformed_files() {
    let file = File::of(NARROW);
    file.misses_everything(&[
        // A file that is silent has no limit, no such norm, as many key heads as heads, and what follows from others.
        "loop.max_steps",
        "loop.qk_norm_epsilon",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
    ]);
    file.refuses_bad_counts();
    file.refuses("loop.readout_norm", true);
    file.refuses("loop.value_embedding", vec![0u32, 2, 0, 1, 0, 0]);
    file.refuses("loop.value_embedding", vec![0u32, 1]);
    file.refuses("loop.qk_norm_epsilon", 0f32);
    let mut wide = File::of(WIDE);
    wide.metadata.insert("parcae.loop.value_embedding", vec![1u32, 0, 0, 0, 0]);
    assert!(wide.refusal().unwrap().contains("blk.0.value_embd.weight"));
}

#[test]
fn other_variants_are_refused_by_name() {
    for (key, value) in [
        ("injection_type", json!("linear")),
        ("injection_type", json!("add")),
        ("state_init", json!("normal")),
        ("block_class_name", json!("TransformerPostNormBlock")),
        ("norm_class_name", json!("LayerNorm")),
        ("mlp_class_name", json!("GatedMLP")),
        ("nonlin_name", json!("GELU")),
        ("bias", json!(true)),
        ("qk_bias", json!(true)),
        ("clip_qkv", json!(8.0)),
        ("logit_softcap", json!(15.0)),
        ("mup_model_scaling_factor", json!(2)),
        ("init_strategy", json!("takase-scaled")),
        ("use_fused_head", json!("full-triton")),
        ("recurrent_num_attention_heads", json!(1)),
        ("recurrent_num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("n_layers_in_recurrent_block", json!(0)),
        ("mean_recurrence", json!(0)),
        ("n_embd", json!(1u64 << 40)),
    ] {
        conversion_refuses(NARROW, key, value);
    }
    let rope = json!({"use_rope": false, "rope_condense_ratio": 1, "rope_base": 50000});
    conversion_refuses(NARROW, "rope_settings", rope);
    assert!(conversion_refusal(NARROW, &[("_class_name", json!("GPTConfig"))]).is_some());
}

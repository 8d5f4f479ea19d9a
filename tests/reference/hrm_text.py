#!/usr/bin/env python3
"""What the public HrmText of transformers computes, for tests/data/hrm_text-shapes.

Needs torch, safetensors, tokenizers and transformers 5.23, float32 on a CPU.

  hrm_text.py make OUT        make tiny random checkpoints in the published layouts, with goldens
  hrm_text.py check FOLDER... compute each folder's golden again and compare

A golden holds tokens i32 [T], prefix_len i32 [1], latents f32 [H,T,D] (zH after each H cycle) and logits f32
[1,T,V] of a causal run, and latents_prefix_lm and logits_prefix_lm of a run whose first prefix_len tokens see each
other both ways.
"""

import argparse
import pathlib

import tiny
import tokenizers
import torch
from transformers import HrmTextForCausalLM

# The tokens that have a meaning in the published vocabulary, in its order.
SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
)  # fmt: skip
TEXT = "The loop is run again and again, and each time the state that comes out of the layers goes back into them."
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCAB = 320


def tokenizer():
    """A byte-level BPE of VOCAB entries with the pre-tokenizer of Qwen2."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(QWEN2), "isolated")
    bytes_only = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.normalizer = tokenizers.normalizers.NFC()
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, bytes_only])
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([TEXT, "Looping, looped, loops; recurrent depth. 2026 steps!"] * 2, trainer)
    assert bpe.get_vocab_size() == VOCAB
    return bpe


def shapes(config):
    """The names and shapes of the split layout."""
    width, ffn = config["hidden_size"], config["intermediate_size"]
    attention = config["num_attention_heads"] * config["head_dim"]
    names = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.z_L_init": (width,)}
    for stack in "HL":
        for i in range(config.get("num_layers_per_stack") or config["num_hidden_layers"]):
            for name in "gate_proj", "q_proj", "k_proj", "v_proj":
                names[f"model.{stack}_module.layers.{i}.self_attn.{name}.weight"] = (attention, width)
            names[f"model.{stack}_module.layers.{i}.self_attn.o_proj.weight"] = (width, attention)
            for name in "gate_proj", "up_proj":
                names[f"model.{stack}_module.layers.{i}.mlp.{name}.weight"] = (ffn, width)
            names[f"model.{stack}_module.layers.{i}.mlp.down_proj.weight"] = (width, ffn)
    names["lm_head.weight"] = (config["vocab_size"], width)
    return names


def fused(weights):
    """The same weights in the layout of the training code's own export."""
    out = {}
    for name, weight in weights.items():
        prefix, _, last = name.removesuffix(".weight").rpartition(".")
        if prefix.endswith("self_attn"):
            target = prefix.replace("self_attn", "attn")
            if last == "o_proj":
                out[f"{target}.o_proj.weight"] = weight
            elif last == "gate_proj":
                parts = [weights[f"{prefix}.{part}_proj.weight"] for part in ("gate", "q", "k", "v")]
                out[f"{target}.gqkv_proj.weight"] = torch.cat(parts)
        elif prefix.endswith("mlp") and last != "down_proj":
            parts = [weights[f"{prefix}.{part}_proj.weight"] for part in ("gate", "up")]
            out[f"{prefix}.gate_up_proj.weight"] = torch.cat(parts)
        else:
            out[name] = weight
    return out


def make_config(**values):
    """config.json as the training code's own export writes it."""
    heads = values["num_attention_heads"]
    return {
        "model_type": "hrm_text",
        "architectures": ["HrmTextForCausalLM"],
        "vocab_size": VOCAB,
        "num_key_value_heads": heads,
        "head_dim": values["hidden_size"] // heads,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "prefix_lm": True,
        "pad_token_id": SPECIALS.index("<|endoftext|>"),
        "bos_token_id": SPECIALS.index("<|im_start|>"),
        "eos_token_id": SPECIALS.index("<|box_end|>"),
    } | values


def as_saved_by_transformers(config):
    """The same configuration after a round trip: the inflated layer count, and RoPE's base where version 5 puts it."""
    per_stack = config["num_hidden_layers"]
    config = dict(config)
    del config["num_key_value_heads"]
    config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), "rope_type": "default"}
    config["num_layers_per_stack"] = per_stack
    config["num_hidden_layers"] = per_stack * config["H_cycles"] * (config["L_cycles"] + 1)
    return config


def load_model(folder):
    model, info = HrmTextForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@torch.no_grad()
def run(model, tokens, prefix_len):
    found = {"tokens": tokens.int(), "prefix_len": torch.tensor([prefix_len], dtype=torch.int32)}
    kinds = torch.zeros(1, len(tokens), dtype=torch.long)
    kinds[0, :prefix_len] = 1
    for suffix, extra in (("", {}), ("_prefix_lm", {"token_type_ids": kinds})):
        latents = []
        hook = model.model.H_module.register_forward_hook(lambda module, args, output: latents.append(output[0]))
        found["logits" + suffix] = model(tokens.long()[None], use_cache=False, **extra).logits
        hook.remove()
        found["latents" + suffix] = torch.stack(latents)
    return found


def make(out):
    pair = make_config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, H_cycles=3, L_cycles=1,
        L_bp_cycles=[0, 1, 1], initializer_range=0.25, embedding_scale=4.0,
    )  # fmt: skip
    # Heads that are together wider than the stream; embedding_scale is 1 / initializer_range.
    wide = make_config(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, head_dim=24, H_cycles=2,
        L_cycles=3, initializer_range=0.125, rope_theta=500000.0, rms_norm_eps=1e-5,
    )  # fmt: skip
    weights = tiny.random_weights(shapes(pair), torch.Generator().manual_seed(0), embedding=0.25)
    checkpoints = {
        "split": (as_saved_by_transformers(pair), weights),
        "fused": (pair, fused(weights)),
        "wide": (wide, tiny.random_weights(shapes(wide), torch.Generator().manual_seed(1), embedding=0.125)),
    }
    for name, (config, weights) in checkpoints.items():
        folder = out / name
        tiny.save(folder, config, weights, {})
        tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
        tokens = tiny.tokens_of(torch.Generator().manual_seed(2), VOCAB, 12)
        tiny.save_tensors(folder / "golden.safetensors", run(load_model(folder), tokens, 7))
    split, same = (tiny.load(out / name)[2] for name in ("split", "fused"))
    assert all(torch.equal(split[name], same[name]) for name in split)
    check([out / name for name in checkpoints])


def check(folders):
    for folder in folders:
        golden = tiny.load(folder)[2]
        assert tiny.relative(golden["logits"], golden["logits_prefix_lm"]) > 0.1
        tiny.compare(folder, run(load_model(folder), golden["tokens"], golden["prefix_len"].item()), golden)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "check"))
    parser.add_argument("folders", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    if args.what == "make":
        make(*args.folders)
    else:
        check(args.folders)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What the public reference implementation of Ouro computes, for tests/data/ouro-shapes.

Needs torch, safetensors, transformers 4.54 and a checkout of LoopedLMs/ouro_rl, of which only
ouro_rl/modeling/modeling_ouro.py and its configuration are run, in float32 on a CPU:

  ouro.py CHECKOUT make OUT        make tiny random checkpoints of several shapes, with goldens
  ouro.py CHECKOUT check FOLDER... compute each folder's golden again and compare

A golden holds tokens i32 [T], latents f32 [R,T,D] (after model.norm), gate f32 [R,T] (the gate's logit) and logits
f32 [R,T,V]; and, for each of thresholds f32 [N], exit_step i32 [N,T]: the step (1 is the first) whose logits the
reference picks after computing every step. What it gives is bit for bit that row of `logits`.
"""

import argparse
import importlib
import pathlib
import sys
import types

import tiny
import torch

# The reference, once `main` knows where it is.
ref = None

# 1.0 switches the gate off; the smallest exits everywhere at once.
THRESHOLDS = (0.05, 0.3, 0.6, 0.85, 1.0)
TOKENS = 16


def import_reference(checkout):
    """Imports the model alone: the packages' own __init__ want everything that training needs."""
    for name in ("ouro_rl", "ouro_rl.modeling"):
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    return importlib.import_module("ouro_rl.modeling.modeling_ouro")


def make_model(config, weights):
    config = ref.OuroConfig(**config)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = ref.OuroForCausalLM(config).float().eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= ({"lm_head.weight"} if config.tie_word_embeddings else set()) and not unexpected
    if config.tie_word_embeddings:
        model.tie_weights()
    return model


@torch.no_grad()
def run(config, weights, tokens):
    model = make_model(config, weights)
    tokens = tokens.long()[None]
    _, latents, gates = model.model(tokens, use_cache=False)
    steps = range(len(latents))
    found = {
        "tokens": tokens[0].int(),
        "latents": torch.cat(latents),
        "gate": torch.cat(gates).squeeze(-1),
        "logits": torch.cat([model(tokens, use_cache=False, exit_at_step=k).logits for k in steps]),
        "thresholds": torch.tensor(THRESHOLDS),
    }
    # Which step's logits it picks: no two steps of a token have the same.
    picked = torch.cat([model(tokens, use_cache=False, exit_threshold=t).logits for t in THRESHOLDS])
    same = (picked[:, None] == found["logits"][None]).all(dim=-1)
    assert (same.sum(dim=1) == 1).all()
    found["exit_step"] = same.int().argmax(dim=1).int() + 1
    return found


def shapes(config):
    width, ffn = config["hidden_size"], config["intermediate_size"]
    kv = width // config["num_attention_heads"] * config["num_key_value_heads"]
    names = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    for i in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (width,),
            "input_layernorm_2": (width,),
            "post_attention_layernorm": (width,),
            "post_attention_layernorm_2": (width,),
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (kv, width),
            "self_attn.v_proj": (kv, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (ffn, width),
            "mlp.up_proj": (ffn, width),
            "mlp.down_proj": (width, ffn),
        }.items():
            names[f"model.layers.{i}.{name}.weight"] = shape
    names["model.early_exit_gate.weight"] = (1, width)
    names["model.early_exit_gate.bias"] = (1,)
    if not config["tie_word_embeddings"]:
        names["lm_head.weight"] = (config["vocab_size"], width)
    return names


def make_config(**values):
    """config.json as published: its special ids are all 0, which the reference repository corrects."""
    return {
        "architectures": ["OuroForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "early_exit_threshold": 1.0,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "layer_types": ["full_attention"] * values["num_hidden_layers"],
        "max_position_embeddings": 256,
        "max_window_layers": values["num_hidden_layers"],
        "model_type": "ouro",
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 128,
    } | values


SHAPES = {
    # Four query heads to a key head; four steps.
    "gqa": dict(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2,
        total_ut_steps=4, vocab_size=320,
    ),
    # Three heads, three layers, three steps, a tied head, another epsilon and base of RoPE.
    "tied": dict(
        hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1,
        total_ut_steps=3, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_theta=10000.0,
    ),
}  # fmt: skip


def make(out):
    for seed, (name, values) in enumerate(SHAPES.items()):
        config = make_config(**values)
        generator = torch.Generator().manual_seed(seed)
        embedding = 0.3 if config["tie_word_embeddings"] else 1.0
        weights = tiny.random_weights(shapes(config), generator, embedding=embedding)
        # A gate that has an opinion.
        weights["model.early_exit_gate.weight"] *= 1.5
        golden = run(config, weights, tiny.tokens_of(generator, config["vocab_size"], TOKENS))
        gate, steps = golden["gate"], golden["exit_step"]
        print(name, f"gate {gate.min():.2f}..{gate.max():.2f}", steps.tolist())
        assert (gate > 0.5).any() and (gate < -0.5).any()
        # At the middle threshold tokens leave at every step; no cumulative probability is close to a threshold.
        assert len(set(steps[2].tolist())) == config["total_ut_steps"] and (steps[-1] == config["total_ut_steps"]).all()
        stay = (1 - gate.sigmoid()).cumprod(dim=0)
        margin = min(((1 - stay[:-1]) - t).abs().min().item() for t in THRESHOLDS[:-1])
        assert margin > 1e-4, margin
        tiny.save(out / name, config, weights, golden)
    check([out / name for name in SHAPES])


def check(folders):
    for folder in folders:
        config, weights, golden = tiny.load(folder)
        tiny.compare(folder, run(config, weights, golden["tokens"]), golden)


def main():
    global ref
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=pathlib.Path)
    parser.add_argument("what", choices=("make", "check"))
    parser.add_argument("folders", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    ref = import_reference(args.checkout)
    if args.what == "make":
        make(*args.folders)
    else:
        check(args.folders)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Nanbeige in plain PyTorch, for tests/data/nanbeige; llama_cpp.py checks it against llama.cpp's logits.

Needs torch, safetensors and sentencepiece.

  nanbeige.py make OUT        make tiny random checkpoints in the published layout, with goldens
  nanbeige.py check FOLDER... compute each folder's golden again and compare

A golden holds tokens i32 [T], latents f32 [L,T,D] (what each pass hands to the next: normed, unless
skip_loop_final_norm), readout f32 [L,T,D] (always normed) and logits f32 [L,T,V], row k of which is a run of
k + 1 passes.
"""

import argparse
import io
import pathlib

import sentencepiece
import tiny
import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu


def rms_norm(x, weight, eps):
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rotate(x, theta, factors):
    """Rotate-half RoPE on [heads, T, head_dim]; `factors` divide the frequencies (llama.cpp's rope_freqs)."""
    half = x.shape[-1] // 2
    frequencies = 1.0 / theta ** (torch.arange(half) / half)
    if factors is not None:
        frequencies = frequencies / factors
    angles = torch.outer(torch.arange(x.shape[-2]), frequencies)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=-1)


def layer(config, weights, prefix, x, factors):
    heads, kv_heads, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    eps, theta = config["rms_norm_eps"], config["rope_theta"]

    def project(name, y):
        return linear(y, weights[f"{prefix}.{name}.weight"])

    y = rms_norm(x, weights[f"{prefix}.input_layernorm.weight"], eps)
    q = project("self_attn.q_proj", y).view(-1, heads, size).transpose(0, 1)
    k, v = (project(f"self_attn.{n}_proj", y).view(-1, kv_heads, size).transpose(0, 1) for n in "kv")
    q, k = rotate(q, theta, factors), rotate(k, theta, factors)
    k, v = (t.repeat_interleave(heads // kv_heads, dim=0) for t in (k, v))
    attended = scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    x = x + project("self_attn.o_proj", attended.transpose(0, 1).flatten(1))
    y = rms_norm(x, weights[f"{prefix}.post_attention_layernorm.weight"], eps)
    return x + project("mlp.down_proj", silu(project("mlp.gate_proj", y)) * project("mlp.up_proj", y))


@torch.no_grad()
def run(config, weights, tokens, factors=None):
    x = weights["model.embed_tokens.weight"][tokens.long()]
    head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    latents, readouts = [], []
    for _ in range(config["num_loops"]):
        for i in range(config["num_hidden_layers"]):
            x = layer(config, weights, f"model.layers.{i}", x, factors)
        readouts.append(rms_norm(x, weights["model.norm.weight"], config["rms_norm_eps"]))
        if not config["skip_loop_final_norm"]:
            x = readouts[-1]
        latents.append(x)
    readouts = torch.stack(readouts)
    return {
        "tokens": tokens.int(),
        "latents": torch.stack(latents),
        "readout": readouts,
        "logits": linear(readouts, head),
    }


def shapes(config):
    """The published names and shapes of all weights."""
    width, ffn, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    names = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    for i in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (width,),
            "self_attn.q_proj": (q, width),
            "self_attn.k_proj": (kv, width),
            "self_attn.v_proj": (kv, width),
            "self_attn.o_proj": (width, q),
            "post_attention_layernorm": (width,),
            "mlp.gate_proj": (ffn, width),
            "mlp.up_proj": (ffn, width),
            "mlp.down_proj": (width, ffn),
        }.items():
            names[f"model.layers.{i}.{name}.weight"] = shape
    if not config["tie_word_embeddings"]:
        names["lm_head.weight"] = (config["vocab_size"], width)
    return names


def make_config(**values):
    """config.json as published, the parts that are switched off included."""
    return {
        "architectures": ["NanbeigeForCausalLM"],
        "model_type": "nanbeige",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 512,
        "mlp_bias": False,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "torch_dtype": "float32",
        "use_cache": True,
        "qk_layernorm": False,
        "loop_loss_weights": [],
        "enable_double_loop_split": False,
        "loop_share_kv": False,
        "enable_hyper_connection": False,
        "enable_mhc": False,
        "enable_depth_attention": False,
    } | values


VOCAB = 320
# Tokens after the pieces, and whether each is a control token.
ADDED = {"<|im_start|>": True, "<|im_end|>": True, "<think>": False, "</think>": False}
SHAPES = {
    # As in the real model the heads together are wider than the stream, and RoPE's base is huge.
    "every-pass": dict(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=VOCAB, rope_theta=70000000.0, num_loops=2, skip_loop_final_norm=False,
        tie_word_embeddings=False,
    ),
    # Heads narrower than the stream, one key and value head, tied.
    "last-norm": dict(
        hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1,
        head_dim=16, vocab_size=VOCAB, rope_theta=10000.0, num_loops=3, skip_loop_final_norm=True,
        tie_word_embeddings=True, rms_norm_eps=1e-5,
    ),
}  # fmt: skip


TEXT = """The loop is run again and again, and each time the state that comes out of the layers goes back into them.
Looping, looped, loops: recurrent depth needs no more weights, only more time. A model thinks for as long as it likes.
It was the best of times, it was the worst of times, and there were 1234567890 steps in between."""


def tokenizer():
    """A SentencePiece model with byte fallback: 3 control tokens, 256 bytes, 57 pieces; four more are added by name."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 4), model_writer=model, model_type="bpe", vocab_size=VOCAB - 4,
        byte_fallback=True, character_coverage=1.0, split_digits=True, allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False, normalization_rule_name="identity", num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def make(out):
    for seed, (name, values) in enumerate(SHAPES.items()):
        config = make_config(**values)
        generator = torch.Generator().manual_seed(seed)
        # A tied table is small, so that its read-out is no louder than a head's.
        embedding = 0.2 if config["tie_word_embeddings"] else 1.0
        weights = tiny.random_weights(shapes(config), generator, embedding=embedding)
        golden = run(config, weights, tiny.tokens_of(generator, config["vocab_size"], 12))
        tiny.save(out / name, config, weights, golden)
    (out / "every-pass/tokenizer.model").write_bytes(tokenizer())
    check([out / name for name in SHAPES])


def check(folders):
    for folder in folders:
        config, weights, golden = tiny.load(folder)
        tiny.compare(folder, run(config, weights, golden["tokens"]), golden)


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

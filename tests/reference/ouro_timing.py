#!/usr/bin/env python3
"""A random Ouro checkpoint of a size worth timing: 8 blocks of width 768, run four times, 58 M parameters in f16.

  ouro_timing.py OUT

Needs numpy and safetensors; the tokenizer and the other settings are those of tests/data/ouro. What it says is noise; its exit
gate speaks in about one step of three, so that thresholds below 1 save steps.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
from safetensors.numpy import save_file

WIDTH, HIDDEN, BLOCKS, VOCAB, HEAD = 768, 2048, 8, 1024, 64


def main(out):
    rng = np.random.default_rng(0)

    def matrix(rows, columns, std=None):
        return (rng.standard_normal((rows, columns)) * (std or columns**-0.5)).astype(np.float16)

    tensors = {
        "model.embed_tokens.weight": matrix(VOCAB, WIDTH, 1.0),
        "lm_head.weight": matrix(VOCAB, WIDTH),
        "model.norm.weight": np.ones(WIDTH, np.float16),
        "model.early_exit_gate.weight": matrix(1, WIDTH),
        "model.early_exit_gate.bias": np.array([-0.5], np.float16),
    }
    for block in range(BLOCKS):
        name = f"model.layers.{block}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            for suffix in ("", "_2"):
                tensors[f"{name}{norm}{suffix}.weight"] = np.full(WIDTH, 0.5, np.float16)
        for part in "qkvo":
            tensors[f"{name}self_attn.{part}_proj.weight"] = matrix(WIDTH, WIDTH)
        for part in ("gate", "up"):
            tensors[f"{name}mlp.{part}_proj.weight"] = matrix(HIDDEN, WIDTH)
        tensors[name + "mlp.down_proj.weight"] = matrix(WIDTH, HIDDEN)
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors")
    small = pathlib.Path(__file__).parent.parent / "data" / "ouro"
    config = json.loads((small / "config.json").read_text())
    config.update(
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=BLOCKS,
        num_attention_heads=WIDTH // HEAD,
        num_key_value_heads=WIDTH // HEAD,
        head_dim=HEAD,
        layer_types=["full_attention"] * BLOCKS,
        max_position_embeddings=2048,
    )
    (out / "config.json").write_text(json.dumps(config, indent=1))
    shutil.copy(small / "tokenizer.json", out / "tokenizer.json")


main(pathlib.Path(sys.argv[1]))

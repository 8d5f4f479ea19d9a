#!/usr/bin/env python3
"""Random HRM-Text checkpoints of sizes worth timing, in f16.

  hrm_timing.py SIZE OUT

SIZE is 1b (16 layers per stack, 1536 wide: 1 B parameters), small (4 layers, 768 wide: one stack fits a large cache, the whole does
not) or tiny (4 layers, 512 wide: the whole fits). All run their two stacks as the published model does, two cycles, each of three of the lower and one of the upper. What
they say is noise. llama.cpp runs the GGUFs that rdt-quantize makes of them, so the two can be raced. Needs numpy.
"""

import json
import math
import pathlib
import shutil
import struct
import sys

import numpy as np

VOCAB = 32768
SIZES = {"1b": (1536, 4096, 12, 16), "small": (768, 2048, 6, 4), "tiny": (512, 1408, 4, 4)}
TILE = 1 << 22
"""Random values that all matrices are cut from, at places that are drawn anew: drawing them all would take minutes."""


def shapes(width, hidden, layers):
    names = {"model.embed_tokens.weight": (VOCAB, width), "model.z_L_init": (width,)}
    for stack in "HL":
        for i in range(layers):
            prefix = f"model.{stack}_module.layers.{i}"
            for part in ("gate", "q", "k", "v", "o"):
                names[f"{prefix}.self_attn.{part}_proj.weight"] = (width, width)
            for part in ("gate", "up"):
                names[f"{prefix}.mlp.{part}_proj.weight"] = (hidden, width)
            names[f"{prefix}.mlp.down_proj.weight"] = (width, hidden)
    names["lm_head.weight"] = (VOCAB, width)
    return names


def main(size, out):
    width, hidden, heads, layers = SIZES[size]
    rng = np.random.default_rng(0)
    tile = rng.standard_normal(2 * TILE, dtype=np.float32)
    names = shapes(width, hidden, layers)
    header, at = {}, 0
    for name, shape in names.items():
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, end]}
        at = end
    head = json.dumps(header).encode()
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name, shape in names.items():
            left, scale = math.prod(shape), 0.02 if "embed" in name else shape[-1] ** -0.5
            while left:
                n, start = min(left, TILE), rng.integers(TILE)
                file.write((tile[start : start + n] * scale).astype(np.float16).tobytes())
                left -= n
    reference = pathlib.Path(__file__).parent.parent / "data" / "hrm_text"
    config = json.loads((reference / "config.json").read_text())
    config.update(
        hidden_size=width,
        intermediate_size=hidden,
        num_attention_heads=heads,
        head_dim=128,
        num_layers_per_stack=layers,
        num_hidden_layers=layers * 8,
        H_cycles=2,
        L_cycles=3,
        vocab_size=VOCAB,
        max_position_embeddings=4096,
    )
    (out / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer = json.loads((reference / "tokenizer.json").read_text())
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    for extra in ("tokenizer_config.json", "generation_config.json"):
        if (reference / extra).is_file():
            shutil.copy(reference / extra, out / extra)


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))

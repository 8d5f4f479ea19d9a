#!/usr/bin/env python3
"""A random Parcae checkpoint of the shape of Parcae-140m: 768 wide, 3072 in feed-forward, 2/2/2 layers, 32768 tokens, in f16.

  parcae_timing.py OUT

For timing; what it says is noise. Needs numpy and safetensors; the tokenizer and the other settings are those of tests/data/parcae.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
from safetensors.numpy import save_file

WIDTH, HIDDEN, HEADS, VOCAB = 768, 3072, 6, 32768


def main(out):
    rng = np.random.default_rng(0)

    def matrix(rows, columns, std=None):
        return (rng.standard_normal((rows, columns), dtype=np.float32) * (std or columns**-0.5)).astype(np.float16)

    reference = pathlib.Path(__file__).parent.parent / "data" / "parcae"
    tensors = json.loads((reference / "tensors.json").read_text())
    shapes = {name: tensor["shape"] for name, tensor in tensors.items()}
    sizes = {128: WIDTH, 256: HIDDEN, 1024: VOCAB, 4: HEADS}
    tensors = {}
    for name, shape in shapes.items():
        if name == "freqs_cis":
            continue
        shape = [n if name.endswith("ve_gate.weight") and i else sizes.get(n, n) for i, n in enumerate(shape)]
        if len(shape) == 2:
            tensors[name] = matrix(*shape, std=0.02 if "wte" in name or "value_embeds" in name else None)
        else:
            value = {"A_log": 0.0, "dt_bias": -2.0}.get(name.rsplit(".")[-1], 1.0)
            tensors[name] = np.full(shape, value, np.float32)
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors")
    config = json.loads((reference / "config.json").read_text())
    config.update(
        block_size=2048,
        n_embd=WIDTH,
        intermediate_size=HIDDEN,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=VOCAB,
        padded_vocab_size=VOCAB,
        recurrent_embedding_dimension=WIDTH,
        recurrent_intermediation_embedding_dimension=HIDDEN,
        mean_recurrence=8,
    )
    (out / "config.json").write_text(json.dumps(config, indent=1))
    shutil.copy(reference / "tokenizer.json", out / "tokenizer.json")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

#!/usr/bin/env python3
"""A random checkpoint of the shape of the real Huginn: 3.5 B parameters in bf16, 7 GB in sharded safetensors.

  big_huginn.py OUT [--medium|--small]

For timing conversions and measuring their memory; what the model says is noise. Needs numpy. The weights are normal and of the
published standard deviations, cut from one random tile at places, and with signs, that are drawn anew for every few rows, so
that writing takes most of the time. --medium makes it a seventh of the size, which still fits
no cache, for timing decoding; --small a hundredth, to see that all of it works.
"""

import argparse
import json
import pathlib
import shutil
import struct

import numpy as np

HOPS = pathlib.Path(__file__).parents[1] / "data" / "huginn-hops"
SHARD = 2 << 30
"""Bytes in a shard, at most one tensor more."""
TILE = 1 << 24
PIECE = 1 << 21
"""Values that are cut from the tile at a time."""


def shapes(width, hidden, heads, vocab, stacks):
    """(name, shape, std) of every matrix, and (name, shape) of every vector, which are f32."""
    inner = (2 / (5 * width)) ** 0.5
    outer = inner / (2 * 132) ** 0.5
    matrices = [("transformer.wte.weight", (vocab, width), inner)]
    vectors = [("transformer.ln_f.weight", (width,))]
    for stack, count in stacks.items():
        for i in range(count):
            name = f"transformer.{stack}.{i}."
            matrices += [
                (name + "attn.Wqkv.weight", (3 * width, width), inner),
                (name + "attn.proj.weight", (width, width), outer),
                (name + "mlp.fc.weight", (2 * hidden, width), inner),
                (name + "mlp.proj.weight", (width, hidden), outer),
            ]
            vectors += [(f"{name}norm_{n}.weight", (width,)) for n in (1, 2, 3, 4)]
            vectors.append((name + "attn.qk_bias", (2, 1, heads, width // heads)))
    matrices.append(("transformer.adapter.weight", (width, 2 * width), inner))
    return matrices, vectors


def bf16(values):
    """The upper halves of f32 values, rounded to nearest, ties to even; none is NaN."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def pieces(rng, tile, count):
    """`count` values of the tile: each piece from another place, every other one with its sign turned."""
    while count > 0:
        n = min(count, PIECE)
        start = int(rng.integers(len(tile) - n + 1))
        yield (tile[start : start + n] ^ (int(rng.integers(2)) << 15)).astype("<u2")
        count -= n


def write_shard(path, tensors, rng, tiles):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, std in tensors:
        size = int(np.prod(shape)) * (4 if std is None else 2)
        header[name] = {"dtype": "F32" if std is None else "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape, std in tensors:
            if std is not None:
                for piece in pieces(rng, tiles[std], int(np.prod(shape))):
                    file.write(piece)
            elif "bias" in name:
                file.write(rng.normal(0, 0.02, shape).astype("<f4").tobytes())
            else:
                file.write((1 + rng.normal(0, 0.05, shape)).astype("<f4").tobytes())
    return at


SIZES = {"big": (5280, 17920, 55, 65536), "medium": (2112, 7168, 22, 16384), "small": (528, 1792, 11, 6592)}
"""Width, width of MLPs, heads, vocabulary."""


def main(out, size):
    rng = np.random.default_rng(0)
    width, hidden, heads, vocab = SIZES[size]
    stacks = {"prelude": 2, "core_block": 4, "coda": 2}
    matrices, vectors = shapes(width, hidden, heads, vocab, stacks)
    normal = rng.standard_normal(TILE, dtype=np.float32)
    tiles = {std: bf16(normal * np.float32(std)) for std in {std for _, _, std in matrices}}

    tensors = [(name, shape, None) for name, shape in vectors] + matrices
    shards, full = [[]], 0
    for tensor in tensors:
        if full >= (SHARD // 100 if size == "small" else SHARD):
            shards.append([])
            full = 0
        shards[-1].append(tensor)
        full += int(np.prod(tensor[1])) * 2
    out.mkdir(parents=True, exist_ok=True)
    index, total = {}, 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        total += write_shard(out / name, shard, rng, tiles)
        index |= {tensor: name for tensor, _, _ in shard}
    (out / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
    )

    config = json.loads((HOPS / "config.json").read_text())
    std = (2 / (5 * width)) ** 0.5
    config.update(
        n_embd=width,
        n_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        intermediate_size=hidden,
        padded_vocab_size=vocab,
        vocab_size=vocab,
        block_size=4096,
        n_layers=8,
        n_layers_in_prelude=2,
        n_layers_in_recurrent_block=4,
        n_layers_in_coda=2,
        mean_recurrence=32,
        effective_expected_depth=132,
        init_values={"embed_scale": width**0.5, "embedding": std, "out_proj": std / (2 * 132) ** 0.5, "std": std},
    )
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (HOPS / name).exists():
            shutil.copy(HOPS / name, out / name)
    print(f"{total / 1e9:.2f} GB in {len(shards)} shards")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    for size in ("medium", "small"):
        parser.add_argument(f"--{size}", dest="size", action="store_const", const=size, default="big")
    arguments = parser.parse_args()
    main(arguments.out, arguments.size)

#!/usr/bin/env python3
"""Makes of a GGUF file of Huginn's family what `train.py --from` starts at. Needs the package gguf.

  from_gguf.py MODEL.gguf FOLDER

FOLDER gets model.safetensors (f32, what the file's formats hold) and tokenizer.json. For a model whose published weights are too
large to keep: training goes on from those that are kept.
"""

import argparse
import pathlib

import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file

NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
PARTS = ("prelude", "core", "coda")


def blocks(reader):
    """(published name, number in the file) of every block."""
    counts = [int(reader.get_field(f"huginn.loop.{part}_count").contents()) for part in PARTS]
    names = [f"{name}.{i}" for name, count in zip(("prelude", "core_block", "coda"), counts) for i in range(count)]
    return [(name, number) for number, name in enumerate(names)]


def published(reader):
    """{published name: weights}."""
    found = {t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
    heads = int(reader.get_field("huginn.attention.head_count").contents())
    out = {
        "wte.weight": found["token_embd.weight"],
        "ln_f.weight": found["output_norm.weight"],
        "adapter.weight": torch.cat([found["loop.adapter_state.weight"], found["loop.adapter_input.weight"]], dim=1),
    }
    for name, number in blocks(reader):
        part = {key.removeprefix(f"blk.{number}."): weight for key, weight in found.items()}
        out[f"{name}.attn.Wqkv.weight"] = torch.cat([part[f"attn_{which}.weight"] for which in "qkv"])
        out[f"{name}.attn.qk_bias"] = torch.stack([part[f"attn_{which}.bias"] for which in "qk"]).view(2, 1, heads, -1)
        out[f"{name}.attn.proj.weight"] = part["attn_output.weight"]
        out[f"{name}.mlp.fc.weight"] = torch.cat([part["ffn_gate.weight"], part["ffn_up.weight"]])
        out[f"{name}.mlp.proj.weight"] = part["ffn_down.weight"]
        for i, norm in enumerate(NORMS):
            out[f"{name}.norm_{i + 1}.weight"] = part[f"{norm}.weight"]
    return {f"transformer.{name}": weight.float().contiguous() for name, weight in out.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    args = parser.parse_args()
    reader = GGUFReader(args.model)
    args.folder.mkdir(parents=True, exist_ok=True)
    save_file(published(reader), args.folder / "model.safetensors", {"format": "pt"})
    (args.folder / "tokenizer.json").write_text(reader.get_field("tokenizer.huggingface.json").contents())


if __name__ == "__main__":
    main()

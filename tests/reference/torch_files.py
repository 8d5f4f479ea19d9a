"""Writes PyTorch files in all shapes that the reader supports or refuses by name, and what torch.load gives of them.

    python tests/reference/torch_files.py tests/data/torch
    python tests/reference/torch_files.py tests/data/parcae

With the folder of a checkpoint (it holds a model.pt) only tensors.json is written: per tensor its shape and a hash of its
values as float32, so that the values need not be kept twice.
"""

import collections
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def fnv(tensor):
    """FNV-1a, 64 bits, of the values as little-endian float32."""
    h = 0xCBF29CE484222325
    for byte in tensor.detach().float().contiguous().numpy().tobytes():
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def describe(folder):
    state = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
    listed = {name: {"shape": list(t.shape), "fnv1a": fnv(t)} for name, t in sorted(state.items())}
    (folder / "tensors.json").write_text(json.dumps(listed, indent=1) + "\n")


def write(folder):
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    wide = torch.randn(6, 10)
    cube = torch.randn(3, 4, 5)
    floats = collections.OrderedDict(
        f32=torch.tensor([[1.5, float("inf")], [float("-inf"), -0.0]]),
        f16=torch.tensor([1.0, 2**-24, 65504.0], dtype=torch.float16),
        bf16=torch.randn(3, 2).bfloat16(),
        f64=torch.tensor([0.1, 1e300, -2.0], dtype=torch.float64),
        scalar=torch.tensor(7.25),
        empty=torch.zeros(0, 3),
        wide=wide,
        tied=wide,
        transposed=wide.t(),
        cut=wide[2:5],
        columns=wide[:, 3:7],
        every_other=wide[::2, 1::3],
        one_row=wide[4],
        one_column=wide[:, 4],
        permuted=cube.permute(2, 0, 1),
        permuted_half=cube.half().permute(1, 2, 0)[1:],
        single=cube[:1].transpose(0, 1),
        parameter=torch.nn.Parameter(torch.randn(2, 3)),
    )
    whole = collections.OrderedDict(
        i64=torch.tensor([1, -2]),
        i32=torch.tensor([3], dtype=torch.int32),
        i16=torch.tensor([4], dtype=torch.int16),
        i8=torch.tensor([5], dtype=torch.int8),
        u8=torch.tensor([6], dtype=torch.uint8),
        bool=torch.tensor([True]),
        c64=torch.tensor([1j]),
    )
    expected = {name: t.detach().float().contiguous().clone() for name, t in floats.items()}
    save_file(expected, folder / "expected.safetensors")
    torch.save(collections.OrderedDict(**floats, **whole), folder / "plain.pt")
    training = {
        "model": dict(**floats, **whole),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]},
        "step": 2**40,
        "negative": -3,
        "huge": 10**30,
        "name": "run é",
        "flags": [True, None, (1, 2.5)],
    }
    torch.save(training, folder / "training.pt")
    # Protocol 2 has no bytes of its own: it would call a codec.
    training["bytes"] = b"bytes"
    for protocol in (3, 4, 5):
        torch.save(training, folder / f"protocol{protocol}.pt", pickle_protocol=protocol)
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    torch.save(module.state_dict(), folder / "module.pt")
    torch.save({"w": torch.ones(2)}, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"w": torch.ones(1).expand(8)}, folder / "expanded.pt")
    torch.save(torch.ones(2), folder / "tensor.pt")
    torch.save({"w": torch.ones(2), "module": module}, folder / "object.pt")
    torch.save({"w": torch.ones(2, dtype=torch.uint16)}, folder / "uint16.pt")
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(folder / "script.pt"))
    torch.save({"first": wide}, folder / "pytorch_model-00001-of-00002.bin")
    torch.save({"second": wide.t()}, folder / "pytorch_model-00002-of-00002.bin")
    index = {"first": "pytorch_model-00001-of-00002.bin", "second": "pytorch_model-00002-of-00002.bin"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}) + "\n")


folder = Path(sys.argv[1])
describe(folder) if (folder / "model.pt").exists() else write(folder)

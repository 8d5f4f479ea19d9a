#!/usr/bin/env python3
"""Opens a GGUF file with PyPI's `gguf` package and compares it with our own account of it.

    pip install gguf
    cargo test --test gguf && python3 tests/gguf_reader.py target/tmp/sample.gguf target/tmp/sample.json
    rdt-inspect --json FILE.gguf | python3 tests/gguf_reader.py FILE.gguf

The account is JSON with the fields
    metadata: {key: value, ...}
    tensors:  [{"name": str, "type": "q4_0", "dims": [row length, ...], "offset": int, "bytes": int}, ...]
in the order of the file; offsets count from the start of the file. Other fields are ignored. Every key, value
and tensor must agree, except that of arrays of more than 64 strings only the length and the two ends are
compared. Prints one line and exits with 0 if all agree, otherwise one line per difference and exits with 1.
"""

import json
import sys

import numpy as np
from gguf import GGUFReader, GGUFValueType

# Fields of the fixed part of the header, which the reader lists among the keys.
FIXED = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}
FEW = 64


def shown(value):
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def number(ours, kind):
    """Our JSON number in the file's own precision, so that 0.1 as f32 is 0.1 as f32."""
    if ours is None:  # JSON has no NaN or infinity
        return None
    if kind == GGUFValueType.FLOAT32:
        return float(np.float32(ours))
    return float(ours) if kind == GGUFValueType.FLOAT64 else ours


def same_scalar(ours, theirs, kind):
    if kind in (GGUFValueType.FLOAT32, GGUFValueType.FLOAT64) and not np.isfinite(theirs):
        return ours is None
    if kind == GGUFValueType.BOOL:
        return isinstance(ours, bool) and ours == bool(theirs)
    if kind == GGUFValueType.STRING:
        return isinstance(ours, str) and ours == theirs
    return not isinstance(ours, (bool, str)) and number(ours, kind) == theirs


def entry(field, index):
    part = field.parts[field.data[index]]
    if field.types[-1] == GGUFValueType.STRING:
        return bytes(part).decode("utf-8")
    return part[0].item()


def compare_key(key, ours, field):
    kind = field.types[-1]
    if field.types[0] != GGUFValueType.ARRAY:
        theirs = entry(field, 0)
        if not same_scalar(ours, theirs, kind):
            yield f"key {key}: ours is {shown(ours)}, the file has {shown(theirs)}"
        return
    if not isinstance(ours, list):
        yield f"key {key}: ours is {shown(ours)}, the file has an array"
        return
    count = len(field.data)
    if len(ours) != count:
        yield f"key {key}: ours has {len(ours)} entries, the file {count}"
        return
    if GGUFValueType.ARRAY in field.types[1:]:
        yield f"key {key}: the reader flattens nested arrays, so they cannot be compared"
        return
    indices = range(count)
    if kind == GGUFValueType.STRING and count > FEW:
        indices = (0, count - 1)
    for index in indices:
        theirs = entry(field, index)
        if not same_scalar(ours[index], theirs, kind):
            yield f"key {key}[{index}]: ours is {shown(ours[index])}, the file has {shown(theirs)}"


def compare(reader, ours):
    keys = [key for key in reader.fields if key not in FIXED]
    if keys != list(ours["metadata"]):
        yield f"the keys differ: ours {list(ours['metadata'])}, the file {keys}"
    for key in keys:
        if key in ours["metadata"]:
            yield from compare_key(key, ours["metadata"][key], reader.fields[key])

    names = [tensor.name for tensor in reader.tensors]
    our_names = [tensor["name"] for tensor in ours["tensors"]]
    if names != our_names:
        yield f"the tensors differ: ours {our_names}, the file {names}"
        return
    for tensor, our in zip(reader.tensors, ours["tensors"]):
        theirs = {
            "type": tensor.tensor_type.name.lower(),
            "dims": [int(dim) for dim in tensor.shape],
            "offset": int(tensor.data_offset),
            "bytes": int(tensor.n_bytes),
        }
        for what, value in theirs.items():
            our_value = our[what].lower() if what == "type" else our[what]
            if our_value != value:
                yield f"tensor {tensor.name}: our {what} is {our_value}, the file has {value}"


def main():
    if len(sys.argv) not in (2, 3):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    if len(sys.argv) == 3:
        with open(sys.argv[2], encoding="utf-8") as file:
            ours = json.load(file)
    else:
        ours = json.load(sys.stdin)
    reader = GGUFReader(sys.argv[1])
    differences = list(compare(reader, ours))
    for difference in differences:
        print(difference)
    if differences:
        return 1
    print(f"{sys.argv[1]}: {len(ours['metadata'])} keys and {len(reader.tensors)} tensors agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())

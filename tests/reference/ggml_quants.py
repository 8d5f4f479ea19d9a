"""Writes the hashes of what ggml makes of many matrices, which this script and src/quant/held_out.rs both generate.

    python tests/reference/ggml_quants.py libggml-base.so tests/data/quant/held_out.txt

Needs nothing but ggml's base library, built for x86-64 with -ffp-contract=off: a compiler that contracts products and sums
into fused ones makes other bytes. Values are made of integer hashes by single operations that are exact, or rounded once to
float32, so that any language makes the same.
"""

import ctypes
import math
import struct
import sys
from pathlib import Path

# Rows for each row length; the second list is for formats with blocks of 32 only.
SHAPES = [(256, 32), (512, 16), (768, 8), (2048, 3), (17920, 1)]
SHORT = [(32, 40), (96, 24), (5280, 1)]
TYPES = {"F16": 1, "BF16": 30, "Q8_0": 8, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
         "IQ4_NL": 20, "IQ4_XS": 23}
SUPER = ("Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
PLAIN = ("F16", "BF16", "Q8_0")
KINDS = 10
MASK = 0xFFFFFFFFFFFFFFFF


def fnv(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & MASK
    return h


def mix(z):
    """The finaliser of splitmix64."""
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def normal(h):
    """Four uniform 16-bit numbers, summed: between -2 and 2, much like a normal distribution."""
    return (sum(h >> shift & 0xFFFF for shift in (0, 16, 32, 48)) - 131070) / 65536


def uniform(h):
    return (h >> 40) / 16777216


def value(kind, h, column):
    n, other = normal(h), mix(h)
    if kind == 0:  # ordinary
        return n
    if kind == 1:  # heavy tails
        return f32(f32(n * n) * n)
    if kind == 2:  # nearly constant
        return f32(1 + f32(n * 2.0**-10))
    if kind == 3:  # tiny: scales that are subnormal as half floats
        return f32(n * 2.0**-22)
    if kind == 4:  # large
        return n * 16384
    if kind == 5:  # ties: few values, all multiples of a quarter
        return (other % 17 - 8) / 4
    if kind == 6:  # zeros of both signs among others
        return (0.0, -0.0, n, n)[other % 4]
    if kind == 7:  # sparse outliers
        return n * 64 if other % 40 == 0 else n
    if kind == 8:  # float32 subnormals
        return f32(n * 2.0**-140)
    # Blocks of their own: nothing, one value, all positive, all negative.
    return ((0.0, n if column % 32 == 7 else 0.0, 2 + n, n - 3)[column // 32 % 4])


def importance(kind, h):
    if kind == 1:  # as mean squares of activations are
        return f32(normal(h) ** 2)
    # Zeros and a huge range.
    return (0.0 if h % 4 == 0 else math.ldexp(uniform(h), int(mix(h) % 40) - 20))


def floats(values):
    data = struct.pack(f"{len(values)}f", *values)
    return (ctypes.c_float * len(values)).from_buffer_copy(data)


def main(library, out):
    quantize = ctypes.CDLL(library).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    lines = []
    for k, rows in SHAPES + SHORT:
        matrices = [floats([value(kind, mix(kind << 56 | k << 32 | i), i % k) for i in range(rows * k)]) for kind in range(KINDS)]
        weights = [None] + [floats([importance(kind, mix((KINDS + kind) << 56 | k << 32 | i)) for i in range(k)]) for kind in (1, 2)]
        for name, number in TYPES.items():
            if (k, rows) in SHORT and name in SUPER:
                continue
            for w, weight in enumerate(weights[:1] if name in PLAIN else weights):
                row_hashes = []
                for matrix in matrices:
                    dst = ctypes.create_string_buffer(rows * k * 4)
                    size = quantize(number, matrix, dst, 0, rows, k, weight)
                    row_hashes.append(f"{fnv(dst.raw[:size]):016x}")
                lines.append(" ".join([name, str(k), str(rows), str(w)] + row_hashes))
    Path(out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

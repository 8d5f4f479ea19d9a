#!/usr/bin/env python3
"""Draws accuracy against loop steps, a line for each number of reasoning steps.

  plot.py MODEL

reads MODEL/accuracy_by_steps.json and writes MODEL/accuracy_by_steps.svg. Needs nothing but Python's standard library.
"""

import argparse
import collections
import itertools
import json
import math
import pathlib

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 560, 320, 50, 20, 140, 45
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7")


def shares(table):
    """{reasoning steps: share of right answers}."""
    counts = collections.defaultdict(lambda: [0, 0])
    for cell, (right, asked) in table.items():
        count = counts[int(cell.split()[1])]
        count[0] += right
        count[1] += asked
    return {steps: right / asked for steps, (right, asked) in sorted(counts.items())}


def drawn(tables, title):
    depths = list(tables)
    across = math.log2(depths[-1] / depths[0])
    lines = {depth: shares(table) for depth, table in tables.items()}
    # The lowest share that is shown: a multiple of a fifth.
    bottom = min(4, min(math.floor(5 * min(line.values())) for line in lines.values())) / 5

    def x(depth):
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log2(depth / depths[0]) / across

    def y(share):
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share) / (1 - bottom)

    def text(x, y, words, anchor="middle", colour="#333"):
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for i in range(5):
        share = bottom + (1 - bottom) * i / 4
        at = y(share)
        out.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(text(LEFT - 6, at + 4, f"{100 * share:.0f} %", "end"))
    powers = [depth for depth in depths if depth & (depth - 1) == 0]
    out += [text(x(depth), HEIGHT - BOTTOM + 18, depth) for depth in powers]
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, f"loop steps ({title})"))
    for colour, steps in zip(itertools.cycle(COLOURS), lines[depths[0]]):
        points = " ".join(f"{x(depth):.1f},{y(lines[depth][steps]):.1f}" for depth in depths)
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        words = f"{steps} reasoning step{'s' * (steps > 1)}"
        out.append(text(WIDTH - RIGHT + 10, TOP + 100 + 18 * steps, words, "start", colour))
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    model = parser.parse_args().model
    tables = json.loads((model / "accuracy_by_steps.json").read_text())
    tables = {int(depth): table for depth, table in tables.items()}
    (model / "accuracy_by_steps.svg").write_text(drawn(dict(sorted(tables.items())), model.resolve().name))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Tables of docs/exit-rules.md from calibration profiles.

  rule_table.py PROFILE.json...

For each profile: the steps that each rule takes at equal cross-entropy with `acceleration`, and the cheapest setting of each rule
within some losses. Between two exact points of a rule a straight line is taken; nothing is read beyond the outermost ones.
"""

import json
import math
import sys

LOSSES = (0.001, 0.002, 0.005, 0.01, 0.02)


def loss(profile, point):
    """As `Profile::loss`: the larger of the perplexity's over the published depth's, and exp(KL) - 1."""
    published = next(p for p in profile["depths"] if p["rule"] == f"fixed:{profile['published_steps']}")
    text = point["perplexity"]["value"] / published["perplexity"]["value"] - 1
    return max(text, math.expm1(point["kl"]["value"]))


def kinds(profile):
    rules = {}
    for point in profile["rules"]:
        rules.setdefault(point["rule"].split(":")[0].split(",")[0], []).append(point)
    return {"fixed": profile["depths"], **rules}


def front(points, value):
    """Points that no cheaper one beats, as (steps, value), ascending in steps."""
    best, kept = math.inf, []
    for point in sorted(points, key=lambda p: p["mean_steps"]):
        if value(point) < best:
            best = value(point)
            kept.append((point["mean_steps"], best))
    return kept


def at(front, wanted):
    """Steps at a value along a front; None where it does not reach."""
    for (a, b), (c, d) in zip(front, front[1:]):
        if d <= wanted <= b:
            return a + (c - a) * ((b - wanted) / (b - d) if b > d else 0)
    exact = [s for s, v in front if v == wanted]
    return exact[0] if exact else None


def table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for i, row in enumerate(rows):
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    print()


def main():
    for path in sys.argv[1:]:
        with open(path) as file:
            profile = json.load(file)
        all_kinds = kinds(profile)
        print(f"### {profile['model']['name']} ({profile['text']['scored']} positions of {profile['text']['name']})\n")

        rows = [["rule"] + [f"loss {100 * x:g} %" for x in LOSSES]]
        for name, points in all_kinds.items():
            row = [f"`{name}`"]
            for limit in LOSSES:
                within = [p for p in points if loss(profile, p) <= limit]
                cheapest = min(within, key=lambda p: p["mean_steps"], default=None)
                row.append(f"{cheapest['mean_steps']:.2f}" if cheapest else "-")
            rows.append(row)
        table(rows)

        # Equal cross-entropy, and equal KL: wherever acceleration's own points lie.
        rows = [["setting", "steps", "by", "value"] + [f"`{n}`" for n in ("step-norm", "kl", "cosine", "fixed")]]
        fronts = {}
        for key, value in (("cross-entropy", "cross_entropy"), ("KL", "kl")):
            fronts[key] = {n: front(p, lambda q, v=value: q[v]["value"]) for n, p in all_kinds.items()}
        for point in sorted(all_kinds.get("acceleration", []), key=lambda p: p["mean_steps"]):
            for key, value in (("cross-entropy", "cross_entropy"), ("KL", "kl")):
                row = [f"`{point['rule']}`", f"{point['mean_steps']:.2f}", key, f"{point[value]['value']:.4g}"]
                for name in ("step-norm", "kl", "cosine", "fixed"):
                    steps = at(fronts[key].get(name, []), point[value]["value"])
                    row.append(f"{steps:.2f}" if steps else "-")
                rows.append(row)
        table(rows)

        rows = [["setting", "steps", "variance over seeds"]]
        for point in profile["depths"] + profile["rules"]:
            if point.get("seed_variance"):
                v = point["seed_variance"]
                rows.append([f"`{point['rule']}`", f"{point['mean_steps']:.2f}", f"{v['value']:.2g} ± {v['error']:.1g}"])
        table(rows)


if __name__ == "__main__":
    main()

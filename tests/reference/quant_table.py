#!/usr/bin/env python3
"""What each type costs a model, as the tables of docs/quantisation.md.

  cargo build --release
  quant_table.py FOLDER TEXT [--bin target/release] [--steps N] >table.md

FOLDER is a checkpoint, TEXT a file with special tokens written out. The first two fifths of the text, cut between dialogues,
are what importance and sensitivity are measured on; the rest is what the table is measured on.
Needs nothing but Python's standard library.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import tempfile

PLAIN = ["pure:q4_0", "pure:iq4_nl", "pure:q4_1", "pure:q4_k", "pure:q5_0", "pure:q5_1", "pure:q5_k", "pure:q6_k", "pure:q8_0"]
MIXED = ["q4_0", "iq4_nl", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16"]
# Fixed recipes beside which --auto is put at the same size.
BESIDE = ["pure:iq4_nl", "q4_0", "q4_k_m", "q5_k_m"]
MARK = "<|begin_text|>"


def call(program, *args):
    out = subprocess.run([program, *map(str, args)], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(out.stdout) if out.stdout.startswith((b"{", b"[")) else None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--bin", type=pathlib.Path, default="target/release")
    parser.add_argument("--steps", type=int, required=True, help="the model's mean steps")
    parser.add_argument("--chunks", type=int, default=60)
    parser.add_argument("--ctx", type=int, default=256)
    flags = parser.parse_args()
    quantize, perplexity, imatrix = (flags.bin.absolute() / f"rdt-{name}" for name in ("quantize", "perplexity", "imatrix"))

    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        text = flags.text.read_text()
        cut = text.index(MARK, 2 * len(text) // 5)
        (place / "a.txt").write_text(text[:cut])
        (place / "b.txt").write_text(text[cut:])
        base, importance = place / "f32.gguf", place / "imatrix.gguf"
        call(quantize, flags.folder, base, "--type", "f32", "--json")
        seen = ["-f", place / "a.txt", "--special", "-c", flags.ctx, "--chunks", flags.chunks, "--steps", flags.steps]
        call(imatrix, "-m", base, *seen, "--exit-rule", "fixed", "-o", importance, "--json")
        powers = [1 << i for i in range(12) if 1 << i <= 4 * flags.steps]
        depths = sorted({flags.steps, *powers})

        few = ["pure:q4_0", "pure:iq4_nl", "pure:q5_k", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0"]
        few += [f"auto, as large as {name}" for name in BESIDE]

        def run(file, steps, chunks):
            report = call(
                perplexity, "-m", file, "--base-model", base, "-f", place / "b.txt", "--special", "-c", flags.ctx, "-t", 1,
                "--chunks", chunks, "--exit-rule", "fixed", "--steps", ",".join(map(str, steps)), "--json",
            )
            return {run["max_steps"]: run for run in report["runs"]}

        def row(name, *how):
            file = place / f"{name.replace(' ', '-').replace(':', '-')}.gguf"
            summary = call(quantize, base, file, *how, "-t", 1, "--json")
            at_mean = run(file, [flags.steps], flags.chunks)[flags.steps]
            others = run(file, depths, flags.chunks // 3) if name in few else {}
            file.unlink()
            return name, summary, at_mean, others

        pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
        sizes = {}
        plans = []
        for name in PLAIN + MIXED:
            plans.append((name, "--type", name))
            if name != "f16" and not name.endswith("q8_0"):
                plans.append((f"{name}, imatrix", "--type", name, "--imatrix", importance))
            if name in BESIDE:
                sizes[name] = call(quantize, base, "--dry-run", *plans[-1][1:], "--json")["file_bytes"]
        auto = ["--auto", *seen[:3], "--ctx-size", flags.ctx, "--chunks", 12, "--steps", flags.steps]
        plans += [(f"auto, as large as {name}", *auto, "--target-size", sizes[name]) for name in BESIDE]
        rows = list(pool.map(lambda plan: row(*plan), plans))

        of = lambda run: run["comparison"]
        print(f"At {flags.steps} steps:\n")
        print("| type | bits/weight | bytes | perplexity | KL | same top | cosine of the last state |")
        print("|---|---|---|---|---|---|---|")
        for name, summary, at_mean, _ in rows:
            kl = of(at_mean)["kl"]
            print(
                f"| {name} | {summary['bits_per_weight']:.2f} | {summary['file_bytes']} | {at_mean['perplexity']['value']:.3f} | "
                f"{kl['value']:.6f} ± {kl['error']:.6f} | {100 * of(at_mean)['same_top']['value']:.2f} % | "
                f"{at_mean['latent_cosines'][-1]['cosine']['value']:.5f} |"
            )
        base_ppl = of(rows[0][2])["base_perplexity"]["value"]
        print(f"| f32 | 32.00 | {base.stat().st_size} | {base_ppl:.3f} | 0 | 100 % | 1 |")
        rows = [(name, runs) for name, _, _, runs in rows if runs]
        base_ppl = {steps: of(run)["base_perplexity"]["value"] for steps, run in rows[0][1].items()}
        print(f"\nThe following are measured on the first {flags.chunks // 3} windows of the same text.")

        for title, value in [
            ("KL at other depths, each against f32 at the same depth", lambda r: f"{of(r)['kl']['value']:.6f}"),
            ("Same top token", lambda r: f"{100 * of(r)['same_top']['value']:.2f} %"),
        ]:
            print(f"\n{title}:\n\n| type | " + " | ".join(map(str, depths)) + " |\n|---|" + "---|" * len(depths))
            for name, runs in rows:
                print(f"| {name} | " + " | ".join(value(runs[d]) for d in depths) + " |")
        print("\nPerplexity:\n\n| type | " + " | ".join(map(str, depths)) + " |\n|---|" + "---|" * len(depths))
        print("| f32 | " + " | ".join(f"{base_ppl[d]:.3f}" for d in depths) + " |")
        for name, runs in rows:
            print(f"| {name} | " + " | ".join(f"{runs[d]['perplexity']['value']:.3f}" for d in depths) + " |")
        deepest = depths[-1]
        shown = [s for s in powers if s <= deepest]
        print(f"\nCosine of the latent state with that of f32, step by step (run to {deepest} steps):\n")
        print("| type | " + " | ".join(map(str, shown)) + " |\n|---|" + "---|" * len(shown))
        for name, runs in rows:
            cosines = {c["step"]: c["cosine"]["value"] for c in runs[deepest]["latent_cosines"]}
            print(f"| {name} | " + " | ".join(f"{cosines[s]:.5f}" for s in shown) + " |")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""A shortened training run of each layout, from the generator's dialogues to answers of the runtime.

  train.py PROGRAMS [huginn-shape parcae-shape ...]

PROGRAMS is the folder of rdt-quantize and rdt-eval. Run with a Python that has tools/train/requirements.txt. It checks that training
learns; that a run which was stopped and went on has the weights of one that was not, to the last bit; that another seed has
others; that the runtime answers every question of the exported checkpoint as PyTorch does; that training goes on from a checkpoint and
from a GGUF file; and that prose with another hash is refused.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file

TRAIN = pathlib.Path(__file__).parents[1] / "tools" / "train"
STEPS, HALF = 16, 7
SHORT = ["--steps", STEPS, "--cool-down", 4, "--ramp", 6, "--batch-tokens", 512, "--rate", "1e-2", "--mean-steps", 4]
QUIET = ["--evaluate-every", 1000, "--log-every", 4, "--save-every", 1000, "--questions", 1]
LONGEST = 6


def call(program, *args):
    command = [str(part) for part in (*program, *args)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def python(script, *args):
    return call([sys.executable, TRAIN / script], *args)


def train(run, shape, *more):
    python("train.py", run, "--shape", shape, *SHORT, *QUIET, *more)
    return torch.load(run / "state.pt")


def same(a, b):
    return all(torch.equal(a[part][name], b[part][name]) for part in ("weights", "mean") for name in a[part])


def check(shape, programs, folder):
    whole = train(folder / "whole", shape)
    losses = [json.loads(line).get("answer_loss") for line in (folder / "whole" / "log.jsonl").open()]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < 0.8 * losses[0], f"{shape}: the loss does not fall: {losses}"

    # A run that has a tokenizer keeps it, which saves the time to train it.
    for run in ("parts", "a", "b", "c"):
        (folder / run).mkdir()
        shutil.copy(folder / "whole" / "tokenizer.json", folder / run)
    parts = train(folder / "parts", shape, "--until", HALF)
    assert parts["step"] == HALF, parts["step"]
    parts = train(folder / "parts", shape)
    assert parts["step"] == STEPS and same(whole, parts), f"{shape}: a run in two parts has other weights"
    # Called again where it was to stop, it stays there.
    first = [train(folder / run, shape, "--until", 2, "--seed", seed) for run, seed in (("a", 1), ("a", 1), ("b", 1), ("c", 2))]
    assert all(state["step"] == 2 for state in first)
    assert same(first[0], first[1]) and same(first[0], first[2]), f"{shape}: two runs of a seed differ"
    assert not same(first[0], first[3]), f"{shape}: the seed makes no difference"

    model = folder / "model"
    python("export.py", folder / "whole", model, "--shape", shape, "--questions", 1, "--dialogues", 20, "--longest", LONGEST)
    questions = [json.loads(line) for line in (model / "eval.jsonl").open()]
    recorded = next(name for name in questions[0] if name.startswith("model_answer_at_"))
    depth = int(recorded.split("_")[3])
    rule = ["--rule", f"fixed:{depth}", "--init", "zeros", "-n", LONGEST, "--json"]
    (outcome,) = json.loads(call([programs / "rdt-eval"], "-m", model, model / "eval.jsonl", *rule))
    alike, asked = outcome["recorded"]
    # Untrained logits lie close together: a near tie may turn with the order of additions. And an answer that is cut within a
    # character is written in two ways.
    others = [line for line in outcome["differences"] if "\ufffd" not in line["recorded"]]
    assert asked == len(questions) and all(line["gap"] is not None and line["gap"] < 1e-3 for line in others), others
    assert alike > asked // 2, f"{shape}: {alike} of {asked} answers are PyTorch's"
    call([programs / "rdt-quantize"], model, folder / "model.gguf")
    call([programs / "rdt-eval"], "-m", folder / "model.gguf", model / "eval.jsonl", *rule)

    if shape == "nano":
        check_gguf(programs, model, folder)
        check_prose(folder / "prose")
    # A checkpoint is a place to go on from.
    further = train(folder / "further", shape, "--until", 1, "--from", model, "--rate", 0)
    exported = {name: weight.bfloat16().float() if weight.dim() == 2 else weight for name, weight in whole["mean"].items()}
    assert all(torch.equal(further["weights"][name], weight) for name, weight in exported.items()), f"{shape}: --from"
    # The plot has a line for each number of reasoning steps.
    python("plot.py", model)
    lines = (model / "accuracy_by_steps.svg").read_text().count("<polyline")
    assert lines == len({question["steps_needed"] for question in questions}), lines
    print(f"{shape}: loss {losses[0]} to {losses[-1]} in {STEPS} steps; {alike} of {asked} answers are PyTorch's, the others near ties or cut")


def check_gguf(programs, model, folder):
    """A GGUF file of a checkpoint is a place to go on from too."""
    call([programs / "rdt-quantize"], model, folder / "f32.gguf", "--type", "f32")
    python("from_gguf.py", folder / "f32.gguf", folder / "back")
    ours, back = (load_file(path / "model.safetensors") for path in (model, folder / "back"))
    assert ours.keys() == back.keys() and all(torch.equal(back[name], ours[name].float()) for name in ours)
    assert (folder / "back" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def check_prose(folder):
    """Text that is not the one that was meant is refused."""
    name = json.loads((TRAIN / "prose.json").read_text())[0]["file"]
    folder.mkdir()
    (folder / name).write_text("Once upon a time there was another text.")
    done = subprocess.run([sys.executable, TRAIN / "prose.py", folder], capture_output=True, text=True)
    assert done.returncode != 0 and "the hash is" in done.stderr, done


def main():
    programs = pathlib.Path(sys.argv[1])
    for shape in sys.argv[2:] or ("nano", "parcae-nano"):
        with tempfile.TemporaryDirectory() as folder:
            check(shape, programs, pathlib.Path(folder))


if __name__ == "__main__":
    main()

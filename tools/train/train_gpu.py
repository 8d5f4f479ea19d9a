#!/usr/bin/env python3
"""Trains a recurrent-depth model on one GPU for a given time.

  train_gpu.py RUN --shape small --minutes 9.5

RUN is a folder: the tokenizer, state.pt (everything needed to go on), model.safetensors (the running mean of the
weights, matrices in bf16), log.jsonl. Called again it goes on where it was. Everything is a function of the share of the
time that has passed, so that two runs are alike and not the same. Workers draw dialogues, each in a process of its own.
"""

import argparse
import collections
import json
import math
import multiprocessing
import os
import pathlib
import queue
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer

import dialogues
import tokenizer as tokens
from evaluate import held_out_questions, score
from layouts import build
from model import SHAPES, to_bfloat16
from muon import Muon
from train import WARM_UP, draw_steps, save

KINDS = [kind for kind in dialogues.KINDS if kind != "talk"]
CELLS = [(kind, steps) for kind in KINDS for steps in range(1, dialogues.LONGEST + 1)]
# Numbers of what a token is: 0 is no answer, then an answer of small talk, of each cell, of no reasoning step.
TALK, FIRST, NO_STEP = 1, 2, 2 + len(CELLS)
# A token of a batch in 32 bits: which, whether a dialogue begins with it, what it is.
BEGINS, WHAT = 10, 11
TALK_SHARE, MORE_SCENES = 0.07, 0.25
# The least weight of a cell in what is asked. Questions get a step longer once no more than this share is answered
# wrongly, or after this share of the time for each step.
LEAST, WRONG, LATEST = 0.15, 0.3, 0.12
MOST_STEPS = 32


def what(turn):
    if turn.kind == "talk":
        return TALK
    return FIRST + CELLS.index((turn.kind, turn.steps)) if turn.steps else NO_STEP


def draw_dialogue(rng, weights):
    """A scene or two, each followed up; what is asked first is drawn by the weights of the cells."""
    turns = []
    for _ in range(1 + (rng.random() < MORE_SCENES)):
        if rng.random() < TALK_SHARE:
            turns += dialogues.draw(rng, "talk", 0, rng.randint(1, 3), held_out=False).turns
        else:
            ((kind, steps),) = rng.choices(CELLS, weights)
            turns += dialogues.draw(rng, kind, steps, rng.randint(1, 8), held_out=False).turns
    return turns


def in_32_bits(ids, is_answer, turns):
    coded, turn, before = [], -1, False
    for token, said in zip(ids, is_answer):
        turn += said and not before
        before = said
        coded.append(token | (what(turns[turn]) << WHAT if said else 0))
    coded[0] |= 1 << BEGINS
    return coded


def supply(seed, encoder, weights, rows, length, filled):
    """A worker: batches without end, dialogues one after the other in every row."""
    rng = random.Random(seed)
    empty = encoder.pad | 1 << BEGINS
    batch, open_rows = [], [[] for _ in range(8)]
    while True:
        some = [draw_dialogue(rng, weights[:]) for _ in range(256)]
        for turns, (ids, is_answer) in zip(some, encoder(some)):
            if len(ids) > length:
                continue
            row = next((row for row in open_rows if len(row) + len(ids) <= length), None)
            if row is None:
                row = max(open_rows, key=len)
                batch.append(row + [empty] * (length - len(row)))
                row.clear()
            row += in_32_bits(ids, is_answer, turns)
            if len(batch) == rows:
                filled.put(np.array(batch, dtype=np.uint32))
                batch = []


class Supply:
    """What the workers have drawn; when they are too slow, some of it again."""

    def __init__(self, args, encoder, first):
        context = multiprocessing.get_context("fork")
        self.weights = context.Array("d", [float(steps == 1) for _, steps in CELLS], lock=False)
        self.filled, self.kept = context.Queue(32), collections.deque(maxlen=256)
        self.rng = random.Random(f"{args.seed} {first} again")
        self.drawn = 0
        for worker in range(args.workers):
            seed = f"{args.seed} {first} {worker}"
            given = seed, encoder, self.weights, args.rows, args.length + 1, self.filled
            context.Process(target=supply, args=given, daemon=True).start()

    def next(self):
        try:
            self.kept.append(self.filled.get(block=len(self.kept) < 16))
            self.drawn += 1
            return self.kept[-1]
        except queue.Empty:
            return self.rng.choice(self.kept)


class Trainer:
    """The model multiplies in bf16; here are its weights in f32, their running mean and the optimisers."""

    def __init__(self, model, args):
        self.model, self.args, self.steps = model, args, 0
        self.weights = {name: p.detach().float().clone() for name, p in model.named_parameters()}
        self.mean = {name: w.clone() for name, w in self.weights.items()}
        to_bfloat16(model)
        self.muon = Muon({name: w for name, w in self.weights.items() if model.is_hidden(name)}, model.fused)
        self.others = [name for name in self.weights if not model.is_hidden(name)]
        self.adam = torch.optim.AdamW(
            [self.weights[name] for name in self.others], lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0
        )

    def rate(self, passed):
        """Warm-up, constant, and down to nothing at the end."""
        return self.args.rate * min((self.steps + 1) / WARM_UP, (1 - passed) / self.args.cool_down, 1.0)

    @torch.no_grad()
    def update(self, passed):
        gradients = {name: p.grad.float() for name, p in self.model.named_parameters()}
        norm = torch.nn.utils.get_total_norm(list(gradients.values()))
        # A step whose gradient is not finite is left out.
        share = torch.where(norm.isfinite(), (1 / (norm + 1e-6)).clamp(max=1), 0)
        gradients = {name: torch.nan_to_num(g * share, 0.0, 0.0, 0.0) for name, g in gradients.items()}
        rate = max(self.rate(passed), 0.0)
        self.muon.step(rate, gradients)
        for name in self.others:
            self.weights[name].grad = gradients[name]
        self.adam.param_groups[0]["lr"] = rate
        self.adam.step()
        self.steps += 1
        keeps = min(self.args.mean_keeps, self.steps / (self.steps + 9))
        torch._foreach_lerp_(list(self.mean.values()), list(self.weights.values()), 1 - keeps)
        self.show()
        return norm

    @torch.no_grad()
    def show(self):
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.weights[name])
            parameter.grad = None

    def state(self, passed):
        return {
            "steps": self.steps,
            "passed": passed,
            "weights": self.weights,
            "mean": self.mean,
            "muon": list(self.muon.means.values()),
            "adam": self.adam.state_dict(),
        }

    @torch.no_grad()
    def restore(self, state):
        for ours, name in ((self.weights, "weights"), (self.mean, "mean")):
            for key, weight in ours.items():
                weight.copy_(state[name][key])
        for ours, saved in zip(self.muon.means.values(), state["muon"]):
            ours.copy_(saved)
        self.adam.load_state_dict(state["adam"])
        self.steps = state["steps"]
        self.show()
        return state["passed"]

    def stored(self):
        """The mean as it is exported."""
        return {name: (w.bfloat16() if w.dim() == 2 else w).contiguous() for name, w in self.mean.items()}


class Ledger:
    """How wrong the answers of each cell are, and what to ask next for it."""

    def __init__(self, device):
        self.loss = torch.zeros(NO_STEP + 1, device=device)
        self.asked = torch.zeros(NO_STEP + 1, device=device)
        self.opened = {kind: 1 for kind in KINDS}

    def add(self, each, what):
        """`what` of every token and the one before it."""
        before, what = what[:, :-1].flatten(), what[:, 1:].flatten()
        self.loss.index_add_(0, what, each)
        self.asked.index_add_(0, what, ((what > 0) & (before == 0)).float())

    def take(self, passed):
        """{cell: about the share of wrong answers}, {cell: its weight}."""
        wrong = (1 - torch.exp(-self.loss / self.asked.clamp(min=1))).tolist()
        asked = self.asked.tolist()
        self.loss.zero_(), self.asked.zero_()
        for kind in KINDS:
            most = self.opened[kind]
            at = FIRST + CELLS.index((kind, most))
            if most < dialogues.LONGEST and (asked[at] > 50 and wrong[at] < WRONG or passed > LATEST * most):
                self.opened[kind] = most + 1
        weights = [(LEAST + wrong[FIRST + i]) * (n <= self.opened[k]) for i, (k, n) in enumerate(CELLS)]
        return {f"{k} {n}": round(wrong[FIRST + i], 3) for i, (k, n) in enumerate(CELLS)}, weights


def unpacked(coded, device):
    """Inputs, what to predict, the mask that keeps dialogues apart, and what every token is."""
    coded = torch.from_numpy(coded.astype(np.int64))
    coded = (coded.pin_memory() if device.type == "cuda" else coded).to(device, non_blocking=True)
    ids, begins, what = coded & (1 << BEGINS) - 1, coded >> BEGINS & 1, coded >> WHAT
    dialogue = begins.cumsum(1)[:, :-1]
    seen = (dialogue[:, :, None] == dialogue[:, None, :]).tril()
    mask = torch.zeros(seen.shape, dtype=torch.bfloat16, device=device).masked_fill_(~seen, -math.inf)
    return ids, mask[:, None], what, begins[:, 1:]


def backpropagate(model, batch, depth, question_weight, ledger, pad):
    ids, mask, what, begins = batch
    inputs, wanted = ids[:, :-1], ids[:, 1:]
    rope = model.angles(inputs)
    embedded = model.embed(inputs, mask)
    state = model.noise(inputs.shape, None)
    for i in range(depth):
        with torch.set_grad_enabled(i >= depth - model.shape.backprop_steps):
            state = model.step(state, embedded, rope, mask)
    logits = model.head(model.coda(state, rope, mask)).float()
    each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
    is_answer = what[:, 1:] > 0
    weight = torch.where(is_answer, 1.0, question_weight) * ((wanted != pad) & (begins == 0))
    weight = weight.flatten()
    ((each * weight).sum() / weight.sum()).backward()
    each = each.detach()
    ledger.add(each, what)
    return (each * is_answer.flatten()).sum() / is_answer.sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--shape", choices=SHAPES, default="nano")
    parser.add_argument("--minutes", type=float, default=9.5, help="of training in all")
    parser.add_argument("--cool-down", type=float, default=0.4, help="share of it in which the rate falls")
    parser.add_argument("--rows", type=int, default=96, help="rows of a batch")
    parser.add_argument("--length", type=int, default=384, help="tokens of a row")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--mean-keeps", type=float, default=0.997, help="what a step keeps of the mean")
    parser.add_argument("--workers", type=int, default=7, help="processes that draw dialogues")
    parser.add_argument("--log-every", type=int, default=50, help="steps")
    parser.add_argument("--save-every", type=float, default=60, help="seconds; evaluates too")
    parser.add_argument("--questions", type=int, default=100, help="of each cell, asked at the end")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    shape, device = SHAPES[args.shape], torch.device(args.device)
    args.run.mkdir(parents=True, exist_ok=True)
    path = args.run / "tokenizer.json"
    if not path.exists():
        tokens.train(args.seed, shape.vocabulary).save(str(path))
    encoder = tokens.Encoder(Tokenizer.from_file(str(path)))
    checkpoint = args.run / "state.pt"
    state = torch.load(checkpoint, map_location=device) if checkpoint.exists() else None
    first = state["steps"] if state else 0
    data = Supply(args, encoder, first)
    few = held_out_questions(args.seed, 12, dialogues.LONGEST)

    torch.manual_seed(args.seed + first)
    model = build(shape).to(device)
    judge = build(shape).to(device)
    trainer = Trainer(model, args)
    before = trainer.restore(state) if state else 0.0
    blocks = [m for part in ("prelude", "core_block", "coda") for m in model.transformer[part]]
    if not args.no_compile:
        for block in blocks:
            block.compile(dynamic=False)
    ledger = Ledger(device)
    if state:
        ledger.opened.update(state.get("opened", {}))
        data.weights[:] = state.get("asked", list(data.weights))
    depths = torch.Generator().manual_seed(args.seed + first)
    began = saved = logged = time.time()
    total = torch.zeros((), device=device)

    def write(line):
        line = json.dumps(line)
        print(line, flush=True)
        with (args.run / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def evaluate(questions, depths):
        judge.load_state_dict({name: w.float() for name, w in trainer.stored().items()})
        return score(judge, encoder, questions, depths, batch=256)

    def keep(passed):
        save_file(trainer.stored(), args.run / "model.tmp", {"format": "pt"})
        os.replace(args.run / "model.tmp", args.run / "model.safetensors")
        save(trainer.state(passed) | {"opened": ledger.opened, "asked": list(data.weights)}, checkpoint)

    while True:
        passed = before + (time.time() - began) / (args.minutes * 60)
        if passed >= 1:
            break
        # Longer questions, deeper loops.
        mean = shape.mean_steps - 3 * (1 - min(1, passed / 0.25))
        depth = min(MOST_STEPS, draw_steps(mean, depths))
        batch = unpacked(data.next(), device)
        question_weight = 0.1 if passed < 0.2 else 0.04
        try:
            loss = backpropagate(model, batch, depth, question_weight, ledger, encoder.pad)
        except Exception as error:
            if trainer.steps > first or args.no_compile:
                raise
            write({"not compiled": f"{type(error).__name__}: {error}"[:300]})
            for block in blocks:
                block._compiled_call_impl = None
            trainer.show()
            loss = backpropagate(model, batch, depth, question_weight, ledger, encoder.pad)
        norm = trainer.update(passed)
        total += loss
        if trainer.steps % args.log_every == 0 or trainer.steps == first + 1:
            wrong, data.weights[:] = ledger.take(passed)
            count = args.log_every if trainer.steps % args.log_every == 0 else 1
            now = time.time()
            line = {
                "step": trainer.steps,
                "seconds": round(before * args.minutes * 60 + now - began),
                "answer_loss": round(float(total) / count, 4),
                "norm": round(float(norm), 2),
                "tokens_per_second": round(count * args.rows * args.length / (now - logged)),
                "drawn": data.drawn,
                "wrong": wrong,
            }
            write(line)
            logged = now
            total.zero_()
        if time.time() - saved > args.save_every:
            write({"step": trainer.steps, "right": evaluate(few, (1, 2, 4, 8, 16))})
            keep(passed)
            saved = time.time()
    keep(1.0)
    many = held_out_questions(args.seed, args.questions, dialogues.LONGEST)
    write({"step": trainer.steps, "right": evaluate(many, (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32))})


if __name__ == "__main__":
    main()

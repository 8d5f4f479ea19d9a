#!/usr/bin/env python3
"""Trains a small recurrent-depth model on generated dialogues.

  torchrun --nproc-per-node 2 train.py RUN
  torchrun --nproc-per-node 2 train.py RUN --from models/huginn-nano --ramp 0 --rate 1e-3

RUN is a folder: the tokenizer, state.pt (everything needed to go on), log.jsonl. Called again it goes on where it was,
to the same weights as without the interruption. Workers are processes of one thread each that share every batch.
"""

import argparse
import json
import math
import os
import pathlib
import random
import shutil
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

import dialogues
import prose
import tokenizer as tokens
from evaluate import held_out_questions, score
from layouts import build
from model import SHAPES
from muon import Muon

# Steps whose dialogues are drawn together and sorted by length.
POOL = 16
# Of the tokens that the user says, one in five is in the loss, with a weight of half an answer's.
QUESTION_SHARE, QUESTION_WEIGHT = 0.2, 0.5
# A token of prose weighs this much of an answer's; a piece of prose has at most so many.
PROSE_WEIGHT, PROSE_LENGTH = 0.25, 96
# How much of the running mean of the weights a step keeps; the steps in which the rate rises.
MEAN_KEEPS, WARM_UP = 0.998, 100


def generator(*what):
    """Chance of its own for every use, so that nothing depends on what was drawn before."""
    return torch.Generator().manual_seed(random.Random(f"{what}").getrandbits(32))


def draw_steps(mean, generator):
    """How often the core is applied: Poisson around a log-normal rate."""
    sigma = 0.5
    rate = torch.exp(torch.randn(1, generator=generator) * sigma + math.log(mean) - sigma**2 / 2)
    return int(torch.poisson(rate, generator=generator)) + 1


def longest(step, ramp):
    """Easy questions first: a reasoning step more every `ramp` steps of training, or all at once."""
    return min(dialogues.LONGEST, 1 + step // ramp) if ramp else dialogues.LONGEST


def draw_dialogue(rng, most, talk_share):
    """Longer questions come more often than short ones."""
    if rng.random() < talk_share:
        return dialogues.draw(rng, "talk", 0, rng.randint(1, 4), held_out=False).turns
    kind = rng.choice([kind for kind in dialogues.KINDS if kind != "talk"])
    (steps,) = rng.choices(range(1, most + 1), range(1, most + 1))
    turns = dialogues.draw(rng, kind, steps, rng.randint(1, 6), held_out=False).turns
    if rng.random() < 0.05:
        turns = (*dialogues.draw(rng, "talk", 0, 1, held_out=False).turns, *turns)
    return turns


def weights(is_answer, rng):
    """What each token of a dialogue weighs in the loss."""
    return [1.0 if said else QUESTION_WEIGHT * (rng.random() < QUESTION_SHARE) for said in is_answer]


def batches(args, encoder, books, first, workers):
    """From step `first` on, the batches of all workers: dialogues, and pieces of prose, of about one length."""
    for pool in range(first // POOL, args.steps // POOL + 1):
        rng = random.Random(f"{args.seed} pool {pool}")
        wanted, drawn = POOL * args.batch_tokens, []
        while wanted > 0:
            most = longest(pool * POOL, args.ramp)
            some = encoder([draw_dialogue(rng, most, args.talk) for _ in range(64)])
            some = [(ids, weights(is_answer, rng)) for ids, is_answer in some]
            told = args.prose / (1 - args.prose) * sum(len(ids) for ids, _ in some) if books else 0
            while told > 0:
                ids = [encoder.begin, *books.piece(rng, rng.randint(16, PROSE_LENGTH))]
                some.append((ids, [PROSE_WEIGHT] * len(ids)))
                told -= len(ids)
            drawn += some
            wanted -= sum(len(ids) for ids, _ in some)
        drawn.sort(key=lambda dialogue: len(dialogue[0]))
        total, so_far = sum(len(dialogue[0]) for dialogue in drawn), 0
        cut = [[] for _ in range(POOL * workers)]
        for dialogue in drawn:
            cut[so_far * len(cut) // total].append(dialogue)
            so_far += len(dialogue[0])
        order = list(range(POOL))
        rng.shuffle(order)
        for i, j in enumerate(order):
            if pool * POOL + i >= first:
                yield pool * POOL + i, [padded(part, encoder.pad) for part in cut[j * workers : (j + 1) * workers]]


def padded(dialogues, pad):
    """Tokens [dialogue, position] and the weight of each in the loss, 0 for most."""
    length = -(-max(len(ids) - 1 for ids, _ in dialogues) // 8) * 8 + 1
    ids = torch.full((len(dialogues), length), pad)
    weight = torch.zeros(ids.shape)
    for row, (tokens, weighs) in enumerate(dialogues):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weight[row, : len(tokens)] = torch.tensor(weighs)
    return ids, weight


class Trainer:
    """The model's weights, their running mean and the optimisers, all in f32: few CPUs multiply bf16 fast."""

    def __init__(self, model, args):
        self.model, self.args = model, args
        self.names = [name for name, _ in model.named_parameters()]
        self.weights = [p.detach().clone() for p in model.parameters()]
        self.mean = [w.clone() for w in self.weights]
        matrices = {n: w for n, w in zip(self.names, self.weights) if model.is_hidden(n)}
        self.muon = Muon(matrices, model.fused)
        self.others = [w for n, w in zip(self.names, self.weights) if n not in matrices]
        self.adam = torch.optim.AdamW(self.others, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0)

    def rate(self, step):
        """Warm-up, constant, and down to nothing at the end."""
        left = (self.args.steps - step) / max(1, self.args.cool_down)
        return self.args.rate * min((step + 1) / WARM_UP, left, 1.0)

    def update(self, step):
        gradients = [p.grad.float() for p in self.model.parameters()]
        if dist.get_world_size() > 1:
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            gradients = [g.view_as(w) for g, w in zip(flat.split([w.numel() for w in self.weights]), self.weights)]
        for weight, gradient in zip(self.weights, gradients):
            weight.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        with torch.no_grad():
            self.muon.step(self.rate(step), {n: w.grad for n, w in zip(self.names, self.weights)})
        self.adam.param_groups[0]["lr"] = self.rate(step)
        self.adam.step()
        torch._foreach_lerp_(self.mean, self.weights, 1 - min(MEAN_KEEPS, (step + 1) / (step + 10)))
        self.show(self.weights)

    @torch.no_grad()
    def show(self, weights):
        """Puts these weights into the model."""
        for parameter, weight in zip(self.model.parameters(), weights):
            parameter.copy_(weight)
            parameter.grad = None

    def state(self, step):
        return {
            "step": step,
            "weights": dict(zip(self.names, self.weights)),
            "mean": dict(zip(self.names, self.mean)),
            "muon": list(self.muon.means.values()),
            "adam": self.adam.state_dict(),
        }

    def restore(self, state):
        for ours, name in ((self.weights, "weights"), (self.mean, "mean")):
            for weight, saved in zip(ours, state[name].values()):
                weight.copy_(saved)
        for ours, saved in zip(self.muon.means.values(), state["muon"]):
            ours.copy_(saved)
        self.adam.load_state_dict(state["adam"])
        self.show(self.weights)
        return state["step"]


def save(state, path):
    """All of it or nothing."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def stored(folder):
    """The weights of a checkpoint, in f32."""
    path = folder / "model.safetensors"
    found = load_file(path) if path.exists() else torch.load(folder / "pytorch_model.bin")
    return {name: weight.float() for name, weight in found.items()}


def get_tokenizer(args, vocabulary, rank):
    path = args.run / "tokenizer.json"
    if rank == 0 and not path.exists():
        args.run.mkdir(parents=True, exist_ok=True)
        if args.start:
            shutil.copy(args.start / "tokenizer.json", path)
        else:
            tokens.train(args.seed, vocabulary).save(str(path))
    dist.barrier()
    return Tokenizer.from_file(str(path))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--shape", choices=SHAPES, default="nano")
    parser.add_argument("--from", dest="start", type=pathlib.Path, help="checkpoint folder whose weights are the first")
    parser.add_argument("--steps", type=int, default=12_000, help="steps of training in all")
    parser.add_argument("--until", type=int, help="stop after this step, to go on another time")
    parser.add_argument("--cool-down", type=int, default=2_000, help="last steps, in which the rate falls to nothing")
    parser.add_argument("--ramp", type=int, default=1_000, help="steps until questions get a reasoning step longer; 0: all at once")
    parser.add_argument("--talk", type=float, default=0.14, help="share of dialogues that are small talk")
    parser.add_argument("--books", type=pathlib.Path, help="folder of the prose, fetched if it is not there; without, no prose")
    parser.add_argument("--prose", type=float, default=0.15, help="share of tokens that are prose")
    parser.add_argument("--mean-steps", type=int, help="mean of the loop steps drawn (default: the shape's)")
    parser.add_argument("--compile", action="store_true", help="compile the layers: faster after some minutes")
    parser.add_argument("--batch-tokens", type=int, default=3072, help="tokens of a batch, all workers together")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--questions", type=int, default=24, help="of each kind and number of reasoning steps, when evaluating")
    parser.add_argument("--evaluate-every", type=int, default=500)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    # torchrun says who is who; without it there is one worker, which needs no port.
    alone = {} if "WORLD_SIZE" in os.environ else dict(store=dist.HashStore(), rank=0, world_size=1)
    dist.init_process_group("gloo", **alone)
    rank, workers = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)

    shape = SHAPES[args.shape]
    encoder = tokens.Encoder(get_tokenizer(args, shape.vocabulary, rank))
    if args.books and rank == 0:
        prose.fetch(args.books)
    dist.barrier()
    books = prose.Books(args.books, encoder.tokenizer) if args.books else None
    questions = held_out_questions(args.seed, args.questions, dialogues.LONGEST)[rank::workers]
    torch.manual_seed(args.seed)
    model = build(shape)
    if args.start:
        model.load_state_dict(stored(args.start))
    trainer = Trainer(model, args)
    checkpoint = args.run / "state.pt"
    start = trainer.restore(torch.load(checkpoint)) if checkpoint.exists() else 0
    for part in ("embed", "step", "coda") if args.compile else ():
        setattr(model, part, torch.compile(getattr(model, part), dynamic=True))

    until = args.steps if args.until is None else min(args.until, args.steps)
    began, losses = time.time(), []
    for step, parts in batches(args, encoder, books, start, workers):
        if step >= until:
            break
        losses.append(backpropagate(model, args, step, parts, rank))
        trainer.update(step)
        done = step + 1
        last, stop = done == args.steps, done == until
        if done % args.log_every == 0 or last:
            losses = [loss for loss in losses if not math.isnan(loss)]
            # A batch of nothing but prose has no answers.
            loss = round(sum(losses) / len(losses), 4) if losses else None
            line = dict(step=done, answer_loss=loss, seconds=round(time.time() - began), longest=longest(step, args.ramp))
            write(args, rank, line)
            losses = []
        if rank == 0 and (done % args.save_every == 0 or stop):
            save(trainer.state(done), checkpoint)
        if done % args.evaluate_every == 0 or last:
            trainer.show(trainer.mean)
            right = score(model, encoder, questions, depths=(1, 2, 4, 8, 16))
            trainer.show(trainer.weights)
            write(args, rank, dict(step=done, right=of_all_workers(right)))
        if stop:
            break
    dist.destroy_process_group()


def backpropagate(model, args, step, parts, rank):
    """Gradients of this worker's part of a batch; the mean loss of its answers."""
    ids, weight = parts[rank]
    total_weight = sum(float(weight[:, 1:].sum()) for _, weight in parts)
    shape, most = model.shape, longest(step, args.ramp)
    # Longer questions, deeper loops: the mean of the last stage is the model's.
    mean = max(1, (args.mean_steps or shape.mean_steps) - dialogues.LONGEST + most)
    depth = draw_steps(mean, generator(args.seed, step, "depth"))
    state = model.noise(ids.shape, generator(args.seed, step, "state", rank))
    wanted = weight[:, 1:] > 0
    logits = model(ids[:, :-1], state[:, :-1], depth, shape.backprop_steps, wanted).float()
    each = F.cross_entropy(logits, ids[:, 1:][wanted], reduction="none")
    weight = weight[:, 1:][wanted]
    ((each * weight).sum() / total_weight).backward()
    answers = each.detach()[weight == 1]
    return float(answers.mean()) if len(answers) else math.nan


def of_all_workers(right):
    """Counts summed: every worker has questions of every cell."""
    for table in right.values():
        for cell in table:
            counts = torch.tensor(table[cell])
            dist.all_reduce(counts)
            table[cell] = counts.tolist()
    return right


def write(args, rank, line):
    if rank == 0:
        print(json.dumps(line), flush=True)
        with (args.run / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()

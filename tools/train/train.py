#!/usr/bin/env python3
"""Trains a small recurrent-depth model on generated dialogues.

  torchrun --nproc-per-node 2 train.py RUN --steps 12000

RUN is a folder: the tokenizer, state.pt (everything needed to go on), log.jsonl. Called again it goes on where it was,
to the same weights as without the interruption. Workers are processes of one thread each that share every batch.
"""

import argparse
import json
import math
import os
import pathlib
import random
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer

import dialogues
import tokenizer as tokens
from evaluate import held_out_questions, score
from model import Huginn, Shape, to_bfloat16

POOL = 16  # steps whose dialogues are drawn together and sorted by length
QUESTION_WEIGHT = 0.1  # in the loss, next to 1 for answers
EMA = 0.998
WARM_UP = 100


def generator(*what):
    """Chance of its own for every use, so that nothing depends on what was drawn before."""
    return torch.Generator().manual_seed(random.Random(f"{what}").getrandbits(32))


def draw_steps(shape, generator):
    """How often the core is applied: Poisson around a log-normal rate."""
    sigma = 0.5
    rate = torch.exp(torch.randn(1, generator=generator) * sigma + math.log(shape.mean_steps) - sigma**2 / 2)
    return int(torch.poisson(rate, generator=generator)) + 1


def longest(step, ramp):
    """Easy questions first: a reasoning step more every `ramp` steps of training."""
    return min(dialogues.LONGEST, 1 + step // ramp)


def draw_dialogue(rng, most):
    kind = rng.choice(list(dialogues.KINDS))
    turns = dialogues.draw(rng, kind, rng.randint(1, most), rng.randint(1, 6), held_out=False).turns
    if rng.random() < 0.05:
        turns = (*dialogues.draw(rng, "talk", 0, 1, held_out=False).turns, *turns)
    return turns


def batches(args, encoder, first, workers):
    """From step `first` on, the batches of all workers: dialogues of about one length."""
    for pool in range(first // POOL, args.steps // POOL + 1):
        rng = random.Random(f"{args.seed} pool {pool}")
        wanted, drawn = POOL * args.batch_tokens, []
        while wanted > 0:
            some = encoder([draw_dialogue(rng, longest(pool * POOL, args.ramp)) for _ in range(64)])
            drawn += some
            wanted -= sum(len(dialogue[0]) for dialogue in some)
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
    """Tokens [dialogue, position] and the weight of each in the loss."""
    length = -(-max(len(ids) for ids, _ in dialogues) // 8) * 8
    ids = torch.full((len(dialogues), length), pad)
    weight = torch.zeros(ids.shape)
    for row, (tokens, is_answer) in enumerate(dialogues):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weight[row, : len(tokens)] = torch.where(torch.tensor(is_answer), 1.0, QUESTION_WEIGHT)
    return ids, weight


class Trainer:
    """The model multiplies in bf16; here are its weights in f32, their running mean and the optimisers."""

    def __init__(self, model, args):
        self.model, self.args = model, args
        self.weights = [p.detach().clone() for p in model.parameters()]
        self.mean = [w.clone() for w in self.weights]
        to_bfloat16(model)
        hidden = [w.dim() == 2 and "wte" not in name for (name, _), w in zip(model.named_parameters(), self.weights)]
        self.optimisers = [
            torch.optim.Muon(
                [w for w, is_hidden in zip(self.weights, hidden) if is_hidden],
                lr=args.rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(
                [w for w, is_hidden in zip(self.weights, hidden) if not is_hidden],
                lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0,
            ),
        ]  # fmt: skip

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
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.rate(step)
            optimiser.step()
        torch._foreach_lerp_(self.mean, self.weights, 1 - min(EMA, (step + 1) / (step + 10)))
        self.show(self.weights)

    @torch.no_grad()
    def show(self, weights):
        """Puts these weights into the model."""
        for parameter, weight in zip(self.model.parameters(), weights):
            parameter.copy_(weight)
            parameter.grad = None

    def state(self, step):
        names = [name for name, _ in self.model.named_parameters()]
        return {
            "step": step,
            "weights": dict(zip(names, self.weights)),
            "mean": dict(zip(names, self.mean)),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def restore(self, state):
        for ours, name in ((self.weights, "weights"), (self.mean, "mean")):
            for weight, saved in zip(ours, state[name].values()):
                weight.copy_(saved)
        for optimiser, saved in zip(self.optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)
        self.show(self.weights)
        return state["step"]


def save(state, path):
    """All of it or nothing."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def get_tokenizer(args, vocabulary, rank):
    path = args.run / "tokenizer.json"
    if rank == 0 and not path.exists():
        args.run.mkdir(parents=True, exist_ok=True)
        tokens.train(args.seed, vocabulary).save(str(path))
    dist.barrier()
    return Tokenizer.from_file(str(path))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=12_000, help="steps of training in all")
    parser.add_argument("--cool-down", type=int, default=2_000, help="last steps, in which the rate falls to nothing")
    parser.add_argument("--ramp", type=int, default=600, help="steps until questions get a reasoning step longer")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens of a batch, all workers together")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--evaluate-every", type=int, default=500)
    parser.add_argument("--save-every", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", "29500")
    dist.init_process_group("gloo", rank=int(os.environ.get("RANK", 0)), world_size=int(os.environ.get("WORLD_SIZE", 1)))
    rank, workers = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)

    shape = Shape()
    encoder = tokens.Encoder(get_tokenizer(args, shape.vocabulary, rank))
    questions = held_out_questions(args.seed, per_cell=24, longest=4)[rank::workers]
    torch.manual_seed(args.seed)
    model = Huginn(shape)
    trainer = Trainer(model, args)
    checkpoint = args.run / "state.pt"
    start = trainer.restore(torch.load(checkpoint)) if checkpoint.exists() else 0
    for part in ("embed", "step", "read_out"):
        setattr(model, part, torch.compile(getattr(model, part), dynamic=True))

    began, losses = time.time(), []
    for step, parts in batches(args, encoder, start, workers):
        if step == args.steps:
            break
        ids, weight = parts[rank]
        total_weight = sum(float(w[:, 1:].sum()) for _, w in parts)
        depth = draw_steps(shape, generator(args.seed, step, "depth"))
        state = model.noise(ids.shape, generator(args.seed, step, "state", rank))
        logits = model(ids, state, depth, shape.backprop_steps)
        each = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        loss = (each * weight[:, 1:].flatten()).sum() / total_weight
        loss.backward()
        trainer.update(step)

        answers = weight[:, 1:].flatten() == 1
        losses.append(float(each.detach()[answers].mean()))
        done = step + 1
        if done % 50 == 0 and rank == 0:
            line = dict(step=done, answer_loss=round(sum(losses) / len(losses), 4), longest=longest(step, args.ramp),
                        seconds=round(time.time() - began))  # fmt: skip
            write(args.run / "log.jsonl", line)
            losses = []
        if done % args.save_every == 0 or done == args.steps:
            if rank == 0:
                save(trainer.state(done), checkpoint)
        if done % args.evaluate_every == 0 or done == args.steps:
            trainer.show(trainer.mean)
            right = score(model, encoder, questions, depths=(1, 2, 4, 8, 16))
            trainer.show(trainer.weights)
            for table in right.values():
                for cell in sorted(table):
                    counts = torch.tensor(table[cell])
                    dist.all_reduce(counts)
                    table[cell] = counts.tolist()
            if rank == 0:
                write(args.run / "log.jsonl", dict(step=done, right=right))
    dist.destroy_process_group()


def write(path, line):
    print(json.dumps(line), flush=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()

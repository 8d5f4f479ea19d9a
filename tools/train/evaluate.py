"""Held-out questions, and how many of them a model answers at each depth."""

import random
from collections import defaultdict

import torch

import dialogues


def held_out_questions(seed, per_cell, longest):
    """Single turns never trained on: `per_cell` of each kind and number of reasoning steps."""
    rng = random.Random(f"{seed} held out")
    return [
        dialogues.draw(rng, kind, steps, 1, held_out=True).turns[0]
        for kind in dialogues.KINDS
        if kind != "talk"
        for steps in range(1, longest + 1)
        for _ in range(per_cell)
    ]


def score(model, encoder, questions, depths, batch=24):
    """{depth: {"kind steps": [right, asked]}}.

    An answer is right if every token of it, and the end of the turn, is the most likely one after the right ones
    before it: exactly when greedy decoding says it.
    """
    right = {depth: defaultdict(lambda: [0, 0]) for depth in depths}
    device = model.cos.device
    encoded = sorted(zip(encoder([[turn] for turn in questions]), questions), key=lambda pair: len(pair[0][0]))
    for i in range(0, len(encoded), batch):
        some = encoded[i : i + batch]
        length = max(len(ids) for (ids, _), _ in some)
        ids = torch.full((len(some), length), encoder.pad)
        for row, ((tokens, _), _) in enumerate(some):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        for depth, logits in model.at_depths(ids.to(device), depths):
            best = logits.argmax(-1).cpu()
            for row, ((_, is_answer), turn) in enumerate(some):
                at = torch.tensor(is_answer).nonzero().squeeze(1)
                cell = right[depth][f"{turn.kind} {turn.steps}"]
                cell[0] += bool((best[row, at - 1] == ids[row, at]).all())
                cell[1] += 1
    return {depth: dict(sorted(table.items())) for depth, table in right.items()}


def answer(model, encoder, question, depth, longest=40, guess=""):
    """What the model says, greedily, to a question alone. As much of the guess as it says is had at once."""
    ids = [encoder.begin, *encoder.user, *encoder.tokenizer.encode(question).ids, encoder.end_turn, *encoder.assistant]
    said = encoder.tokenizer.encode(guess).ids[: longest - 1]
    while len(said) < longest:
        ((_, logits),) = model.at_depths(torch.tensor([ids + said]), (depth,))
        best = logits[0, len(ids) - 1 :].argmax(-1).tolist()
        agreed = next((i for i, token in enumerate(said) if token != best[i]), len(said))
        said = said[:agreed]
        if best[agreed] in encoder.stops:
            break
        said.append(best[agreed])
    return encoder.tokenizer.decode(said)

"""Short dialogues whose answers need a known number of reasoning steps, and small talk.

Everything is drawn from a `random.Random`. A *scene* is a set of facts; its first turn tells them and asks a question,
later turns ask more about the same facts. Whether a scene is for training or held out is decided by a hash of its
facts alone, so that no phrasing, order or question of a held-out scene is ever trained on.
"""

import hashlib
import random
from dataclasses import dataclass

from smalltalk import small_talk

COLOURS = "Red Blue Green Gold Pink Black White Gray Brown Teal Violet Amber".split()
TOWNS = "Ash Bray Cole Dale Elm Firth Glen Holt Ives Kirk Lund Moor".split()
NAMES = "Ann Bob Eva Tom Mia Leo Sue Max Zoe Sam Ruby Finn Nora Jack Ivy Hugo".split()
THINGS = "coins apples books stones cards eggs shells pens".split()
LETTERS = "a b c d x y z k m n".split()
LONGEST = 6  # reasoning steps


@dataclass(frozen=True)
class Turn:
    question: str
    answer: str
    kind: str
    steps: int


@dataclass(frozen=True)
class Scene:
    """`facts` identify it: a text for each set of facts that is told."""

    facts: tuple
    turns: tuple


def is_held_out(facts):
    """A tenth is."""
    return hashlib.sha256(facts.encode()).digest()[0] < 26


def plural(n, word):
    return f"{n} {word}" if n != 1 else f"1 {word[:-1]}"


def shuffled(rng, items):
    return rng.sample(items, len(items))


def join(sentences):
    return " ".join(sentences)


def scene(kind, facts, told, asked):
    """`asked` is [(question, answer, steps)]; what is told stands in front of the first.

    Without `told`, each question tells its own facts, and `facts` has them one by one.
    """
    turns = [Turn(question, answer, kind, steps) for question, answer, steps in asked]
    first = turns[0]
    turns[0] = Turn(join([told, first.question]).strip(), first.answer, kind, first.steps)
    facts = [facts] if told else facts
    return Scene(tuple(f"{kind}: {fact}" for fact in facts), tuple(turns))


# --- Paths: every place leads to one other place.

PATH_FACTS = ("{a} leads to {b}.", "From {a} go to {b}.", "{a} is followed by {b}.")
PATH_QUESTIONS = (
    "Start at {a} and take {n}. Where are you?",
    "Where are you {n} after {a}?",
    "You are at {a} and go on by {n}. Where are you then?",
)
PATH_AGAIN = ("And {n} from {a}?", "Start at {a} and take {n}.", "And {n} after {a}?")


def path(rng, steps, turns):
    count = rng.randint(max(steps + 1, 3), max(steps + 2, 5))
    places = rng.sample(rng.choice((COLOURS, TOWNS)), count)
    told = rng.choice(PATH_FACTS)
    facts = [told.format(a=a, b=b) for a, b in zip(places, places[1:])]

    def ask(frames, n):
        start = rng.randrange(count - n)
        return rng.choice(frames).format(a=places[start], n=plural(n, "steps")), f"{places[start + n]}.", n

    asked = [ask(PATH_QUESTIONS, steps)] + [ask(PATH_AGAIN, rng.randint(1, steps)) for _ in range(turns - 1)]
    return scene("path", places, join(shuffled(rng, facts)), asked)


# --- Lookups: people have a friend, a boss, a neighbour; the question names a chain of them.

RELATIONS = "friend boss twin aunt".split()
LOOKUP_FACTS = ("{a}'s {r} is {b}.", "The {r} of {a} is {b}.")
LOOKUP_QUESTIONS = ("Who is {who}?", "Tell me who {who} is.", "What is the name of {who}?")
LOOKUP_AGAIN = ("And {who}?", "Who is {who}?")


def lookup(rng, steps, turns):
    people = rng.sample(NAMES, rng.randint(steps + 1, steps + 2))
    links = [(a, rng.choice(RELATIONS), b) for a, b in zip(people, people[1:])]
    # Another relation of somebody in the chain leads elsewhere: the relation matters.
    for _ in range(2):
        a, r, _ = rng.choice(links)
        other = rng.choice([o for o in RELATIONS if o != r])
        if all((a, other) != link[:2] for link in links):
            links.append((a, other, rng.choice([p for p in people if p != a])))
    table = {(a, r): b for a, r, b in links}
    told = rng.choice(LOOKUP_FACTS)
    facts = [told.format(a=a, r=r, b=b) for a, r, b in links]

    def ask(frames, n):
        start = rng.randrange(len(people) - n)
        who = place = people[start]
        for i in range(n):
            relation = links[start + i][1]
            who, place = f"{who}'s {relation}", table[place, relation]
        return rng.choice(frames).format(who=who), f"{place}.", n

    asked = [ask(LOOKUP_QUESTIONS, steps)] + [ask(LOOKUP_AGAIN, rng.randint(1, steps)) for _ in range(turns - 1)]
    return scene("lookup", sorted(links), join(shuffled(rng, facts)), asked)


# --- Sums: a running total of single digits.


def change(rng, total):
    """A step of one digit that keeps the total within 0 to 9."""
    change = rng.choice([d for d in range(-9, 10) if d and 0 <= total + d <= 9])
    return change, total + change


SUM_QUESTIONS = ("What is {sum}?", "How much is {sum}?", "Work out {sum}.", "{sum} = ?")
STORY_QUESTIONS = ("How many {things} does {name} have now?", "How many {things} are left with {name}?")


def sums(rng, steps, turns):
    asked, facts = [], []
    for turn in range(turns):
        n = steps if turn == 0 else rng.randint(1, steps)
        first = total = rng.randint(0, 9)
        changes = []
        for _ in range(n):
            d, total = change(rng, total)
            changes.append(d)
        if rng.random() < 0.5:
            terms = "".join(f" {'+' if d > 0 else '-'} {abs(d)}" for d in changes)
            asked.append((rng.choice(SUM_QUESTIONS).format(sum=f"{first}{terms}"), f"{total}.", n))
            facts.append((first, changes))
            continue
        name, things = rng.choice(NAMES), rng.choice(THINGS)
        told = [f"{name} has {plural(first, things)}."]
        told += [f"{name} {'gets' if d > 0 else 'loses'} {abs(d)}." for d in changes]
        question = rng.choice(STORY_QUESTIONS).format(things=things, name=name)
        asked.append((join(told + [question]), f"{plural(total, things)}.", n))
        facts.append((first, changes, name, things))
    return scene("sum", facts, "", asked)


# --- Chains: how many has somebody, told relative to somebody else.

CHAIN_QUESTIONS = ("How many {things} does {a} have?", "Tell me how many {things} {a} has.")
CHAIN_AGAIN = ("And {a}?", "How many does {a} have?")


def chain(rng, steps, turns):
    people = rng.sample(NAMES, rng.randint(steps + 1, steps + 2))
    things = rng.choice(THINGS)
    first = total = rng.randint(0, 9)
    totals, facts = [first], [f"{people[0]} has {plural(first, things)}."]
    for a, b in zip(people, people[1:]):
        d, total = change(rng, total)
        totals.append(total)
        facts.append(f"{b} has {abs(d)} {'more' if d > 0 else 'fewer'} than {a}.")

    def ask(frames, n):
        return rng.choice(frames).format(things=things, a=people[n]), f"{plural(totals[n], things)}.", n

    asked = [ask(CHAIN_QUESTIONS, steps)] + [ask(CHAIN_AGAIN, rng.randint(0, steps)) for _ in range(turns - 1)]
    return scene("chain", (things, people, totals), join(shuffled(rng, facts)), asked)


# --- Programs: assignments, run by hand.

PROGRAM_QUESTIONS = ("What is {a}?", "Run it. What is {a}?", "What is the value of {a}?")
PROGRAM_AGAIN = ("And {a}?", "What is {a}?")


def program(rng, steps, turns):
    names = rng.sample(LETTERS, rng.randint(steps + 1, min(steps + 2, len(LETTERS))))
    first = total = rng.randint(0, 9)
    values, lines = [first], [f"{names[0]} = {first}"]
    for a, b in zip(names, names[1:]):
        d, total = change(rng, total)
        values.append(total)
        lines.append(f"{b} = {a} {'+' if d > 0 else '-'} {abs(d)}")

    def ask(frames, n):
        return rng.choice(frames).format(a=names[n]), f"{values[n]}.", n

    asked = [ask(PROGRAM_QUESTIONS, steps)] + [ask(PROGRAM_AGAIN, rng.randint(0, steps)) for _ in range(turns - 1)]
    return scene("program", lines, "; ".join(lines) + ".", asked)


# --- Sorting: a list of digits. Sorting n of them counts as n - 1 steps.

SORT_QUESTIONS = ("Sort {list}.", "Put {list} in order.", "Sort these numbers: {list}.")


def sort(rng, steps, turns):
    asked, facts = [], []
    for turn in range(turns):
        n = steps if turn == 0 else rng.randint(1, steps)
        digits = rng.sample(range(10), n + 1)
        down = rng.random() < 0.25
        listed = " ".join(map(str, digits))
        question = rng.choice(SORT_QUESTIONS).format(list=listed)
        if down:
            question = question[:-1] + ", largest first."
        answer = " ".join(map(str, sorted(digits, reverse=down)))
        asked.append((question, f"{answer}.", n))
        facts.append(digits)
    return scene("sort", facts, "", asked)


def talk(rng, steps, turns):
    asked = []
    for _ in range(turns):
        name = rng.choice(NAMES)
        asked.append((*small_talk(rng, name), 0))
    return scene("talk", [question for question, _, _ in asked], "", asked)


KINDS = dict(talk=talk, path=path, lookup=lookup, sum=sums, chain=chain, program=program, sort=sort)


def draw(rng, kind, steps, turns, held_out):
    """A scene of a kind from the one side of the split or the other."""
    while True:
        found = KINDS[kind](rng, steps, turns)
        if all(is_held_out(facts) == held_out for facts in found.facts):
            return found

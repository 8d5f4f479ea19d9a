"""The tokenizer, trained on the dialogues, and the chat template written in its tokens."""

import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import dialogues

BEGIN_TEXT, END_TEXT, BEGIN_HEADER, END_HEADER, END_TURN, PAD = SPECIAL = (
    "<|begin_text|>",
    "<|end_text|>",
    "<|begin_header|>",
    "<|end_header|>",
    "<|end_turn|>",
    "<|pad|>",
)
USER, ASSISTANT = "user", "Huginn"
# Words with the space before them, single digits, runs of signs.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% if messages and messages[0]['role'] != 'system' %}{{ '<|begin_text|>' }}{% endif %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] == 'system' %}{{ '<|begin_text|>' }}{% endif %}"
    "{{ '<|begin_header|>' + ('Huginn' if message['role'] == 'assistant' else message['role'])"
    " + '<|end_header|>\n\n' + message['content'] | trim + '<|end_turn|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|begin_header|>Huginn<|end_header|>\n\n' }}{% endif %}"
)


def header(role):
    return f"{BEGIN_HEADER}{role}{END_HEADER}\n\n"


def written(turns):
    """A dialogue as the template writes it."""
    return BEGIN_TEXT + "".join(
        f"{header(USER)}{turn.question}{END_TURN}{header(ASSISTANT)}{turn.answer}{END_TURN}" for turn in turns
    )


def train(seed, vocabulary, scenes=30_000):
    rng = random.Random(f"{seed} tokenizer")
    kinds = list(dialogues.KINDS)

    def texts():
        yield from (f"{USER}\n\n", f"{ASSISTANT}\n\n", "system\n\n")
        for _ in range(scenes):
            steps = rng.randint(1, dialogues.LONGEST)
            for turn in dialogues.draw(rng, rng.choice(kinds), steps, 2, held_out=False).turns:
                yield turn.question
                yield turn.answer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


class Encoder:
    """Dialogues to tokens, with a mark on those that the assistant says."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.pad = tokenizer.token_to_id(PAD)
        self.begin, self.end_turn = (tokenizer.token_to_id(token) for token in (BEGIN_TEXT, END_TURN))
        # What generation_config.json names too.
        self.stops = {tokenizer.token_to_id(token) for token in (END_TEXT, END_TURN)}
        self.user, self.assistant = (tokenizer.encode(header(role)).ids for role in (USER, ASSISTANT))

    def __call__(self, dialogues_turns):
        """[(tokens, is_answer)] of each dialogue."""
        texts = [text for turns in dialogues_turns for turn in turns for text in (turn.question, turn.answer)]
        encoded = iter(self.tokenizer.encode_batch(texts))
        return [self.dialogue([(next(encoded).ids, next(encoded).ids) for _ in turns]) for turns in dialogues_turns]

    def dialogue(self, turns):
        tokens, is_answer = [self.begin], [False]
        for question, answer in turns:
            told = [*self.user, *question, self.end_turn, *self.assistant]
            said = [*answer, self.end_turn]
            tokens += told + said
            is_answer += [False] * len(told) + [True] * len(said)
        return tokens, is_answer

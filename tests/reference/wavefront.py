#!/usr/bin/env python3
"""What the public diffusion-forcing sampler writes, and what it takes: tests/data/huginn-hops/wavefront.json.

Needs torch, safetensors, transformers 4.54, tokenizers and a checkout of seal-rg/recurrent-pretraining, of which only
recpre/raven_modeling_minimal.py is run, greedily in float32 on a CPU:

  wavefront.py CHECKOUT FOLDER [--check]   write FOLDER/wavefront.json, or compare with it

The sampler is `generate_diffusion_style` as it is. What surrounds it is given: initial states and noise are zeros or those of
src/random.rs, the cache keeps keys and values of so many loop steps whatever the model's layers (the reference has the shape
2/4/2 of the released model written into it), and the threshold takes notes.
"""

import argparse
import json
import pathlib

import huginn
import numpy as np
import torch
from tokenizers import Tokenizer

# The reference and its cache, once `main` knows where it is.
ref = OWN_CACHE = None

U64 = np.uint64
GAMMA = U64(0x9E37_79B9_7F4A_7C15)
# The streams of src/model/init.rs and src/generate/wavefront.
STATE_STREAM, NOISE_STREAM = 0x7374_6174_6530, int.from_bytes(b"wavenois", "big")


def mix(z):
    z = (z ^ (z >> U64(30))) * U64(0xBF58_476D_1CE4_E5B9)
    z = (z ^ (z >> U64(27))) * U64(0x94D0_49BB_1331_11EB)
    return z ^ (z >> U64(31))


def bits(seed, stream, counter):
    """`random::bits` for arrays of numbers, all u64."""
    with np.errstate(over="ignore"):
        seed, stream, counter = (np.asarray(x, dtype=U64) for x in (seed, stream, counter))
        start = mix(mix(seed + GAMMA) ^ (stream + GAMMA))
        return mix(start + (counter + U64(1)) * GAMMA)


def uniform(seed, stream, counter):
    return (bits(seed, stream, counter) >> U64(11)).astype(np.float64) / 2.0**53


def standard_normal(seed, stream, counter):
    radius = np.sqrt(-2.0 * np.log(1.0 - uniform(seed, stream, 2 * counter)))
    return radius * np.cos(2.0 * np.pi * uniform(seed, stream, 2 * counter + 1))


def truncated_normal(seed, stream, counter, bound=3.0):
    key = bits(seed, stream, counter)
    draw = standard_normal(key, stream, 0)
    attempt = 0
    while (np.abs(draw) > bound).any():
        attempt += 1
        draw = np.where(np.abs(draw) > bound, standard_normal(key, stream, attempt), draw)
    return draw


class States:
    """`initialize_state` with numbers that depend on seed, position and diffusion step; zeros without a seed.

    The sampler calls it for the prompt, for its first row, and then in turn for noise and for the new row of every step.
    """

    def __init__(self, seed, config, prompt):
        self.seed, self.width, self.prompt = seed, config.n_embd, prompt
        self.std = config.init_values["std"] * config.n_embd**0.5
        self.step, self.first, self.rows, self.noisy = -1, 0, 0, False

    def begin_step(self, positions):
        self.step += 1
        self.first, self.rows, self.noisy = int(positions[0]), len(positions), False

    def of(self, seed, positions):
        counter = np.asarray(positions, dtype=U64)[:, None] * U64(self.width) + np.arange(self.width, dtype=U64)
        normal = truncated_normal(seed, STATE_STREAM, counter)
        return torch.from_numpy((normal * self.std).astype(np.float32))[None]

    def __call__(self, like, scale):
        count = like.shape[1]
        if self.seed is None:
            return torch.zeros(1, count, self.width)
        if self.step < 0:
            return self.of(self.seed, range(count) if count == self.prompt else [self.prompt])
        if self.rows == count and not self.noisy and like.dtype == torch.float32:
            self.noisy = True
            seed = bits(self.seed, NOISE_STREAM, self.step)
            return self.of(seed, range(self.first, self.first + count))
        return self.of(self.seed, [self.first + self.rows])


def cache_of(config, slots):
    """The reference's cache with the strategy latest-m4-compress-s(layers * slots), for any number of layers: loop step j writes
    slot j % slots, over what was there."""
    prelude, core = config.n_layers_in_prelude, config.n_layers_in_recurrent_block

    class Shared(OWN_CACHE):
        def update(self, keys, values, step_idx_tensor, lookup_strategy=None):
            step = int(step_idx_tensor)
            if step == 0:
                self._seen_tokens += keys.shape[-2]
            if step >= prelude:
                step = (step - prelude) % (core * slots) + prelude
            for cache, new in ((self.key_cache, keys), (self.value_cache, values)):
                row = cache.setdefault(step, {})
                for i, entry in enumerate(new.unbind(dim=-2)):
                    row[self._seen_tokens - new.shape[-2] + i] = entry
            return tuple(
                torch.stack([cache[step][p] for p in range(self._seen_tokens)], dim=-2)
                for cache in (self.key_cache, self.value_cache)
            )

    return Shared


class Threshold:
    """What the sampler compares its criterion with. A tensor leaves the comparison to an object that it does not know."""

    def __init__(self, value):
        self.value, self.seen = value, []

    def __gt__(self, criterion):
        self.seen.append([float(x) for x in criterion.flatten()])
        return criterion < self.value


@torch.no_grad()
def sample(model, prompt, case, cache=None):
    """What the sampler makes of a prompt: tokens, counts, and how near anything was to going otherwise."""
    states = States(case["seed"], model.config, len(prompt))
    threshold = Threshold(case["threshold"])
    flights, gaps = [], []
    embed, predict = type(model).embed_inputs, type(model).predict_from_latents

    def watched_embed(input_ids, **kwargs):
        # Only the calls within the loop say where they are.
        if kwargs.get("cache_position") is not None:
            states.begin_step(kwargs["cache_position"])
            flights.append((int(kwargs["cache_position"][0]), input_ids.shape[1]))
        return embed(model, input_ids, **kwargs)

    def watched_predict(latents, **kwargs):
        output = predict(model, latents, **kwargs)
        best = output.logits[0].topk(2).values
        gaps.append(float((best[:, 0] - best[:, 1]).min()))
        return output

    model.initialize_state, model.embed_inputs, model.predict_from_latents = states, watched_embed, watched_predict
    ref.HuginnDynamicCache = cache or cache_of(model.config, case["slots"])
    out = model.generate_diffusion_style(
        torch.tensor([prompt]),
        ref.GenerationConfig(do_sample=False, eos_token_id=None, return_dict_in_generate=True),
        max_new_tokens=case["most_tokens"],
        num_steps=case["prompt_steps"],
        inner_recurrence=case["inner_steps"],
        ema_embeds=case["ema"],
        state_noise_mixing=case["noise"],
        freeze_strategy=case["freeze"],
        exit_t=threshold,
        max_wavefront=case["most_rows"],
    )
    ref.HuginnDynamicCache = OWN_CACHE
    scores = out.scores
    tokens = out.sequences[0, len(prompt) :].tolist()
    assert len(flights) == scores["diffusion_steps"]
    # The oldest row in flight is the youngest token that is frozen.
    frozen = [first + 1 - len(prompt) for first, _ in flights[1:]] + [len(tokens)]
    margin = min(abs(x / threshold.value - 1) for row in threshold.seen for x in row)
    return {
        "tokens": tokens,
        "diffusion_steps": scores["diffusion_steps"],
        "core_passes": scores["num_core_forward_passes"] - 1,
        "row_steps": scores["num_tokens_forward"] - len(prompt),
        "standing": scores["num_standing_waves"],
        "rows": [rows for _, rows in flights],
        "frozen": frozen,
    }, margin, min(gaps)


def check_cache():
    """On the shape 2/4/2 the cache here is the reference's own."""
    config = huginn.make_config(
        dict(
            n_embd=32, n_heads=2, n_layers=8, intermediate_size=32, vocab_size=64, block_size=64,
            n_layers_in_prelude=2, n_layers_in_recurrent_block=4, n_layers_in_coda=2,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = huginn.make_model(config, huginn.random_weights(ref.RavenForCausalLM(config), generator))
    prompt = torch.randint(64, (9,), generator=generator).tolist()
    for slots in (1, 4):

        class Own(OWN_CACHE):
            def __init__(self, lookup_strategy):
                super().__init__(f"latest-m4-compress-s{4 * slots}")

        case = DEFAULTS | dict(seed=3, threshold=0.7, slots=slots, most_rows=8, most_tokens=20)
        (ours, _, _), (theirs, _, _) = (sample(model, prompt, case, cache) for cache in (None, Own))
        assert ours == theirs and max(ours["frozen"]) >= 20, (ours, theirs)


DEFAULTS = dict(
    seed=None, prompt_steps=8, inner_steps=4, ema=0.1, noise=0.5, freeze="latent-diff", threshold=0.03, most_rows=128,
    slots=1, most_tokens=32,
)  # fmt: skip
CASES = (
    dict(ema=0.0, noise=0.0),
    dict(),
    dict(seed=7),
    dict(seed=7, most_rows=4),
    dict(seed=8, slots=4),
    dict(noise=0.0, freeze="latent-acceleration-1"),
    dict(seed=9, freeze="latent-acceleration-1", threshold=0.05),
    dict(noise=0.0, freeze="latent-acceleration-2"),
    dict(seed=10, freeze="latent-acceleration-2", threshold=0.05),
    dict(seed=11, most_rows=2, inner_steps=8, ema=0.0),
    dict(seed=12, inner_steps=1, noise=0.1, threshold=0.1),
)
QUESTIONS = (
    "<|begin_text|><|begin_header|>user<|end_header|>\n\nGold leads to Red. Red leads to Black. Start at Gold and take 1 step."
    " Where are you?<|end_turn|><|begin_header|>Huginn<|end_header|>\n\n",
    "<|begin_text|>The wind",
)


def main():
    global ref, OWN_CACHE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ref = huginn.ref = huginn.import_reference(args.checkout)
    OWN_CACHE = ref.HuginnDynamicCache
    check_cache()
    model = huginn.load(args.folder)
    tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    cases = []
    for values in CASES:
        case = DEFAULTS | values
        for text in QUESTIONS:
            prompt = tokenizer.encode(text, add_special_tokens=False).ids
            result, margin, gap = sample(model, prompt, case)
            taken = f"{len(result['tokens'])} tokens in {result['diffusion_steps']} steps"
            print(f"{values}: {taken}, nearest criterion {margin:.1e} off, least gap {gap:.1e}")
            # Nothing to be decided by rounding.
            assert margin > 2e-4 and gap > 2e-3
            cases.append({"prompt": prompt, **case, **result})
    lines = ",\n".join(
        "  {" + ",\n   ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in case.items()) + "}" for case in cases
    )
    about = (
        "generate_diffusion_style of the reference, per prompt and setting: tokens, counts, and after each diffusion step "
        "the rows that were in flight and the tokens that were frozen. Without a seed, states and noise are zeros."
    )
    text = f'{{"about": {json.dumps(about)},\n "cases": [\n{lines}\n]}}\n'
    path = args.folder / "wavefront.json"
    if args.check:
        assert path.read_text() == text
    else:
        path.write_text(text)


if __name__ == "__main__":
    main()

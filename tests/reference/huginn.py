#!/usr/bin/env python3
"""What the public reference implementation of Huginn computes, for tests/data/.

Needs torch, safetensors, transformers 4.54 and a checkout of seal-rg/recurrent-pretraining, of which only
recpre/raven_modeling_minimal.py is run, in float32 on a CPU:

  huginn.py CHECKOUT check FOLDER...  compute each folder's golden.safetensors again and compare
  huginn.py CHECKOUT shapes OUT       make tiny random checkpoints of several shapes, with goldens
  huginn.py CHECKOUT exits FOLDER     run a golden's tokens one by one under exit rules: FOLDER/exits.json
  huginn.py CHECKOUT statistics       print what the exit evaluators make of a few numbers

A golden holds tokens i32 [T], init_state f32 [T,D], prelude f32 [T,D], latents f32 [R,T,D] (before ln_f, after
each step) and logits f32 [R,T,V], row k of which is a run of k+1 steps: the keys of its coda are of that step.
"""

import argparse
import importlib
import inspect
import json
import pathlib
import sys
import types

import torch
from safetensors.torch import load_file, save_file
from tiny import relative

# The reference, once `main` knows where it is.
ref = None


def import_reference(checkout):
    """Imports the model alone: the package's own __init__ wants everything that training needs."""
    package = types.ModuleType("recpre")
    package.__path__ = [str(checkout / "recpre")]
    sys.modules["recpre"] = package
    reference = importlib.import_module("recpre.raven_modeling_minimal")
    # transformers 4.54 made these properties without setters, which the reference's cache then assigns to.
    reference.HuginnDynamicCache.key_cache = reference.HuginnDynamicCache.value_cache = None
    return reference


def make_config(values):
    """A RavenConfig from a config.json, derived and extra values included."""
    known = inspect.signature(ref.RavenConfig.__init__).parameters
    config = ref.RavenConfig(**{k: v for k, v in values.items() if k in known})
    for key in ("padded_vocab_size", "init_values", "tie_word_embeddings"):
        if key in values:
            setattr(config, key, values[key])
    return config


def make_model(config, weights):
    """Eager attention over exactly these weights; anything missing or unexpected is an error."""
    torch.manual_seed(0)
    model = ref.RavenForCausalLM(config).float().eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    allowed = {"freqs_cis"} | ({"lm_head.weight"} if config.tie_embeddings else set())
    assert set(missing) <= allowed and not unexpected, (missing, unexpected)
    if config.tie_embeddings:
        model.tie_weights()
    return model


def load(folder):
    config = make_config(json.loads((folder / "config.json").read_text()))
    return make_model(config, load_file(folder / "model.safetensors"))


@torch.no_grad()
def run(model, tokens, init_state, steps):
    """The tensors of a golden, every token in one chunk."""
    prelude, block_idx = model.embed_inputs(tokens.long()[None])
    latents, logits = [], []
    state = init_state[None]
    for step in range(steps):
        state, block_idx, _ = model.iterate_one_step(prelude, state, block_idx=block_idx, current_step=step)
        latents.append(state[0])
        logits.append(model.predict_from_latents(state).logits[0])
    # A whole forward pass of the last depth says the same.
    whole = model(tokens.long()[None], input_states=init_state[None], num_steps=torch.tensor([steps])).logits[0]
    assert torch.allclose(whole, logits[-1], rtol=1e-5, atol=1e-5)
    return {
        "tokens": tokens.int(),
        "init_state": init_state,
        "prelude": prelude[0],
        "latents": torch.stack(latents),
        "logits": torch.stack(logits),
    }


def check(folders):
    for folder in folders:
        golden = load_file(folder / "golden.safetensors")
        found = run(load(folder), golden["tokens"], golden["init_state"], golden["latents"].shape[0])
        errors = {name: relative(found[name], golden[name]) for name in ("prelude", "latents", "logits")}
        print(folder, ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
        assert max(errors.values()) < 1e-5


# Chosen to differ from the usual golden (1/2/1 layers, heads of 32, tied) and from each other, and to be
# small: depth before width, a vocabulary that is read whole.
SHAPES = {
    # More of everything, so that each stack's blocks must be told apart.
    "deep": dict(n_embd=96, n_heads=2, intermediate_size=32, layers=(2, 3, 2), vocab_size=128),
    # A head of its own.
    "untied": dict(
        n_embd=64, n_heads=2, intermediate_size=96, layers=(1, 1, 1), vocab_size=128, tie_embeddings=False
    ),
    # The tied head stored a second time, an adapter with bias, no qk_bias, and a table with unused rows.
    "tied-twice": dict(
        n_embd=64, n_heads=4, intermediate_size=32, layers=(1, 4, 1), vocab_size=101, bias=True, qk_bias=False
    ),
    # One wide head and rows that are no multiple of 32; another RoPE base and epsilon; no freqs_cis.
    "wide-head": dict(
        n_embd=80, n_heads=1, intermediate_size=48, layers=(1, 2, 3), vocab_size=128, rope_base=10000, norm_eps=1e-5
    ),
}
TOKENS, STEPS, TABLE_ROWS = 8, 3, 128


def random_weights(model, generator):
    """Weights that keep activations near 1 and leave no parameter at a value that hides it."""
    weights = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name == "freqs_cis":
            weights[name] = tensor
        elif "norm" in name or "ln_f" in name:
            weights[name] = 1 + 0.2 * noise
        elif "bias" in name:
            weights[name] = 0.3 * noise
        elif name in ("transformer.wte.weight", "lm_head.weight"):
            weights[name] = 0.05 * noise
        else:
            weights[name] = noise / tensor.shape[1] ** 0.5
    return weights


def shapes(out):
    for seed, (name, values) in enumerate(SHAPES.items()):
        values = dict(values)
        prelude, core, coda = values.pop("layers")
        config = make_config(
            values
            | dict(
                n_layers=prelude + core + coda,
                n_layers_in_prelude=prelude,
                n_layers_in_recurrent_block=core,
                n_layers_in_coda=coda,
                mean_recurrence=STEPS,
                block_size=64,
                padding_multiple=64,
                padded_vocab_size=TABLE_ROWS,
                torch_dtype="float32",
            )
        )
        config.architectures = ["RavenForCausalLM"]
        generator = torch.Generator().manual_seed(seed)
        weights = random_weights(ref.RavenForCausalLM(config), generator)
        if config.tie_embeddings:
            weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
        model = make_model(config, weights)
        if name in ("deep", "wide-head"):
            del weights["lm_head.weight"]
        if name == "wide-head":
            del weights["freqs_cis"]

        tokens = torch.randint(config.vocab_size, (TOKENS,), generator=generator)
        std = config.init_values["std"]
        noise = torch.randn(TOKENS, config.n_embd, generator=generator).clamp(-3, 3)
        golden = run(model, tokens, noise * std * config.n_embd**0.5, STEPS)

        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(config.to_json_string(use_diff=False))
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})
        save_file({k: v.contiguous() for k, v in golden.items()}, folder / "golden.safetensors")
    check([out / name for name in SHAPES])


def latest_cache(config):
    """The reference's cache with its strategy `latest-m4` for any number of layers.

    A step that a token never reached finds the token's deepest earlier step of the same core layer. The
    reference has the shape 2/4/2 of the released model written into that search.
    """
    prelude, core = config.n_layers_in_prelude, config.n_layers_in_recurrent_block

    class Latest(ref.HuginnDynamicCache):
        def update(self, keys, values, step_idx_tensor, lookup_strategy=None):
            step = int(step_idx_tensor)
            if step == 0:
                self._seen_tokens += keys.shape[-2]
            for cache, new in ((self.key_cache, keys), (self.value_cache, values)):
                row = cache.setdefault(step, {})
                for i, entry in enumerate(new.unbind(dim=-2)):
                    row[self._seen_tokens - new.shape[-2] + i] = entry

            def deepest(cache, position):
                if step < prelude:
                    return cache[step][position]
                same_layer = range(step, prelude - 1, -core)
                return next(cache[s][position] for s in same_layer if position in cache[s])

            return tuple(
                torch.stack([deepest(cache, p) for p in range(self._seen_tokens)], dim=-2)
                for cache in (self.key_cache, self.value_cache)
            )

    return Latest()


def acceleration_evaluator(normalised, threshold):
    """The criterion `latent-acceleration-1` of the reference's sampler as an exit evaluator.

    It has no statistic at the first step, where the sampler takes the difference before it as zero.
    """

    class Acceleration(ref.PerIterationExitEvaluator):
        def init(self, latents):
            self.previous, self.delta = latents.clone(), None

        def check(self, model, latents, aux_inputs):
            delta = latents - self.previous
            value = torch.full((1,), float("nan"))
            if self.delta is not None:
                value = (delta - self.delta).norm(dim=-1).mean(dim=-1)
                if normalised == "steps":
                    value = value / (delta.norm(dim=-1) + self.delta.norm(dim=-1)).mean(dim=-1)
                elif normalised:
                    value = value / latents.norm(dim=-1).mean(dim=-1)
            self.previous, self.delta = latents.clone(), delta
            return value < threshold, None, value

    return Acceleration()


EVALUATORS = {
    "acceleration": lambda model, threshold: acceleration_evaluator(True, threshold),
    "acceleration-raw": lambda model, threshold: acceleration_evaluator(False, threshold),
    "step-norm": lambda model, threshold: ref.LatentDiffExitEvaluator(threshold),
    "acceleration-step": lambda model, threshold: acceleration_evaluator("steps", threshold),
    "cosine": lambda model, threshold: ref.CosineExitEvaluator(threshold),
    "kl": lambda model, threshold: ref.KLExitEvaluator(model, threshold),
    "min-p-kl": lambda model, threshold: ref.MinKLExitEvaluator(model, threshold),
    "entropy": lambda model, threshold: ref.EntropyDiffExitEvaluator(threshold),
    # One hit of the reference is so many agreements in a row; here it is one agreement, and hits count them.
    "argmax": lambda model, threshold: ref.ArgmaxStabilityExitEvaluator(1),
}
# Those that see read-outs.
READOUT = ("kl", "min-p-kl", "entropy", "argmax")


def watched(evaluator, hits, min_steps, values):
    """The evaluator, its statistics written down.

    It is asked from step min_steps + 1 on, as in generate_with_adaptive_compute, with one difference: there,
    the first check compares with what the evaluator began with, since it was shown nothing since, and here
    an evaluator of latents is shown every step. The number of consecutive checks that must agree is this
    project's; the reference's evaluators know one hit.
    """
    readout = (ref.KLExitEvaluator, ref.MinKLExitEvaluator, ref.EntropyDiffExitEvaluator, ref.ArgmaxStabilityExitEvaluator)
    shown_early = not isinstance(evaluator, readout)

    class Watched(ref.PerIterationExitEvaluator):
        def init(self, latents):
            self.step, self.run = -1, 0
            evaluator.init(latents)
            values.append([])

        def check(self, model, latents, aux_inputs):
            self.step += 1
            if self.step < min_steps:
                if shown_early:
                    evaluator.check(model, latents, aux_inputs)
                values[-1].append(None)
                return torch.tensor([False]), None, None
            hit, outputs, value = evaluator.check(model, latents, aux_inputs)
            values[-1].append(None if value.isnan().any() else float(value.item()))
            self.run = self.run + 1 if hit.all() else 0
            return torch.tensor([self.run >= hits]), outputs, value

    return Watched()


@torch.no_grad()
def decode(model, tokens, init_state, steps, evaluator, hits=1, min_steps=0, cache=None):
    """Steps per token, the statistics at each, and the logits, of the reference's token-by-token run."""
    model.config.mean_recurrence = steps
    states = iter(init_state)
    model.initialize_state = lambda embeds, scale: next(states)[None, None].clone()
    values = []
    logits, _, exits = model._prefill_with_varied_exit_steps(
        tokens.long()[None], watched(evaluator, hits, min_steps, values), cache or latest_cache(model.config)
    )
    return exits, values, logits[0]


def check_latest_cache():
    """On the shape 2/4/2 the cache here and `latest-m4` are the same."""
    config = make_config(
        dict(
            n_embd=32, n_heads=2, n_layers=8, intermediate_size=32, vocab_size=64, block_size=64,
            n_layers_in_prelude=2, n_layers_in_recurrent_block=4, n_layers_in_coda=2,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = make_model(config, random_weights(ref.RavenForCausalLM(config), generator))
    tokens = torch.randint(64, (12,), generator=generator)
    init_state = torch.randn(12, 32, generator=generator)
    ours, theirs = (
        decode(model, tokens, init_state, 8, ref.LatentDiffExitEvaluator(1.0), cache=cache)
        for cache in (latest_cache(config), ref.HuginnDynamicCache("latest-m4"))
    )
    assert ours[0] == theirs[0] and torch.equal(ours[2], theirs[2]) and len(set(ours[0])) > 2, ours[0]


# (rule, threshold, hits, min): thresholds that a random checkpoint's restless states pass here and there.
EXIT_CASES = (
    ("step-norm", 0.8, 1, 0),
    ("step-norm", 0.85, 2, 4),
    ("acceleration", 1.5, 1, 0),
    ("acceleration", 1.5, 2, 0),
    ("acceleration", 1.45, 3, 5),
    ("acceleration-raw", 17.0, 2, 0),
    ("kl", 0.1, 1, 0),
    ("kl", 0.12, 2, 3),
    ("acceleration-step", 0.824, 1, 0),
    ("acceleration-step", 0.859, 2, 2),
    ("cosine", 0.311, 1, 0),
    ("cosine", 0.34, 2, 2),
    ("min-p-kl", 0.0541, 1, 0),
    ("min-p-kl", 0.0654, 2, 2),
    ("entropy", 0.00157, 1, 0),
    ("entropy", 0.00784, 2, 2),
    ("argmax", None, 1, 0),
    ("argmax", None, 2, 3),
)
EXIT_STEPS = 16
# The logits that are written down, out of 1024.
PROBES = (0, 1, 7, 63, 500, 777, 828, 1023)


def exits(folder):
    check_latest_cache()
    golden = load_file(folder / "golden.safetensors")
    model = load(folder)
    cases = []
    for name, threshold, hits, min_steps in EXIT_CASES:
        evaluator = EVALUATORS[name](model, threshold)
        exit_step, values, logits = decode(
            model, golden["tokens"], golden["init_state"], EXIT_STEPS, evaluator, hits, min_steps
        )
        minimum = f",min={min_steps}" if min_steps else ""
        written = "" if threshold is None else f":{threshold:g}"
        rule = f"{name}{written},hits={hits}{minimum},max={EXIT_STEPS}"
        margin = 1.0
        if threshold is not None:
            margin = min(abs(v / threshold - 1) for row in values for v in row if v is not None)
        print(f"{rule}: exits {exit_step}, nearest statistic {margin:.1e} off")
        # Nothing to be decided by rounding, and early exits as well as late ones.
        assert margin > 2e-4 and min(exit_step) < max(exit_step) and len(set(exit_step)) > 3
        cases.append(
            dict(
                rule=rule,
                exit_step=exit_step,
                statistic=[[v and float(f"{v:.6g}") for v in row] for row in values],
                logits=[[float(f"{v:.8g}") for v in row] for row in logits[:, list(PROBES)].tolist()],
            )
        )
    lines = ",\n".join(
        "  {" + ",\n   ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in case.items()) + "}" for case in cases
    )
    about = (
        "The reference, token by token, with golden.safetensors' tokens and init_state: per rule and token the step "
        "after which it left the loop, the statistic at each step (null where there is none), and the final "
        "logits of the tokens in `probes`."
    )
    head = f'{{"about": {json.dumps(about)},\n "probes": {json.dumps(PROBES)},\n "cases": [\n'
    (folder / "exits.json").write_text(f"{head}{lines}\n]}}\n")


def statistics():
    """For the table in src/exit/: every evaluator on the same few states, or read-outs, of six numbers."""
    rows = torch.tensor(
        [
            [0.5, -1.25, 2.0, 0.75, -0.5, 1.0],
            [1.5, -0.75, 2.5, -0.25, -1.0, 3.0],
            [1.25, -1.0, 2.25, 0.5, -1.5, 2.75],
            [1.375, -1.125, 2.0, 0.25, -1.25, 3.125],
            [1.375, -1.0625, 2.0, 0.25, -1.25, 3.0],
        ]
    )
    readout = types.SimpleNamespace(
        config=types.SimpleNamespace(padded_vocab_size=rows.shape[1]),
        predict_from_latents=lambda latents: types.SimpleNamespace(logits=latents),
    )
    for name, make in EVALUATORS.items():
        evaluator = make(readout, 1.0)
        evaluator.init(rows[None, :1])
        # The first row is the initial state, or else the first read-out.
        shown = rows if name in READOUT else rows[1:]
        values = [evaluator.check(readout, row[None, None], {})[2].item() for row in shown]
        print(name, [float(f"{value:.9g}") for value in values])


def main():
    global ref
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=pathlib.Path)
    parser.add_argument("what", choices=("check", "shapes", "exits", "statistics"))
    parser.add_argument("folders", type=pathlib.Path, nargs="*")
    args = parser.parse_args()
    ref = import_reference(args.checkout)
    if args.what == "check":
        check(args.folders)
    elif args.what == "shapes":
        (out,) = args.folders
        shapes(out)
    elif args.what == "exits":
        (folder,) = args.folders
        exits(folder)
    else:
        statistics()


if __name__ == "__main__":
    main()

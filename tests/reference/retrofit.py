#!/usr/bin/env python3
"""What the public reference implementation of retrofitted Llamas computes, for tests/data/retrofit-shapes.

Needs torch, safetensors, transformers 4.54 and a checkout of LoopedLMs/retrofitting-recurrence, of which only
convert_pretrained_model/raven_modeling_minimal_llama.py is run, in float32 on a CPU:

  retrofit.py CHECKOUT make OUT        make tiny random checkpoints of several shapes, with goldens
  retrofit.py CHECKOUT check FOLDER... compute each folder's golden again and compare

A golden holds tokens i32 [T], init_state f32 [T,D], latents f32 [R,T,D] (before the coda) and logits f32 [R,T,V],
row k of which is a run of k + 1 steps.
"""

import argparse
import importlib
import inspect
import json
import pathlib
import sys
import types

import tiny
import torch

# The reference, once `main` knows where it is.
ref = None

TOKENS, STEPS = 12, 4


def import_reference(checkout):
    package = types.ModuleType("convert_pretrained_model")
    package.__path__ = [str(checkout / "convert_pretrained_model")]
    sys.modules["convert_pretrained_model"] = package
    reference = importlib.import_module("convert_pretrained_model.raven_modeling_minimal_llama")
    # transformers 4.54 made these properties without setters, which the reference's cache then assigns to.
    reference.HuginnDynamicCache.key_cache = reference.HuginnDynamicCache.value_cache = None
    return reference


def make_config(values):
    """A RavenConfig, the values that its own constructor does not take set as the reference's converter sets them."""
    known = inspect.signature(ref.RavenConfig.__init__).parameters
    config = ref.RavenConfig(**{k: v for k, v in values.items() if k in known})
    for key, value in values.items():
        setattr(config, key, value)
    return config


def make_model(config, weights):
    torch.manual_seed(0)
    model = ref.RavenForCausalLM(config).float().eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= ({"lm_head.weight"} if config.tie_embeddings else set()) and not unexpected
    if config.tie_embeddings:
        model.tie_weights()
        assert model.lm_head.weight is model.transformer.wte.weight
    return model


@torch.no_grad()
def run(model, tokens, init_state):
    runs = [
        model(tokens.long()[None], input_states=init_state[None], num_steps=torch.tensor([k]))
        for k in range(1, STEPS + 1)
    ]
    return {
        "tokens": tokens.int(),
        "init_state": init_state,
        "latents": torch.cat([out.latent_states for out in runs]),
        "logits": torch.cat([out.logits for out in runs]),
    }


SHAPES = {
    # Llama 3's scaling, whose middle band lies within these few positions; three query heads to a key head.
    "llama3": dict(
        n_embd=48, n_heads=6, num_key_value_heads=2, head_dim=8, intermediate_size=80, layers=(1, 2, 1),
        rope_theta=10000.0, tie_embeddings=False,
        rope_scaling=dict(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64,
            rope_type="llama3",
        ),
    ),
    # No scaling of RoPE, a tied head, one key head, an adapter with bias, scaled embeddings.
    "tied": dict(
        n_embd=64, n_heads=4, num_key_value_heads=1, head_dim=16, intermediate_size=48, layers=(2, 1, 2),
        rope_theta=500000.0, tie_embeddings=True, bias=True, norm_eps=1e-6,
    ),
}  # fmt: skip


def make(out):
    for seed, (name, values) in enumerate(SHAPES.items()):
        values = dict(values)
        prelude, core, coda = values.pop("layers")
        config = make_config(
            dict(norm_eps=1e-5, rope_base=500000.0, qk_bias=False)
            | values
            | dict(
                n_layers=prelude + core + coda,
                n_layers_in_prelude=prelude,
                n_layers_in_recurrent_block=core,
                n_layers_in_coda=coda,
                mean_recurrence=STEPS,
                block_size=64,
                max_position_embeddings=64,
                vocab_size=120,
                padded_vocab_size=120,
                torch_dtype="float32",
            )
        )
        config.architectures = ["RavenForCausalLM"]
        config.init_values["embed_scale"] = 2.0 if name == "tied" else 1.0
        generator = torch.Generator().manual_seed(seed)
        shapes = {k: v.shape for k, v in ref.RavenForCausalLM(config).state_dict().items()}
        weights = tiny.random_weights(shapes, generator, embedding=0.25 if config.tie_embeddings else 1.0)
        if config.tie_embeddings:
            del weights["lm_head.weight"]
        tokens = tiny.tokens_of(generator, config.vocab_size, TOKENS)
        std = config.init_values["std"] * config.init_values["embed_scale"]
        init_state = std * torch.randn(TOKENS, config.n_embd, generator=generator).clamp(-3, 3)
        golden = run(make_model(config, weights), tokens, init_state)
        tiny.save(out / name, json.loads(config.to_json_string(use_diff=False)), weights, golden)
    check([out / name for name in SHAPES])


def check(folders):
    for folder in folders:
        config, weights, golden = tiny.load(folder)
        model = make_model(make_config(config), weights)
        tiny.compare(folder, run(model, golden["tokens"], golden["init_state"]), golden)


def main():
    global ref
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=pathlib.Path)
    parser.add_argument("what", choices=("make", "check"))
    parser.add_argument("folders", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    ref = import_reference(args.checkout)
    if args.what == "make":
        make(*args.folders)
    else:
        check(args.folders)


if __name__ == "__main__":
    main()

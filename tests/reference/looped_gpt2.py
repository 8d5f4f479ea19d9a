#!/usr/bin/env python3
"""The GPT-2-style model with several loops of "Two-Scale Latent Dynamics" (arXiv 2509.23314): tests/data/looped-gpt2.

No code of it is public, so the model is here: the layers are GPT2Block of transformers (4.54 and 5.23 agree), run as
the paper says. A segment [a, b) of the stack is applied to the stream loop_steps times, with no injection and no
norm in between; the stream that enters is its initial state. Needs torch, safetensors and transformers.

  looped_gpt2.py make OUT        make a tiny random checkpoint and its golden
  looped_gpt2.py check FOLDER... compute each folder's golden again and compare

The checkpoint's matrices are [out, in], as nn.Linear has them; the head is the token table. A golden holds tokens
i32 [T], latents_I f32 [R_I,T,D] (the stream after each step of the looped segment I), logits f32 [T,V] and logits_last
f32 [R,T,V] (what the rest of the stack makes of each step of the last looped segment).
"""

import argparse
import pathlib

import tiny
import torch
from torch.nn.functional import layer_norm, linear
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

CONFIG = {
    "architectures": ["LoopedGPT2"],
    "model_type": "looped_gpt2",
    "vocab_size": 100,
    "n_positions": 40,
    "n_embd": 36,
    "n_head": 3,
    "n_layer": 9,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "loop_segments": [[4, 5], [5, 7], [7, 8]],
    "loop_steps": [4, 3, 5],
    "torch_dtype": "float32",
}
TOKENS = 14
LINEAR = ("c_attn", "c_proj", "c_fc")


def shapes(config):
    width = config["n_embd"]
    ffn = config["n_inner"] or 4 * width
    names = {"transformer.wte.weight": (config["vocab_size"], width)}
    names["transformer.wpe.weight"] = (config["n_positions"], width)
    for i in range(config["n_layer"]):
        for name, shape in {
            "ln_1": (width,),
            "attn.c_attn": (3 * width, width),
            "attn.c_proj": (width, width),
            "ln_2": (width,),
            "mlp.c_fc": (ffn, width),
            "mlp.c_proj": (width, ffn),
        }.items():
            names[f"transformer.h.{i}.{name}.weight"] = shape
            names[f"transformer.h.{i}.{name}.bias"] = shape[:1]
    names["transformer.ln_f.weight"] = names["transformer.ln_f.bias"] = (width,)
    return names


def block(config, weights, i):
    """A layer of transformers with these weights; its matrices are stored the other way round."""
    known = ("n_positions", "n_embd", "n_head", "n_inner", "activation_function", "layer_norm_epsilon")
    gpt2 = GPT2Config(**{k: config[k] for k in known}, attn_implementation="eager")
    layer = GPT2Block(gpt2, layer_idx=i).eval()
    prefix = f"transformer.h.{i}."
    own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    for name in own:
        if name.endswith(".weight") and name.split(".")[-2] in LINEAR:
            own[name] = own[name].T
    missing, unexpected = layer.load_state_dict(own, strict=False)
    assert not unexpected and all(name in ("attn.bias", "attn.masked_bias") for name in missing), missing
    return layer


@torch.no_grad()
def run(config, weights, tokens):
    layers = [block(config, weights, i) for i in range(config["n_layer"])]
    mask = torch.full((len(tokens), len(tokens)), torch.finfo(torch.float32).min).triu(1)[None, None]

    def through(x, start, end):
        for layer in layers[start:end]:
            out = layer(x, attention_mask=mask)
            x = out[0] if isinstance(out, tuple) else out
        return x

    def read(x, start):
        x = through(x, start, config["n_layer"])[0]
        ln_f = (weights["transformer.ln_f.weight"], weights["transformer.ln_f.bias"])
        return linear(layer_norm(x, (config["n_embd"],), *ln_f, config["layer_norm_epsilon"]), wte)

    wte = weights["transformer.wte.weight"]
    x = (wte[tokens.long()] + weights["transformer.wpe.weight"][: len(tokens)])[None]
    found, at = {"tokens": tokens.int()}, 0
    for i, ((start, end), steps) in enumerate(zip(config["loop_segments"], config["loop_steps"])):
        x = through(x, at, start)
        states = []
        for _ in range(steps):
            x = through(x, start, end)
            states.append(x)
        found[f"latents_{i}"] = torch.cat(states)
        at = end
    found["logits_last"] = torch.stack([read(state, at) for state in states])
    found["logits"] = found["logits_last"][-1]
    return found


def make(out):
    generator = torch.Generator().manual_seed(0)
    weights = tiny.random_weights(shapes(CONFIG), generator, embedding=0.4, gain=0.8)
    tokens = tiny.tokens_of(generator, CONFIG["vocab_size"], TOKENS)
    tiny.save(out, CONFIG, weights, run(CONFIG, weights, tokens))
    check([out])


def check(folders):
    for folder in folders:
        config, weights, golden = tiny.load(folder)
        tiny.compare(folder, run(config, weights, golden["tokens"]), golden)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "check"))
    parser.add_argument("folders", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    if args.what == "make":
        make(*args.folders)
    else:
        check(args.folders)


if __name__ == "__main__":
    main()

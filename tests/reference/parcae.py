#!/usr/bin/env python3
"""What the public reference implementation of Parcae computes, for tests/data/parcae-shapes.

Needs torch, safetensors and a checkout of sandyresearch/parcae, of which parcae_lm is run, in float32 on a CPU:

  parcae.py CHECKOUT make OUT        make tiny random checkpoints of several shapes, with goldens
  parcae.py CHECKOUT check FOLDER... compute each folder's golden again and compare

A golden holds tokens i32 [T], init_state f32 [T,E], latents f32 [R,T,E] (before C; E is the recurrent width) and
logits f32 [R,T,V], row k of which is a whole run of k + 1 steps.
"""

import argparse
import json
import pathlib
import sys

import tiny
import torch

# ParcaeConfig and Parcae of the reference, once `main` knows where it is.
ref = None

TOKENS, STEPS = 12, 4


def make_model(config):
    config = {k: v for k, v in config.items() if not k.startswith("_")}
    torch.manual_seed(0)
    return ref.Parcae(ref.ParcaeConfig(**config)).float().eval()


@torch.no_grad()
def run(model, tokens, init_state):
    latents, logits = [], []
    model.initialize_state = lambda embeds: init_state[None].clone()
    hook = model.transformer.C.register_forward_hook(lambda module, args, output: latents.append(args[0][0]))
    for step in range(1, STEPS + 1):
        steps = torch.tensor([step, 0])
        logits.append(model(tokens.long()[None], return_logits=True, num_steps_pair=steps)["logits"][0])
    hook.remove()
    return {
        "tokens": tokens.int(),
        "init_state": init_state,
        "latents": torch.stack(latents),
        "logits": torch.stack(logits),
    }


def load_weights(folder):
    for name in ("pytorch_model.bin", "model.pt"):
        if (folder / name).exists():
            return torch.load(folder / name, map_location="cpu", weights_only=True)
    return tiny.load_file(folder / "model.safetensors")


def load(folder):
    """As the reference loads: prefixes of wrappers are dropped, and a tied head may be absent."""
    config = json.loads((folder / "config.json").read_text())
    model = make_model(config)
    weights = {k.removeprefix("_orig_mod."): v for k, v in load_weights(folder).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    allowed = {"freqs_cis"} | ({"lm_head.weight"} if config["tie_embeddings"] else set())
    assert set(missing) <= allowed and not unexpected, (missing, unexpected)
    return model


# Heads of 16 throughout. A block uses a value embedding if it has both a gate and a table.
SHAPES = {
    # A loop narrower than the stack, with as many heads as the stack has key heads, for the tables are that wide.
    # Tables for blocks 1, 3 and 5, gates in blocks 1, 3 and 4.
    "narrow-loop": dict(
        n_embd=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        recurrent_embedding_dimension=32, recurrent_num_attention_heads=2,
        recurrent_intermediation_embedding_dimension=64,
        n_layers_in_prelude=1, n_layers_in_recurrent_block=3, n_layers_in_coda=2,
        tie_embeddings=False, prelude_norm=False,
    ),
    # A loop wider than the stack, a tied head, another base of RoPE. Tables for blocks 0, 2 and 4, a gate in 1 and 3:
    # none of it is used.
    "wide-loop": dict(
        n_embd=32, num_attention_heads=2, num_key_value_heads=2, intermediate_size=48,
        recurrent_embedding_dimension=48, recurrent_num_attention_heads=3,
        recurrent_intermediation_embedding_dimension=64,
        n_layers_in_prelude=1, n_layers_in_recurrent_block=2, n_layers_in_coda=2,
        tie_embeddings=True, prelude_norm=True, rope_settings=dict(rope_base=10000),
    ),
}  # fmt: skip


def make_config(name, values):
    return dict(
        name=name, block_size=64, vocab_size=100, padding_multiple=64, block_class_name="TransformerPreNormBlock",
        norm_class_name="RMSNorm", norm_eps=1e-5, mlp_class_name="BaseMLP", nonlin_name="ReLU2", qk_norm=True,
        init_strategy="scaled-zero", init_orthogonal=True, injection_type="diagonal", state_init="like-init",
        mean_recurrence=STEPS, mean_backprop_depth=4, recurrent_iteration_method="per-sequence",
    ) | values  # fmt: skip


def make(out):
    for seed, (name, values) in enumerate(SHAPES.items()):
        model = make_model(make_config(name, values))
        # What the reference's own save_pretrained functions write: one names the class, the other does not.
        config = model.config.__getstate__()
        generator = torch.Generator().manual_seed(seed)
        state = model.state_dict()
        weights = tiny.random_weights({k: v.shape for k, v in state.items()}, generator)
        weights["freqs_cis"] = state["freqs_cis"]
        weights["transformer.adapter.A_log"] -= 1
        if config["tie_embeddings"]:
            weights["transformer.wte.weight"] *= 0.3
            del weights["lm_head.weight"]
        folder = out / name
        if name == "narrow-loop":
            tiny.save_json(folder / "config.json", config)
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            for key in ("_class_name", "init"):
                config.pop(key, None)
            tiny.save_json(folder / "config.json", config)
            tiny.save_tensors(folder / "model.safetensors", weights)
        width = config["recurrent_embedding_dimension"]
        std = model.config.init.get_std("embedding")
        init_state = std * torch.randn(TOKENS, width, generator=generator).clamp(-3, 3)
        tokens = tiny.tokens_of(generator, config["vocab_size"], TOKENS)
        tiny.save_tensors(folder / "golden.safetensors", run(load(folder), tokens, init_state))
        blocks = [*model.transformer.prelude, *model.transformer.core_block, *model.transformer.coda]
        gates = [i for i, block in enumerate(blocks) if block.attn.ve_gate is not None]
        print(name, "tables", list(model.value_embeds), "gates", gates, f"initial std {std:.4f}")
    check([out / name for name in SHAPES])


def check(folders):
    for folder in folders:
        golden = tiny.load_file(folder / "golden.safetensors")
        tiny.compare(folder, run(load(folder), golden["tokens"], golden["init_state"]), golden)


def main():
    global ref
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=pathlib.Path)
    parser.add_argument("what", choices=("make", "check"))
    parser.add_argument("folders", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    sys.path.insert(0, str(args.checkout))
    import parcae_lm as ref

    if args.what == "make":
        make(*args.folders)
    else:
        check(args.folders)


if __name__ == "__main__":
    main()

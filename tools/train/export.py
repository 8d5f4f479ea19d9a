#!/usr/bin/env python3
"""Writes a trained model as a checkpoint in the published layout of its shape.

  export.py RUN FOLDER [--shape nano] [--questions 10] [--dialogues 1200]

FOLDER gets the weights (matrices in bf16, vectors in f32), config.json, generation_config.json, the
tokenizer with its chat template, and what tells how good the model is: eval.jsonl (held-out questions with this model's
answers), accuracy_by_steps.json, heldout.txt (held-out dialogues, special tokens written out) and training.jsonl.
"""

import argparse
import json
import pathlib
import random
import shutil

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import dialogues
import parcae
import tokenizer as tokens
from evaluate import answer, held_out_questions, score
from layouts import build
from model import SHAPES, to_bfloat16

DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16)


def config(shape):
    return {
        "architectures": ["RavenForCausalLM"],
        "model_type": "huginn_raven",
        "architecture_class_name": "RecurrentGPT",
        "block_class_name": "SandwichBlock",
        "mlp_class_name": "GatedMLP",
        "nonlin_name": "SiLU",
        "norm_class_name": "RMSNorm_llama",
        "norm_eps": shape.epsilon,
        "n_embd": shape.width,
        "n_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.width // shape.heads,
        "n_layers": shape.prelude + shape.core + shape.coda,
        "n_layers_in_prelude": shape.prelude,
        "n_layers_in_recurrent_block": shape.core,
        "n_layers_in_coda": shape.coda,
        "intermediate_size": shape.feed_forward,
        "bias": False,
        "qk_bias": True,
        "rope_base": int(shape.rope_base),
        "block_size": shape.context,
        "vocab_size": shape.vocabulary,
        "padded_vocab_size": shape.vocabulary,
        "padding_multiple": 256,
        "tie_embeddings": True,
        "injection_type": "linear",
        "state_init": "like-init",
        "init_strategy": "takase",
        "init_orthogonal": False,
        "init_values": {
            "std": shape.std,
            "embedding": shape.std,
            "out_proj": shape.out_std,
            "embed_scale": shape.embedding_scale,
        },
        "effective_expected_depth": shape.depth,
        "mean_recurrence": shape.mean_steps,
        "mean_backprop_depth": shape.backprop_steps,
        "sampling_scheme": "poisson-lognormal-filling",
        "activation_checkpoint_impl": "per-iteration",
        "test_time_noise": 0,
        "test_time_noise_type": "fixed",
        "bos_token_id": tokens.SPECIAL.index(tokens.BEGIN_TEXT),
        "eos_token_id": tokens.SPECIAL.index(tokens.END_TEXT),
        "torch_dtype": "bfloat16",
        "transformers_version": "4.54.1",
    }


def generation_config():
    return {
        "bos_token_id": tokens.SPECIAL.index(tokens.BEGIN_TEXT),
        "eos_token_id": [tokens.SPECIAL.index(token) for token in (tokens.END_TEXT, tokens.END_TURN)],
        "pad_token_id": tokens.SPECIAL.index(tokens.PAD),
    }


def tokenizer_config(shape):
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens.BEGIN_TEXT,
        "eos_token": tokens.END_TEXT,
        "pad_token": tokens.PAD,
        "chat_template": tokens.CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.context,
    }


def held_out_text(seed, count):
    """Dialogues of every kind and length, small talk included."""
    rng = random.Random(f"{seed} held out text")
    written = []
    for _ in range(count):
        kind = rng.choice(list(dialogues.KINDS))
        scene = dialogues.draw(rng, kind, rng.randint(1, dialogues.LONGEST), rng.randint(1, 2), held_out=True)
        written.append(tokens.written(scene.turns))
    return "\n".join(written) + "\n"


def write_weights(folder, shape, weights):
    """In the kind of file that the published models have: of those that Parcae's two loaders look for, both take one."""
    if shape.layout == "parcae":
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--shape", choices=SHAPES, default="nano")
    parser.add_argument("--questions", type=int, default=10, help="of each kind and number of reasoning steps")
    parser.add_argument("--scored", type=int, help="the same, in accuracy_by_steps.json (default: as many)")
    parser.add_argument("--longest", type=int, default=40, help="tokens of an answer in eval.jsonl")
    parser.add_argument("--dialogues", type=int, default=1200, help="in heldout.txt")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)

    shape = SHAPES[args.shape]
    model = build(shape)
    # What train_gpu.py leaves, or train.py.
    stored = args.run / "model.safetensors"
    model.load_state_dict(load_file(stored) if stored.exists() else torch.load(args.run / "state.pt")["mean"])
    to_bfloat16(model)
    args.folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    write_weights(args.folder, shape, weights)
    write_json(args.folder / "config.json", parcae.config(shape) if shape.layout == "parcae" else config(shape))
    write_json(args.folder / "generation_config.json", generation_config())
    write_json(args.folder / "tokenizer_config.json", tokenizer_config(shape))
    shutil.copy(args.run / "tokenizer.json", args.folder)
    shutil.copy(args.run / "log.jsonl", args.folder / "training.jsonl")
    (args.folder / "heldout.txt").write_text(held_out_text(args.seed, args.dialogues))

    # What the stored weights answer in f32 arithmetic.
    model.float()
    encoder = tokens.Encoder(Tokenizer.from_file(str(args.run / "tokenizer.json")))
    questions = held_out_questions(args.seed, args.questions, dialogues.LONGEST)
    # train_gpu.py has asked more questions at its end.
    last = json.loads((args.run / "log.jsonl").read_text().splitlines()[-1])
    asked = held_out_questions(args.seed, args.scored or args.questions, dialogues.LONGEST)
    told = stored.exists() and args.scored is None and "right" in last
    right = last["right"] if told else score(model, encoder, asked, DEPTHS)
    tables = [f'"{depth}": {json.dumps(dict(sorted(table.items())))}' for depth, table in right.items()]
    (args.folder / "accuracy_by_steps.json").write_text("{\n" + ",\n".join(tables) + "\n}\n")
    recorded = f"model_answer_at_{shape.mean_steps}_steps"
    with (args.folder / "eval.jsonl").open("w") as file:
        for turn in questions:
            said = answer(model, encoder, turn.question, shape.mean_steps, args.longest, guess=turn.answer)
            line = {"question": turn.question, "answer": turn.answer, "kind": turn.kind, "steps_needed": turn.steps}
            file.write(json.dumps(line | {recorded: said}) + "\n")


if __name__ == "__main__":
    main()

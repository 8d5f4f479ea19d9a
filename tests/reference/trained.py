#!/usr/bin/env python3
"""Does the public reference load a checkpoint of tools/train with its own code, and answer as its maker and rdt do?

Needs torch, safetensors, transformers 4.54 and a checkout of seal-rg/recurrent-pretraining (Huginn) or of
sandyresearch/parcae (Parcae), which is run in float32 on a CPU:

  trained.py CHECKOUT FOLDER [--questions 20] [--trace TRACE...]

FOLDER is what export.py wrote. Questions of its eval.jsonl go through its chat template and are answered greedily, at
the model's mean number of steps, from a state of zeros; each answer must be the recorded one. A TRACE is what rdt-trace
wrote of the same folder (or of a GGUF with its weights as they are), without an exit rule: its logits must be the
reference's from the same tokens and initial state.
"""

import argparse
import json
import pathlib
import sys

import huggingface_hub
import huginn
import torch
from safetensors.torch import load_file
from tiny import relative
from transformers import PreTrainedTokenizerFast

# Two best logits as near as this may change places in other arithmetic.
NEAR = 1e-3


class Huginn:
    def __init__(self, checkout, folder):
        ref = huginn.ref = huginn.import_reference(checkout)
        values = json.loads((folder / "config.json").read_text())
        # Its configuration cannot be given this key, which it writes itself.
        known = {"config": huginn.make_config(values)} if "tie_word_embeddings" in values else {}
        if known:
            print("config.json has tie_word_embeddings, with which from_pretrained fails: told the rest of it")
        self.model, report = ref.RavenForCausalLM.from_pretrained(
            folder, torch_dtype=torch.float32, output_loading_info=True, **known
        )
        self.model.eval()
        assert set(report["missing_keys"]) <= {"freqs_cis", "lm_head.weight"} and not report["unexpected_keys"], report
        self.width, self.steps = self.model.config.n_embd, self.model.config.mean_recurrence

    def logits(self, tokens, state, steps):
        return self.model(tokens[None], input_states=state[None], num_steps=torch.tensor([steps])).logits[0]


class Parcae:
    def __init__(self, checkout, folder):
        sys.path.insert(0, str(checkout))
        import parcae_lm
        from receval.models.parcae import ModelingParcae

        # Its evaluation reads a folder, the package itself what it has downloaded.
        self.model = ModelingParcae.from_pretrained(folder, dtype=torch.float32)
        huggingface_hub.hf_hub_download = lambda folder, name: str((folder / name).resolve(strict=True))
        loaded = parcae_lm.from_pretrained(folder, dtype=torch.float32).state_dict()
        stored = torch.load(folder / "pytorch_model.bin", weights_only=True)
        state = self.model.state_dict()
        for name, weight in stored.items():
            assert torch.equal(state[name], weight.float()) and torch.equal(loaded[name], weight.float()), name
        # Both leave at random what a file lacks, and say nothing.
        blocks = [*self.model.transformer.prelude, *self.model.transformer.core_block, *self.model.transformer.coda]
        gated = {str(i) for i, block in enumerate(blocks) if block.attn.ve_gate is not None}
        in_use = gated & set(self.model.value_embeds)
        unused = ("value_embeds.", "ve_gate")
        lacking = {name for name in state.keys() - stored.keys() if not any(part in name for part in unused)}
        assert lacking <= {"freqs_cis", "lm_head.weight"} and not in_use, (lacking, in_use)
        self.width, self.steps = self.model.config.recurrent_embedding_dimension, self.model.config.mean_recurrence

    def logits(self, tokens, state, steps):
        self.model.initialize_state = lambda embeds: state[None].clone()
        return self.model(tokens[None], return_logits=True, num_steps_pair=torch.tensor([steps, 0]))["logits"][0]


def answer(reference, tokenizer, stop, question, longest=40):
    """What the reference says greedily, and the least gap between two best logits on the way."""
    turn = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True)
    said, gap = [], float("inf")
    while len(said) < longest:
        tokens = torch.tensor(ids + said)
        zeros = torch.zeros(len(tokens), reference.width)
        best, which = reference.logits(tokens, zeros, reference.steps)[-1].topk(2)
        gap = min(gap, float(best[0] - best[1]))
        if int(which[0]) in stop:
            break
        said.append(int(which[0]))
    return tokenizer.decode(said, skip_special_tokens=True), gap


def check_answers(reference, folder, count):
    """Asks questions from all over the file."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    stop = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    lines = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    key = f"model_answer_at_{reference.steps}_steps"
    lines = lines[:: max(1, len(lines) // count)][:count]
    same = right = near = 0
    for line in lines:
        said, gap = answer(reference, tokenizer, stop, line["question"])
        same += said == line[key]
        right += said == line["answer"]
        if said != line[key]:
            near += gap < NEAR
            print(f"{line['question']!r}: {said!r}, recorded {line[key]!r}, least gap {gap:.1e}")
    print(f"{len(lines)} questions at {reference.steps} steps: {same} answered as recorded, {right} rightly")
    assert same + near == len(lines)


def check_trace(reference, path, bound):
    trace = load_file(path)
    steps, tokens = trace["latents"].shape[0], trace["tokens"].long()
    assert (trace["exit_step"] == steps).all(), "an exit rule was in force"
    of_steps = {steps: trace["logits"]} if trace["logits"].dim() == 2 else dict(enumerate(trace["logits"], 1))
    for step, logits in of_steps.items():
        expected = reference.logits(tokens, trace["init_state"], step)
        difference, error = (logits - expected).abs().max().item(), relative(logits, expected)
        told = f"largest difference {difference:.1e}, {error:.1e} of the spread"
        print(f"{path}, {len(tokens)} tokens, {step} steps: {told}")
        assert error < bound


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--trace", type=pathlib.Path, nargs="*", default=[])
    parser.add_argument("--bound", type=float, default=1e-4, help="largest difference over the logits' spread")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = json.loads((args.folder / "config.json").read_text())
    layout = Parcae if config.get("_class_name") == "ParcaeConfig" else Huginn
    reference = layout(args.checkout, args.folder)
    check_answers(reference, args.folder, args.questions)
    for path in args.trace:
        check_trace(reference, path, args.bound)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""GGUFs of looped families as other tools write them, and what llama.cpp computes from them: tests/data/llama-cpp.

Needs torch, safetensors, sentencepiece, tokenizers, transformers 5.23, the `gguf` package (0.19) and a build of
llama.cpp that knows the families, CPU only. Here: the sources in the crate llama-cpp-sys-2 0.1.161 (ggml 0.26.0), and for
`ouro`, which no release of it reads yet, with the graph that ggml-org/llama.cpp#29823 proposes.

  g++ -O1 -std=c++17 tests/reference/llama_cpp.cpp -o TOOL \\
      -ILLAMA/include -ILLAMA/ggml/include -LLLAMA/build/bin -lllama -lggml -lggml-base -Wl,-rpath,LLAMA/build/bin
  llama_cpp.py TOOL make DATA    from the checkpoints in DATA/nanbeige and DATA/hrm_text-shapes to DATA/llama-cpp
  llama_cpp.py TOOL check DATA   run every file again and compare; compare f32 files with the checkpoints' goldens

The f32 files hold the keys, tensor names and row order that llama.cpp's own converter writes; llama.cpp quantises
them. `golden.safetensors` of a family holds tokens i32 [T] and for each FILE.gguf `logits.FILE` f32 [T,V]; the
KV cache is f32, and block formats are multiplied in the file's own layout. `tokens.json` is what its tokenizer
makes of a few texts: as plain text, with special tokens in it recognised, and with BOS as the file asks for it.
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile

import gguf
import hrm_text
import nanbeige
import numpy as np
import sentencepiece
import tiny
import torch

TOKENS = 32
FAMILIES = ("nanbeige", "hrm_text", "ouro")
KIND = gguf.TokenType


def standard(writer, config, blocks):
    arch = writer.arch
    heads = config["num_attention_heads"]
    rope = config.get("rope_parameters") or config
    writer.add_name("tiny random " + arch)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def add_bpe(writer, config, pre="qwen2"):
    """The vocabulary of hrm_text.py, as the converter writes a gpt2-type one."""
    bpe = json.loads(hrm_text.tokenizer().to_str())
    special = {token["content"] for token in bpe["added_tokens"]}
    tokens = sorted(bpe["model"]["vocab"], key=bpe["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([KIND.CONTROL if token in special else KIND.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in bpe["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])


def add_sentencepiece(writer, model):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    tokens, scores, kinds = [], [], []
    for i in range(len(pieces)):
        kind = KIND.UNKNOWN if pieces.is_unknown(i) else KIND.CONTROL if pieces.is_control(i) else KIND.NORMAL
        tokens.append(pieces.id_to_piece(i))
        scores.append(pieces.get_score(i))
        kinds.append(KIND.BYTE if pieces.is_byte(i) else kind)
    for token, control in nanbeige.ADDED.items():
        tokens.append(token)
        scores.append(-1000.0)
        kinds.append(KIND.CONTROL if control else KIND.USER_DEFINED)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def interleaved(weight, heads):
    """Rows of a rotate-half projection in the order of RoPE on interleaved pairs."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


NAMES = {
    "self_attn.gate_proj": "attn_gate",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OURO_NAMES = NAMES | {
    "input_layernorm_2": "post_attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "post_attention_layernorm_2": "post_ffw_norm",
}
OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.z_L_init": "hrm.z_l_init",
}


def llama_blocks(config, weights, names):
    """The tensors of a checkpoint with one stack, for interleaved RoPE."""
    tensors = {}
    for name, weight in weights.items():
        if name in OUTER:
            tensors[OUTER[name]] = weight
        elif name.startswith("model.layers."):
            block, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            if part == "self_attn.q_proj":
                weight = interleaved(weight, config["num_attention_heads"])
            if part == "self_attn.k_proj":
                weight = interleaved(weight, config["num_key_value_heads"])
            tensors[f"blk.{block}.{names[part]}.weight"] = weight
    return tensors


def write_nanbeige(path, config, weights, model, rope_factors=None):
    writer = gguf.GGUFWriter(path, "nanbeige")
    standard(writer, config, config["num_hidden_layers"])
    writer.add_uint32("nanbeige.num_loops", config["num_loops"])
    writer.add_bool("nanbeige.skip_loop_final_norm", config["skip_loop_final_norm"])
    add_sentencepiece(writer, model)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.numpy())
    finish(writer, llama_blocks(config, weights, NAMES))


def write_hrm_text(path, config, weights):
    per_stack = config.get("num_layers_per_stack", config["num_hidden_layers"])
    h_cycles, l_cycles = config["H_cycles"], config["L_cycles"]
    writer = gguf.GGUFWriter(path, "hrm_text")
    standard(writer, config, per_stack * h_cycles * (l_cycles + 1))
    writer.add_float32("hrm_text.embedding_scale", config.get("embedding_scale") or 1 / config["initializer_range"])
    writer.add_uint32("hrm_text.hrm.layers_per_stack", per_stack)
    writer.add_uint32("hrm_text.hrm.h_cycles", h_cycles)
    writer.add_uint32("hrm_text.hrm.l_cycles", l_cycles)
    writer.add_bool("hrm_text.hrm.prefix_lm", config["prefix_lm"])
    add_bpe(writer, config)
    tensors = {}
    for name, weight in weights.items():
        if name in OUTER:
            tensors[OUTER[name]] = weight
            continue
        stack, _, block, part = name.removeprefix("model.").removesuffix(".weight").split(".", 3)
        block = int(block) + (per_stack if stack == "H_module" else 0)
        tensors[f"blk.{block}.{NAMES[part]}.weight"] = weight
    finish(writer, tensors)


def write_ouro(path, config, weights):
    """As proposed in ggml-org/llama.cpp#29823: the gate is dropped, which is exact at the published threshold of 1."""
    config = config | {"head_dim": config["hidden_size"] // config["num_attention_heads"]}
    writer = gguf.GGUFWriter(path, "ouro")
    standard(writer, config, config["num_hidden_layers"])
    writer.add_uint32("ouro.num_loops", config["total_ut_steps"])
    writer.add_bool("ouro.skip_loop_final_norm", False)
    add_bpe(writer, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}, "smollm")
    finish(writer, llama_blocks(config, weights, OURO_NAMES))


def finish(writer, tensors):
    for name, weight in tensors.items():
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tool(binary, *arguments, **options):
    environment = os.environ | {"NO_REPACK": "1"}
    return subprocess.run([binary, *map(str, arguments)], check=True, env=environment, **options)


def logits(binary, path, tokens, cache="f32"):
    with tempfile.NamedTemporaryFile() as out:
        tool(binary, "logits", path, ",".join(map(str, tokens.tolist())), out.name, cache)
        found = torch.from_numpy(np.fromfile(out.name, np.float32).copy())
    return found.view(len(tokens), -1)


TEXTS = (
    "", " ", "The loop is run again and again.", "  two spaces,  and\ttabs\n\nand\r\nlines ", "1234567890 steps: 3.14",
    "don't can't WE'LL it's", "naïve café – “quoted” 𝛑 🦀👩‍👩‍👧", "日本語とखिचड़ी и по-русски", "a\u0301 e\u0301\ufeff\u200b",
    "<|im_start|>user\nHi<|im_end|>\n", "<think>\nso\n</think> <s> </s><unk>", "\x01\x7f", "<0x41> ▁ Ġ ĊĠ",
    "a" * 40, "    indented\n        more", "<|im_start", "<|im_start|> <|im_end|>x", " leading", "trailing   ",
)  # fmt: skip


def tokenized(binary, path):
    given = "".join(text + "\0" for text in TEXTS)
    lines = tool(binary, "tokenize", path, input=given.encode(), stdout=subprocess.PIPE).stdout.decode().split("\n")
    ids = [[int(i) for i in line.split()] for line in lines[: 3 * len(TEXTS)]]
    return [
        dict(text=text, plain=plain, special=special, bos=bos)
        for text, plain, special, bos in zip(TEXTS, ids[0::3], ids[1::3], ids[2::3])
    ]


def k_quant_nanbeige():
    """Rows of 256 everywhere, which K-quants need."""
    config = nanbeige.make_config(
        hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
        head_dim=64, vocab_size=nanbeige.VOCAB, rope_theta=10000.0, num_loops=2, skip_loop_final_norm=False,
        tie_word_embeddings=False,
    )  # fmt: skip
    return config, tiny.random_weights(nanbeige.shapes(config), torch.Generator().manual_seed(7))


def k_quant_hrm_text():
    config = hrm_text.make_config(
        hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4, H_cycles=2, L_cycles=2,
        initializer_range=0.0625, embedding_scale=16.0,
    )  # fmt: skip
    weights = tiny.random_weights(hrm_text.shapes(config), torch.Generator().manual_seed(8), embedding=0.0625)
    return config, weights


# Factors that divide RoPE's frequencies, as long-context variants have them.
ROPE_FACTORS = torch.tensor([1.0, 1.0, 1.25, 2.0, 4.0, 8.0, 8.0, 8.0])


def quantise(binary, source, target, kind):
    tool(binary, "quantize", source, target, kind, stdout=subprocess.DEVNULL)


def make(binary, data):
    out = data / "llama-cpp"
    nb, hrm, ouro = (out / family for family in FAMILIES)
    for family in nb, hrm, ouro:
        family.mkdir(parents=True, exist_ok=True)
    model = data / "nanbeige/every-pass/tokenizer.model"
    with tempfile.TemporaryDirectory() as scratch:
        wide = pathlib.Path(scratch) / "wide.gguf"
        config, weights, _ = tiny.load(data / "nanbeige/every-pass")
        write_nanbeige(nb / "every-pass-f32.gguf", config, weights, model)
        for kind in ("Q8_0", "Q4_0"):
            quantise(binary, nb / "every-pass-f32.gguf", nb / f"every-pass-{kind.lower()}.gguf", kind)
        config, weights, _ = tiny.load(data / "nanbeige/last-norm")
        write_nanbeige(nb / "last-norm-rope-freqs-f32.gguf", config, weights, model, ROPE_FACTORS)
        write_nanbeige(wide, *k_quant_nanbeige(), model)
        quantise(binary, wide, nb / "wide-q4_k_m.gguf", "Q4_K_M")

        config, weights, _ = tiny.load(data / "hrm_text-shapes/split")
        write_hrm_text(hrm / "split-f32.gguf", config, weights)
        config, weights, _ = tiny.load(data / "hrm_text-shapes/wide")
        write_hrm_text(wide, config, weights)
        for kind in ("Q8_0", "Q4_0"):
            quantise(binary, wide, hrm / f"wide-{kind.lower()}.gguf", kind)
        write_hrm_text(wide, *k_quant_hrm_text())
        quantise(binary, wide, hrm / "k-q4_k_m.gguf", "Q4_K_M")
        config, weights, _ = tiny.load(data / "ouro-shapes/gqa")
        write_ouro(ouro / "gqa-f32.gguf", config, weights)
        quantise(binary, ouro / "gqa-f32.gguf", ouro / "gqa-q8_0.gguf", "Q8_0")
    for family in nb, hrm, ouro:
        files = sorted(family.glob("*.gguf"))
        tokens = tiny.tokens_of(torch.Generator().manual_seed(11), 320, TOKENS)
        golden = {"tokens": tokens.int()} | {f"logits.{f.stem}": logits(binary, f, tokens) for f in files}
        tiny.save_tensors(family / "golden.safetensors", golden)
        rows = ",\n".join(json.dumps(case) for case in tokenized(binary, files[0]))
        (family / "tokens.json").write_text(f"[\n{rows}\n]\n")
    check(binary, data)


def check(binary, data):
    out = data / "llama-cpp"
    for family in (out / family for family in FAMILIES):
        golden = tiny.load_file(family / "golden.safetensors")
        for path in sorted(family.glob("*.gguf")):
            expected = golden[f"logits.{path.stem}"]
            again, half = (logits(binary, path, golden["tokens"], cache) for cache in ("f32", "f16"))
            best = expected.topk(2).values
            print(
                path.relative_to(out), f"{path.stat().st_size} bytes, again {tiny.relative(again, expected):.1e},",
                f"KV in f16 {tiny.relative(half, expected):.1e}, std {expected.std():.2f},",
                f"{(best[:, 0] - best[:, 1] > 0.05).sum()} of {len(best)} positions decided",
            )  # fmt: skip
            assert tiny.relative(again, expected) < 1e-5
        assert json.loads((family / "tokens.json").read_text()) == tokenized(binary, sorted(family.glob("*.gguf"))[0])
    # llama.cpp and the checkpoints' references agree.
    for path, folder in {
        "nanbeige/every-pass-f32": "nanbeige/every-pass",
        "hrm_text/split-f32": "hrm_text-shapes/split",
        "ouro/gqa-f32": "ouro-shapes/gqa",
    }.items():
        golden = tiny.load_file(data / folder / "golden.safetensors")
        error = tiny.relative(logits(binary, out / f"{path}.gguf", golden["tokens"]), golden["logits"][-1])
        print(f"{path}: {error:.1e} from the checkpoint's reference")
        assert error < 1e-4
    config, weights, golden = tiny.load(data / "nanbeige/last-norm")
    path = out / "nanbeige/last-norm-rope-freqs-f32.gguf"
    for factors in (ROPE_FACTORS, None):
        expected = nanbeige.run(config, weights, golden["tokens"], factors)["logits"][-1]
        error = tiny.relative(logits(binary, path, golden["tokens"]), expected)
        print(path.stem, "with" if factors is not None else "without", f"its factors: {error:.1e}")
        assert (error < 1e-4) == (factors is not None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", type=pathlib.Path)
    parser.add_argument("what", choices=("make", "check"))
    parser.add_argument("data", type=pathlib.Path)
    args = parser.parse_args()
    (make if args.what == "make" else check)(args.tool, args.data)


if __name__ == "__main__":
    main()

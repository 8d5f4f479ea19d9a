#!/usr/bin/env python3
"""What llama.cpp's tokenizers make of a few texts, for every pre-tokenizer it knows: tests/data/llama-cpp/tokenizers.

Needs what llama_cpp.py needs, and the TOOL that it builds.

  llama_tokens.py TOOL LLAMA OUT

`bpe.gguf` and `spm.gguf` hold vocabularies alone. The merges of the former cross words, digits and line ends, so that
the ids show where a pre-tokenizer splits. `tokens.json` holds `texts`; `bpe`: per list of values of
tokenizer.ggml.pre that agree on all texts, whether BOS is added, and the ids of each text; `spm`: the same per value of
tokenizer.ggml.add_space_prefix. Special tokens in a text are recognised; BOS is left out.
"""

import argparse
import collections
import json
import pathlib
import re
import subprocess
import tempfile

import gguf
import nanbeige
import tokenizers
from llama_cpp import add_sentencepiece, tool

SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
PARTS = (
    "Hello world", "I'll don't WE'VE it's you'RE he'd", "1 12 123 1234 12345 123456 3.14 1,000 x2y3 ⅷ ² १२३",
    "a  b   c    d", "\n\n\n x\n  y\r\n\t\tz \n", "foo_bar(baz[0], \"qux\"); // --x += y->z && !w;", "naïve café Ünïcödé",
    "a\u0301e\u0308o\u0302 हिन्दी ภาษาไทย", "日本語カタカナ漢字ひらがな 한국어 中文,标点。", "🦀🦀👩‍👩‍👧 →±≈ €$£ `~^|", "...!!!??? --- ===",
    "CamelCaseWORDMix ABCdef", " leading and trailing ", "٠١٢ русский текст Ёлка", "\u00a0nbsp\u2003em\u200bzero\ufeff",
)  # fmt: skip
TEXTS = (
    "", " ", "\n", "  ", "\n\n", " \n \n", "a", *PARTS, " ".join(PARTS[:4]), "don'T CAN'T o'clock 'tis 's",
    "<|im_start|>user\nHi there<|im_end|>\n<s> x</s>", "<|im_start|> 12<|im_end|>", "0" * 13, "=" * 9 + "\n", "x=1;\ny=22;\n\n\nz",
)  # fmt: skip


def write_bpe(path):
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, special_tokens=list(SPECIALS), show_progress=False, max_token_length=6,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    # Every run of up to five characters as well, or the whole text is one long merge.
    pieces = [text[i : i + n] for text in PARTS for n in (2, 3, 4, 5) for i in range(len(text) - n + 1)]
    bpe.train_from_iterator(pieces * 2, trainer)
    model = json.loads(bpe.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in SPECIALS else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    finish(writer)


def write_spm(path):
    writer = gguf.GGUFWriter(path, "llama")
    with tempfile.NamedTemporaryFile() as model:
        pathlib.Path(model.name).write_bytes(nanbeige.tokenizer())
        add_sentencepiece(writer, model.name)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def tokenized(binary, path, key, value):
    """Whether BOS is added, and the ids of all texts, with one key of the file replaced; none if it is refused."""
    reader = gguf.GGUFReader(path)
    with tempfile.NamedTemporaryFile() as out:
        writer = gguf.GGUFWriter(out.name, "llama")
        for name, field in reader.fields.items():
            if not name.startswith("GGUF.") and name not in ("general.architecture", key):
                kinds = field.types
                sub = kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(name, field.contents(), kinds[0], sub_type=sub)
        (writer.add_bool if isinstance(value, bool) else writer.add_string)(key, value)
        finish(writer)
        given = "".join(text + "\0" for text in TEXTS).encode()
        try:
            found = tool(binary, "tokenize", out.name, input=given, stdout=subprocess.PIPE).stdout
        except subprocess.CalledProcessError:
            return None
    rows = [[int(i) for i in line.split()] for line in found.decode().split("\n")[: 3 * len(TEXTS)]]
    with_bos, without = rows[2::3], rows[1::3]
    bos = with_bos != without
    assert not bos or all(row[1:] == bare for row, bare in zip(with_bos, without))
    return bos, without


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", type=pathlib.Path)
    parser.add_argument("llama", type=pathlib.Path, help="llama.cpp's sources, for the names of its pre-tokenizers")
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    write_bpe(args.out / "bpe.gguf")
    write_spm(args.out / "spm.gguf")
    source = (args.llama / "src/llama-vocab.cpp").read_text()
    names = list(dict.fromkeys(re.findall(r'tokenizer_pre == "([^"]+)"', source)))
    groups = collections.defaultdict(list)
    for name in names:
        found = tokenized(args.tool, args.out / "bpe.gguf", "tokenizer.ggml.pre", name)
        if found is not None:
            groups[json.dumps(found)].append(name)
    lines = [
        "  " + json.dumps(dict(pre=names, bos=json.loads(found)[0], ids=json.loads(found)[1]), separators=(",", ":"))
        for found, names in groups.items()
    ]
    spm = []
    for prefix in (True, False):
        bos, ids = tokenized(args.tool, args.out / "spm.gguf", "tokenizer.ggml.add_space_prefix", prefix)
        spm.append("  " + json.dumps(dict(add_space_prefix=prefix, bos=bos, ids=ids), separators=(",", ":")))
    bpe, spm = (",\n".join(rows) for rows in (lines, spm))
    (args.out / "tokens.json").write_text(
        f'{{"texts": {json.dumps(TEXTS)},\n "bpe": [\n{bpe}\n ],\n "spm": [\n{spm}\n ]}}\n'
    )
    for found, names in groups.items():
        print(json.loads(found)[0], names)


if __name__ == "__main__":
    main()

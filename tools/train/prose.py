"""Openly licensed English prose, named by address and hash in prose.json.

  prose.py FOLDER

fetches what FOLDER does not have yet, checks every hash, and writes FOLDER/heldout.txt. The text is cut into paragraphs; a tenth of
them, chosen by a hash of the paragraph alone, is held out.
"""

import argparse
import hashlib
import json
import pathlib
import re
import urllib.request

import dialogues

SOURCES = pathlib.Path(__file__).with_name("prose.json")
# Shorter paragraphs are headings and the like; longer ones are cut at the end of a sentence.
SHORTEST, LONGEST = 60, 1200
# Old books have words that nobody should be taught.
WITHOUT = re.compile(r"nigger|negro|blackamoor|ethiopian|\bsluts?\b|\bjews?\b|savages?\b|gutenberg", re.IGNORECASE)


def fetch(folder):
    """[(source, bytes)]; what is not there is fetched first. Nothing with another hash is used."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for source in json.loads(SOURCES.read_text()):
        path = folder / source["file"]
        if path.exists():
            data = path.read_bytes()
        else:
            with urllib.request.urlopen(source["address"], timeout=60) as answer:
                data = answer.read()
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 != source["sha256"]:
            raise SystemExit(f"{path}: the hash is {sha256}, not {source['sha256']}, from {source['address']}")
        if not path.exists():
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(data)
            temporary.rename(path)
        found.append((source, data))
    return found


def paragraphs(source, data):
    """What stands between the marks of a book, as plain text: one line each."""
    lines = data.decode().lstrip("\ufeff").splitlines()
    begins = [i for i, line in enumerate(lines) if line == source["begins"]][source["occurrence"] - 1]
    text = "\n".join(lines[begins : lines.index(source["ends"], begins)])
    signs = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": " - ", "--": " - ", "_": "", "*": ""}
    for sign, plain in signs.items():
        text = text.replace(sign, plain)
    for paragraph in re.split(r"\n\s*\n", text):
        line = " ".join(paragraph.split())
        # Headings, lists of contents and pictures are no prose.
        if len(line) < SHORTEST or "[Illustration" in line or line.upper() == line or line[-1] not in ".!?\"'":
            continue
        if WITHOUT.search(line):
            continue
        yield from cut(line)


def cut(line):
    while len(line) > LONGEST:
        at = line.rfind(". ", SHORTEST, LONGEST) + 1
        if at == 0:
            return
        yield line[:at]
        line = line[at:].strip()
    if len(line) >= SHORTEST:
        yield line


def split(folder):
    """The paragraphs that are trained on, and those held out."""
    parts = [], []
    for source, data in fetch(folder):
        for line in paragraphs(source, data):
            parts[dialogues.is_held_out(f"prose: {line}")].append(line)
    return parts


class Books:
    """The paragraphs that are trained on, in tokens."""

    def __init__(self, folder, tokenizer):
        kept, _ = split(folder)
        self.tokens = [encoded.ids for encoded in tokenizer.encode_batch(kept)]

    def piece(self, rng, length):
        """A paragraph, or as much of its beginning as is asked for."""
        return rng.choice(self.tokens)[:length]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    kept, held_out = split(folder)
    (folder / "heldout.txt").write_text("\n\n".join(held_out) + "\n")
    print(f"{len(kept)} paragraphs, {sum(map(len, kept))} characters; {len(held_out)} held out")


if __name__ == "__main__":
    main()

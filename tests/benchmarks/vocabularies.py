"""Do written tokenizers make llama.cpp's ids? Counts lines that differ, for real vocabularies.

    python -m tests.benchmarks.vocabularies [--lines N] FILE.gguf...

The files need no weights. Real ones lie in ``vendor/llama.cpp/models`` of llama-cpp-python's source
distribution (``pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36``).
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from recover.containers.gguf.reader import open_gguf
from recover.containers.huggingface.vocabulary.files import tokenizer_files
from recover.containers.huggingface.vocabulary.metadata import read_vocabulary
from tests.oracle.llama_vocabulary import LlamaVocabulary
from tests.support.many_scripts import lines

_N_AT_ONCE = 2000


class Compared(NamedTuple):
    """A vocabulary over some lines."""

    n_lines: int
    n_tokens: int
    different: list[tuple[str, list[int], list[int]]]
    """Text, our ids, llama.cpp's."""
    seconds: float
    """To make the files."""


def compare(path: Path, n_lines: int, seed: int = 5) -> Compared:
    """Ids by the library `tokenizers` and by llama.cpp."""
    model = open_gguf(path)
    begin = time.perf_counter()
    text = tokenizer_files(model)["tokenizer.json"].decode()
    seconds = time.perf_counter() - begin
    tokenizer = Tokenizer.from_str(text)
    vocabulary = read_vocabulary(model)
    special = [vocabulary.tokens[i] for i in vocabulary.added][:60]
    texts = lines(n_lines, seed, special)
    different, n_tokens = [], 0
    with LlamaVocabulary(path) as llama:
        for start in range(0, n_lines, _N_AT_ONCE):
            part = texts[start : start + _N_AT_ONCE]
            for line, own in zip(part, tokenizer.encode_batch(part), strict=True):
                expected = llama.encode(line, around=True)
                n_tokens += len(expected)
                if own.ids != expected:
                    different.append((line, own.ids, expected))
    return Compared(n_lines, n_tokens, different, seconds)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.gguf")
    parser.add_argument("--lines", type=int, default=100_000)
    options = parser.parse_args(argv)
    total = 0
    print(f"{'file':36} {'lines':>8} {'tokens':>10} {'differ':>7} {'files in':>9}")
    for path in options.files:
        found = compare(path, options.lines)
        total += len(found.different)
        print(
            f"{path.name:36} {found.n_lines:8} {found.n_tokens:10} {len(found.different):7}"
            f" {found.seconds:7.1f} s",
            flush=True,
        )
        for line, own, expected in found.different[:3]:
            print(f"    {line[:80]!a}: {own[:12]}, llama.cpp {expected[:12]}")
    return total > 0


if __name__ == "__main__":
    raise SystemExit(main())

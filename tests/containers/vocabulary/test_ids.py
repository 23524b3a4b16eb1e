"""The files of a tokenizer make the ids that llama.cpp makes of the same vocabulary."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from recover.containers.gguf.reader import open_gguf
from recover.containers.huggingface.vocabulary.files import tokenizer_files
from recover.containers.huggingface.vocabulary.splits import SPLITS
from recover.errors import VocabularyError
from tests.oracle.llama_vocabulary import LlamaVocabulary
from tests.support import vocabularies
from tests.support.many_scripts import lines
from tests.support.vocabularies import BYTE, CONTROL, NORMAL, UNKNOWN

pytestmark = pytest.mark.inference

# One name of each way to cut.
KINDS = {split[:2]: name for name, split in SPLITS.items() if split.of_bytes}.values()
TEXTS = lines(80, seed=2, special=["<|begin|>", "<|end|>", "<s>", "</s>", *vocabularies.USER])
TEXTS += ["x'sabc", "abCD", "\n\n\n", "x" + " " * 14 + "y", vocabularies.WHOLE, "a \n\n \n b"]
TEXTS += [
    "",
    " ",
    "\n",
    "  ",
    "a  b",
    "12345678",
    "x's y'S z'\u017f",
    "\u0915\u094d\u0937",
    "e\u0301",
]


def tokenizer_of(path: Path) -> Tokenizer:
    files = tokenizer_files(open_gguf(path))
    return Tokenizer.from_str(files["tokenizer.json"].decode())


def ids(tokenizer: Tokenizer, *, around: bool) -> list[list[int]]:
    return [each.ids for each in tokenizer.encode_batch(TEXTS, add_special_tokens=around)]


def check(path: Path) -> list[list[int]]:
    tokenizer = tokenizer_of(path)
    with LlamaVocabulary(path) as llama:
        for around in (False, True):
            found = ids(tokenizer, around=around)
            expected = [llama.encode(text, around=around) for text in TEXTS]
            wrong = [
                (text, a, b) for text, a, b in zip(TEXTS, found, expected, strict=True) if a != b
            ]
            assert not wrong, f"{len(wrong)} of {len(TEXTS)} lines, the first: {wrong[0]}"
    return found


@pytest.mark.parametrize("pre", KINDS)
def test_bytes(pre: str, tmp_path: Path) -> None:
    check(vocabularies.write_byte_level(tmp_path / "a.gguf", pre))


def test_bytes_that_are_no_tokens(tmp_path: Path) -> None:
    tokens, merges = vocabularies.byte_level()
    kept = [token for token in tokens if not {"#", "\u0109", "\u0121"} & set(token)]
    pairs = [each for each in merges if not {"#", "\u0109", "\u0121"} & set(each)]
    entries = {"pre": "gpt-2", "tokens": kept, "merges": pairs, "add_bos_token": False}
    path = vocabularies.write(tmp_path / "a.gguf", "gpt2", entries)
    texts = ["a#n#d", "an\x7fd", "a\td and #", "##", "t#he t\x7f#he"]
    tokenizer = tokenizer_of(path)
    with LlamaVocabulary(path) as llama:
        for text in texts:
            assert tokenizer.encode(text).ids == llama.encode(text, around=True), text


def test_the_texts_tell_ways_to_cut_apart(tmp_path: Path) -> None:
    found: dict[str, list[str]] = {}
    for pre in KINDS:
        path = vocabularies.write_byte_level(tmp_path / f"{pre}.gguf", pre, add_bos_token=False)
        key = str(ids(tokenizer_of(path), around=True))
        found.setdefault(key, []).append(pre)
    assert len(found) == len(KINDS), [names for names in found.values() if len(names) > 1]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"add_space_prefix": False},
        {"add_eos_token": True, "add_bos_token": False},
        {"general.name": "Phi-3 mini", "user": ("<tool>", "<b>")},
    ],
)
def test_pieces(more: dict[str, Any], tmp_path: Path) -> None:
    check(vocabularies.write_pieces(tmp_path / "a.gguf", **more))


@pytest.mark.parametrize(
    "more",
    [{}, {"remove_extra_whitespaces": False}, {"add_space_prefix": False}],
)
def test_unigrams(more: dict[str, Any], tmp_path: Path) -> None:
    check(vocabularies.write_unigram(tmp_path / "a.gguf", **more))


def test_unigrams_among_equals_unknown_characters_and_bytes(tmp_path: Path) -> None:
    """Sums that are equal, a character worth less than two bad tokens, and spelt bytes."""
    scored = {
        "\u2581": -2.3,
        "yyy": -3.3,
        "yy": -2.7,
        "y": -4.9,
        "zz": -0.1,
        "zzz": -0.15,
        "z": -7.7,
        "ab": -19.0,
        "cd": -19.0,
        "bcd": -1.0,
        "b": -19.5,
        "c": -19.5,
        "d": -19.5,
        **dict.fromkeys("<0x41>", -9.0),
    }
    fixed = {"<pad>": CONTROL, "</s>": CONTROL, "<unk>": UNKNOWN, "<0x41>": BYTE}
    path = vocabularies.write(
        tmp_path / "a.gguf",
        "t5",
        {
            "tokens": [*fixed, *scored],
            "scores": [*([0.0] * len(fixed)), *scored.values()],
            "token_type": [*fixed.values(), *([NORMAL] * len(scored))],
            "eos_token_id": 1,
            "unknown_token_id": 2,
        },
    )
    texts = ["y" * n + "z" * (50 - n) for n in range(50)]
    texts += ["abcd", "abcd abcd", "<0x41>", "y<0x41>z<0x41", "q<q", "<<0x41>>"]
    tokenizer = tokenizer_of(path)
    with LlamaVocabulary(path) as llama:
        for text in texts:
            assert tokenizer.encode(text).ids == llama.encode(text, around=True), text


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_tables_of_replacements(kind: str, tmp_path: Path) -> None:
    """llama.cpp uses them for unigrams only."""
    table: dict[str, Any] = {"precompiled_charsmap": [4, 0, 0, 0, 0, 0, 0, 0]}
    if kind == "llama":
        check(vocabularies.write_pieces(tmp_path / "a.gguf", **table))
        return
    with pytest.raises(VocabularyError, match=r"table of replacements .*--config FOLDER"):
        tokenizer_of(vocabularies.write_unigram(tmp_path / "a.gguf", **table))


def test_merges_of_pieces(tmp_path: Path) -> None:
    check(vocabularies.write_merged_pieces(tmp_path / "a.gguf"))


@pytest.mark.parametrize("write", [vocabularies.write_byte_level, vocabularies.write_pieces])
def test_texts_come_back(write: Any, tmp_path: Path) -> None:
    more = {"pre": "llama-bpe"} if write is vocabularies.write_byte_level else {}
    tokenizer = tokenizer_of(write(tmp_path / "a.gguf", **more))
    for text in TEXTS:
        if not any(each in text for each in ("<", "\u2581", *vocabularies.USER_PIECES)):
            found = tokenizer.encode(text, add_special_tokens=False).ids
            assert tokenizer.decode(found, skip_special_tokens=False) == text

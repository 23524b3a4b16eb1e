"""Vocabularies of folders in GGUF files: what comes out is what went in."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from recover.containers.gguf.reader import open_gguf
from recover.containers.huggingface.vocabulary.files import tokenizer_files
from recover.containers.huggingface.vocabulary.splits import SPLITS
from recover.errors import ReblockError, VocabularyError
from recover.reblock.vocabulary import vocabulary_entries
from tests.oracle.llama_vocabulary import LlamaVocabulary
from tests.support import vocabularies
from tests.support.many_scripts import lines

pytestmark = pytest.mark.inference

TEXTS = lines(150, seed=3, special=["<|begin|>", "<s>", "</s>", *vocabularies.USER_PIECES])


def metadata(path: Path) -> dict[str, Any]:
    fields = GGUFReader(path).fields
    return {key: each.contents() for key, each in fields.items() if key.startswith("tokenizer.")}


def folder_of(path: Path, folder: Path, n_tokens: int) -> Path:
    folder.mkdir()
    for name, raw in tokenizer_files(open_gguf(path)).items():
        (folder / name).write_bytes(raw)
    (folder / "config.json").write_text(json.dumps({"vocab_size": n_tokens}))
    return folder


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "gpt-2", "deepseek-v3", "tekken", "falcon"])
def test_bytes_there_and_back(pre: str, tmp_path: Path) -> None:
    template = {"tokenizer.chat_template": "{{ a }}", "add_eos_token": True}
    path = vocabularies.write_byte_level(tmp_path / "a.gguf", pre, **template)
    before = metadata(path)
    folder = folder_of(path, tmp_path / "folder", len(before["tokenizer.ggml.tokens"]))
    after = {key: value for key, _, value in vocabulary_entries(folder)}
    assert after.pop("tokenizer.ggml.add_sep_token", False) is False
    assert SPLITS[after.pop("tokenizer.ggml.pre")].patterns == SPLITS[pre].patterns
    del before["tokenizer.ggml.pre"]
    before.setdefault("tokenizer.ggml.add_bos_token", SPLITS[pre].adds_bos)
    assert after == before


def test_pieces_there_and_back(tmp_path: Path) -> None:
    path = vocabularies.write_pieces(tmp_path / "a.gguf", unknown_token_id=0)
    before = metadata(path)
    folder = folder_of(path, tmp_path / "folder", len(before["tokenizer.ggml.tokens"]))
    (folder / "tokenizer.model").unlink(missing_ok=True)
    after = {key: value for key, _, value in vocabulary_entries(folder, "llama")}
    for key in ("tokens", "token_type", "model", "bos_token_id", "eos_token_id"):
        assert after[f"tokenizer.ggml.{key}"] == before[f"tokenizer.ggml.{key}"]
    assert after["tokenizer.ggml.add_space_prefix"] is True
    entries = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in after.items()
        if key != "tokenizer.ggml.model"
    }
    other = vocabularies.write(tmp_path / "b.gguf", "llama", entries)
    with LlamaVocabulary(path) as llama, LlamaVocabulary(other) as again:
        for text in TEXTS:
            assert again.encode(text, around=True) == llama.encode(text, around=True), text


def test_pieces_of_their_own_file(tmp_path: Path) -> None:
    more: dict[str, Any] = {"padding_token_id": 3, "add_eos_token": True, "add_bos_token": True}
    path = vocabularies.write_pieces(tmp_path / "a.gguf", **more)
    before = metadata(path)
    folder = folder_of(path, tmp_path / "folder", len(before["tokenizer.ggml.tokens"]))
    after = {key: value for key, _, value in vocabulary_entries(folder, "llama")}
    assert after.pop("tokenizer.ggml.add_sep_token") is False
    kinds, scores = (f"tokenizer.ggml.{name}" for name in ("token_type", "scores"))
    special = [i for i, kind in enumerate(before[kinds]) if kind in (2, 3, 4)]
    for i in special:  # as the converter has added tokens
        assert after[scores][i] == -1000.0
        assert after[kinds][i] == max(before[kinds][i], 3)
        after[scores][i], after[kinds][i] = before[scores][i], before[kinds][i]
    assert after == before
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (folder / name).unlink()
    alone = {key: value for key, _, value in vocabulary_entries(folder)}
    for name in ("bos", "eos", "unknown", "padding"):
        key = f"tokenizer.ggml.{name}_token_id"
        assert alone[key] == before[key]
    assert alone["tokenizer.ggml.tokens"] == before["tokenizer.ggml.tokens"]


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        ({"model": {"type": "WordPiece", "vocab": {}}}, VocabularyError, "type 'WordPiece'"),
        ({"added_tokens": [{"id": 9999, "content": "x"}]}, ReblockError, "'x' has the id 9999"),
        ({"added_tokens": [{"id": 5, "content": "x"}]}, ReblockError, "two tokens have one id"),
    ],
)
def test_contradictions(
    change: dict[str, Any], error: type[Exception], expected: str, tmp_path: Path
) -> None:
    path = vocabularies.write_byte_level(tmp_path / "a.gguf", "gpt-2")
    folder = folder_of(path, tmp_path / "folder", 1600)
    document = json.loads((folder / "tokenizer.json").read_text()) | change
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(error, match=expected):
        vocabulary_entries(folder)


def test_ways_to_cut_that_llama_cpp_has_not(tmp_path: Path) -> None:
    path = vocabularies.write_byte_level(tmp_path / "a.gguf", "gpt-2")
    folder = folder_of(path, tmp_path / "folder", 1600)
    document = json.loads((folder / "tokenizer.json").read_text())
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "[aeiou]"}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(VocabularyError, match=r"nothing that llama\.cpp knows"):
        vocabulary_entries(folder)


def test_no_vocabulary(tmp_path: Path) -> None:
    assert vocabulary_entries(tmp_path) == []

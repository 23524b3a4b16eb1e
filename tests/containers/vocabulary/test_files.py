"""The files of a tokenizer: special tokens, templates, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from recover.containers.gguf.reader import open_gguf
from recover.containers.huggingface.vocabulary.files import tokenizer_files
from recover.errors import VocabularyError
from tests.hostile.checks import check_message
from tests.support.vocabularies import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    byte_level,
    write,
    write_byte_level,
    write_pieces,
    write_unigram,
)


def documents(path: Path) -> dict[str, Any]:
    files = tokenizer_files(open_gguf(path))
    return {name: json.loads(raw) for name, raw in files.items() if name.endswith(".json")}


def test_special_tokens(tmp_path: Path) -> None:
    path = write_byte_level(
        tmp_path / "a.gguf", "llama-bpe", add_eos_token=True, padding_token_id=4
    )
    found = documents(path)
    config = found["tokenizer_config.json"]
    assert config["bos_token"] == "<|begin|>"
    assert config["eos_token"] == "<|end|>"
    assert config["pad_token"] == byte_level()[0][4]
    assert "unk_token" not in config
    assert (config["add_bos_token"], config["add_eos_token"]) == (True, True)
    assert config["model_max_length"] == 2048
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert found["special_tokens_map.json"] == {
        name: config[name] for name in ("bos_token", "eos_token", "pad_token")
    }
    added = {each["content"]: each["special"] for each in found["tokenizer.json"]["added_tokens"]}
    assert added == {
        "<|begin|>": True,
        "<|end|>": True,
        "<tool>": False,
        "<b>": False,
        "\t\t\t\t": False,
    }


def test_fillers_at_the_end_are_no_tokens(tmp_path: Path) -> None:
    path = write_byte_level(tmp_path / "a.gguf", "llama-bpe")
    vocabulary = documents(path)["tokenizer.json"]["model"]["vocab"]
    n = len(open_gguf(path).get("tokenizer.ggml.tokens"))
    assert sorted(vocabulary.values()) == list(range(n - 2))


def test_tokens_that_llama_cpp_takes_for_special_ones(tmp_path: Path) -> None:
    tokens, merges = byte_level()
    more = [("<|im_end|>", NORMAL), ("</s>", USER_DEFINED), ("<x>", NORMAL), ("<y>", CONTROL)]
    entries = {
        "pre": "qwen2",
        "tokens": [*tokens, *(token for token, _ in more)],
        "token_type": [NORMAL] * len(tokens) + [kind for _, kind in more],
        "merges": merges,
    }
    found = documents(write(tmp_path / "a.gguf", "gpt2", entries))
    added = {each["content"]: each["special"] for each in found["tokenizer.json"]["added_tokens"]}
    assert added == {"<|im_end|>": True, "</s>": True, "<y>": True}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, None),
        ({"tokenizer.chat_template": "{{ a }}"}, "{{ a }}"),
        (
            {
                "tokenizer.chat_template": "{{ a }}",
                "tokenizer.chat_templates": ["rag"],
                "tokenizer.chat_template.rag": "{{ b }}",
            },
            [{"name": "default", "template": "{{ a }}"}, {"name": "rag", "template": "{{ b }}"}],
        ),
    ],
)
def test_templates_of_chats(entries: dict[str, Any], expected: object, tmp_path: Path) -> None:
    config = documents(write_pieces(tmp_path / "a.gguf", **entries))["tokenizer_config.json"]
    assert config.get("chat_template") == expected


def refusal(path: Path) -> str:
    with pytest.raises(VocabularyError) as caught:
        tokenizer_files(open_gguf(path))
    check_message(str(caught.value), path)
    return str(caught.value)


def test_unknown_kinds_are_named(tmp_path: Path) -> None:
    for said in (
        refusal(write_byte_level(tmp_path / "a.gguf", "future-bpe")),
        refusal(write(tmp_path / "b.gguf", "rwkv", {"tokens": ["a"]})),
        refusal(write(tmp_path / "c.gguf", "none", {})),
        refusal(write(tmp_path / "d.gguf", "bert", {"tokens": ["[UNK]", "\u2581a", "b"]})),
        refusal(write_unigram(tmp_path / "e.gguf", precompiled_charsmap=[4, 0, 0, 0])),
    ):
        assert "--config FOLDER" in said
    assert "pre-tokenizer 'future-bpe'" in refusal(tmp_path / "a.gguf")
    assert "kind 'rwkv'" in refusal(tmp_path / "b.gguf")
    assert "hold no vocabulary" in refusal(tmp_path / "c.gguf")
    assert "kind 'bert'" in refusal(tmp_path / "d.gguf")
    assert "table of replacements" in refusal(tmp_path / "e.gguf")


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"tokens": ["a", "b", "a"]}, "token 'a' is there twice"),
        ({"tokens": ["a", "b"], "merges": ["a b"]}, "the merge of 'a' and 'b' needs a token"),
        ({"tokens": ["a", "b"], "token_type": [1]}, "2 tokens, but metadata tokenizer.ggml"),
        ({"tokens": ["a", "b"], "add_bos_token": True}, "a token bos, but its id is not stated"),
        ({"tokens": ["a", "b"], "token_type": ["x", "y"]}, "is no list of the right type"),
        ({"merges": ["a b"]}, "hold no tokens"),
    ],
)
def test_contradictions(entries: dict[str, Any], expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", "gpt2", {"pre": "gpt-2"} | entries)
    assert expected in refusal(path)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_unigram(tmp_path / "a.gguf")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(VocabularyError, match=r"tokenizers, which is not installed; .*`hf`"):
        tokenizer_files(open_gguf(path))

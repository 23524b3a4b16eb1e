"""Special tokens of a folder are what gguf-py makes of them, as llama.cpp's converter uses it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from recover.errors import ReblockError
from recover.reblock.special_tokens import special_entries

N_TOKENS = 12
TEXTS = ["<s>", "</s>", "<u>", "<p>", "[CLS]", "[SEP]", "<e>"]
ADDED = [{"id": i, "content": text, "special": True} for i, text in enumerate(TEXTS)]


class Writer:
    """Takes what gguf-py writes, by the names of GGUF's keys."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        names = {"unk": "unknown", "sep": "seperator", "pad": "padding"}
        kind = name.removeprefix("add_")
        if kind.endswith("_token_id"):
            short = kind.removesuffix("_token_id")
            key = f"tokenizer.ggml.{names.get(short, short)}_token_id"
        elif kind in ("add_bos_token", "add_eos_token", "add_sep_token"):
            key = f"tokenizer.ggml.{kind}"
        else:
            raise AttributeError(name)
        return lambda value: self.entries.update({key: value})

    def add_chat_template(self, value: Any) -> None:
        own = gguf.GGUFWriter("", "llama")
        own.add_chat_template(value)
        for key, each in own.kv_data[0].items():
            if key.startswith("tokenizer"):
                names = key == "tokenizer.chat_templates"
                self.entries[key] = sorted(each.value) if names else each.value


def expected(folder: Path) -> dict[str, Any]:
    writer = Writer()
    gguf.SpecialVocab(folder, n_vocab=N_TOKENS).add_to_gguf(writer, quiet=True)
    return writer.entries


def write(folder: Path, documents: Mapping[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, document in documents.items():
        text = document if isinstance(document, str) else json.dumps(document)
        (folder / name).write_text(text)


def found(folder: Path, documents: Mapping[str, Any]) -> dict[str, Any]:
    tokenizer, config = documents.get("tokenizer.json"), documents.get("config.json", {})
    entries = {key: value for key, _, value in special_entries(folder, tokenizer, config, N_TOKENS)}
    if "tokenizer.chat_templates" in entries:
        entries["tokenizer.chat_templates"] = sorted(entries["tokenizer.chat_templates"])
    return entries


def special(text: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": text, "type_id": 0}}


def starts(processor: Any) -> set[str]:
    """The tokens in front of texts: where no other is stated, gguf-py 0.19 leaves them out."""
    each = (processor or {}).get("processors", [processor or {}])
    first = [part["single"][0] for part in each if len(part.get("single", ())) > 1]
    return {item["SpecialToken"]["id"] for item in first if "SpecialToken" in item}


A, B = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
token = st.sampled_from(TEXTS)
stated = st.one_of(token, st.none(), st.just("<no such token>"))
around = st.lists(token.map(special), max_size=1)
template = st.builds(
    lambda start, end, middle: {
        "type": "TemplateProcessing",
        "single": [*start, A, *end],
        "pair": [*start, A, *middle, B, *end],
    },
    around,
    around,
    st.lists(token.map(special), max_size=2),
)
roberta = st.builds(
    lambda cls, sep: {"type": "RobertaProcessing", "cls": [cls, 4], "sep": [sep, 5]}, token, token
)
processor = st.one_of(
    st.none(),
    template,
    roberta,
    st.lists(st.one_of(template, roberta), max_size=2).map(
        lambda each: {"type": "Sequence", "processors": each}
    ),
)
config = st.dictionaries(
    st.sampled_from([f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls")]),
    stated,
).flatmap(
    lambda own: st.dictionaries(
        st.sampled_from(["add_bos_token", "add_eos_token", "add_sep_token"]), st.booleans()
    ).map(lambda more: own | more)
)
model = st.dictionaries(
    st.sampled_from(["bos_token_id", "eos_token_id", "pad_token_id"]),
    st.one_of(st.integers(0, 20), st.none(), st.lists(st.integers(0, 5), max_size=2)),
)


@given(
    processor=processor,
    config=config,
    model=model,
    has_tokenizer=st.booleans(),
    is_nested=st.booleans(),
)
def test_as_gguf_py(
    processor: Any,
    config: dict[str, Any],
    model: dict[str, Any],
    has_tokenizer: bool,
    is_nested: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assume(not config or starts(processor) <= {config.get("bos_token"), config.get("cls_token")})
    documents = {"config.json": {"text_config": model} if is_nested else model}
    if has_tokenizer:
        documents["tokenizer.json"] = {"added_tokens": ADDED, "post_processor": processor}
    if config:
        documents["tokenizer_config.json"] = config
    folder = tmp_path_factory.getbasetemp() / "special"
    write(folder, documents)
    assert found(folder, documents) == expected(folder)


def test_a_token_in_front_of_texts_is_that_for_the_beginning(tmp_path: Path) -> None:
    processor = {"type": "TemplateProcessing", "single": [special("<s>"), A], "pair": []}
    documents = {
        "tokenizer.json": {"added_tokens": ADDED, "post_processor": processor},
        "tokenizer_config.json": {"eos_token": {"content": "</s>"}},
    }
    write(tmp_path / "a", documents)
    assert found(tmp_path / "a", documents) == {
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.cls_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
    }


@pytest.mark.parametrize(
    "documents",
    [
        {"tokenizer_config.json": {"chat_template": "a"}},
        {"tokenizer_config.json": {"x": 1}, "chat_template.jinja": "b\n"},
        {"tokenizer_config.json": {"x": 1}, "chat_template.json": {"chat_template": "c"}},
        {"tokenizer_config.json": {"chat_template": "a"}, "chat_template.jinja": "b"},
        {
            "tokenizer_config.json": {
                "chat_template": [
                    {"name": "default", "template": "a"},
                    {"name": "tool use", "template": "b"},
                    {"name": "", "template": "c"},
                ]
            }
        },
        {"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "b"}]}},
        {"chat_template.jinja": "b"},
    ],
)
def test_templates_of_chats(documents: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "a", documents)
    assert found(tmp_path / "a", documents) == expected(tmp_path / "a")


def test_templates_in_a_folder_of_their_own(tmp_path: Path) -> None:
    documents = {"tokenizer_config.json": {"x": 1}, "chat_template.jinja": "b"}
    write(tmp_path / "a", documents)
    (tmp_path / "a" / "additional_chat_templates").mkdir()
    (tmp_path / "a" / "additional_chat_templates" / "rag.jinja").write_text("c")
    entries = found(tmp_path / "a", documents)
    assert entries == expected(tmp_path / "a")
    assert entries["tokenizer.chat_template.rag"] == "c"


def test_what_is_no_json(tmp_path: Path) -> None:
    write(tmp_path / "a", {"tokenizer_config.json": "{"})
    with pytest.raises(ReblockError, match="is no JSON"):
        found(tmp_path / "a", {})

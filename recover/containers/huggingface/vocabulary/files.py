"""The files of a Hugging Face tokenizer, from the metadata of a GGUF file."""

import json
from typing import Any

from recover._text import printable
from recover.containers.huggingface.vocabulary.metadata import (
    HOW_ELSE,
    SENTENCEPIECE,
    SPECIAL,
    Vocabulary,
    read_vocabulary,
)
from recover.containers.huggingface.vocabulary.parts import added_tokens, tokenizer_parts
from recover.containers.huggingface.vocabulary.pieces import pieces_file
from recover.containers.model import Model
from recover.errors import VocabularyError

HOW_TO_INSTALL = (
    "install it with `pip install 'tokenizers>=0.20,<1'`, or this package with its extra `hf`"
)

_TEMPLATE = "tokenizer.chat_template"
_TEMPLATE_NAMES = "tokenizer.chat_templates"
# The embedding's length is no bound of a text's; this is Hugging Face's word for none.
_NO_LIMIT = 1_000_000_000_000_000_019_884_624_838_656


def tokenizer_files(model: Model) -> dict[str, bytes]:
    """The tokenizer's files for a model's folder.

    ``tokenizer.json`` makes the same ids of a text as llama.cpp does with the file that the
    metadata are from. ``tokenizer_config.json`` has the special tokens and the templates of chats,
    ``special_tokens_map.json`` the former once more, for older programs. A vocabulary of
    SentencePiece's has its own file as well, ``tokenizer.model``.

    Parameters
    ----------
    model : Model
        With the metadata of a GGUF file.

    Returns
    -------
    dict of str to bytes
        Contents by name.

    Raises
    ------
    VocabularyError
        If the library `tokenizers` is not installed, the model has no vocabulary, or nothing is
        known of its kind.
    GGUFError
        If a value cannot be read.
    """
    vocabulary = read_vocabulary(model)
    try:
        parts = tokenizer_parts(vocabulary)
    except VocabularyError as error:
        raise VocabularyError(f"{printable(model.path)}: {error}; {HOW_ELSE}") from None
    special = {
        f"{name}_token": vocabulary.tokens[vocabulary.ids[name]]
        for name in SPECIAL
        if name in vocabulary.ids
    }
    found = {
        "tokenizer.json": _checked(model, vocabulary, parts),
        "tokenizer_config.json": _json(_config(model, vocabulary, special)),
        "special_tokens_map.json": _json(special),
    }
    pieces = pieces_file(vocabulary) if vocabulary.kind == SENTENCEPIECE else None
    return found if pieces is None else {**found, "tokenizer.model": pieces}


def _json(document: Any) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode()


def _checked(model: Model, vocabulary: Vocabulary, parts: dict[str, Any]) -> bytes:
    """The text of a ``tokenizer.json`` that the library reads, and gives every token its id."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise VocabularyError(
            f"a tokenizer's files need the library tokenizers, which is not installed;"
            f" {HOW_TO_INSTALL}; or {HOW_ELSE}"
        ) from None
    try:
        tokenizer = Tokenizer.from_str(json.dumps(parts, ensure_ascii=False))
    except Exception as error:  # the library raises nothing more special
        raise VocabularyError(
            f"{printable(model.path)}: the library tokenizers refuses the vocabulary:"
            f" {' '.join(str(error)[:200].split())}; {HOW_ELSE}"
        ) from None
    found = tokenizer.get_vocab(with_added_tokens=True)
    used = vocabulary.tokens[: vocabulary.n_used]
    if len(found) != len(used) or any(found.get(token) != i for i, token in enumerate(used)):
        raise VocabularyError(
            f"{printable(model.path)}: the library tokenizers gives tokens other ids; {HOW_ELSE}"
        )
    return tokenizer.to_str(pretty=True).encode()


def _config(model: Model, vocabulary: Vocabulary, special: dict[str, str]) -> dict[str, Any]:
    decoder = {
        str(each["id"]): {key: value for key, value in each.items() if key != "id"}
        for each in added_tokens(vocabulary)
    }
    arch = model.get("general.architecture")
    length = model.get(f"{arch}.context_length")
    config: dict[str, Any] = {
        "add_bos_token": vocabulary.adds_bos,
        "add_eos_token": vocabulary.adds_eos,
        "added_tokens_decoder": decoder,
        **special,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": length if isinstance(length, int) else _NO_LIMIT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    template = _chat_template(model)
    if template is not None:
        config["chat_template"] = template
    return config


def _chat_template(model: Model) -> str | list[dict[str, str]] | None:
    """The template of chats, or all of them by their names if there are several."""
    main = model.get(_TEMPLATE)
    names = model.get(_TEMPLATE_NAMES, [])
    found = {"default": main} | {name: model.get(f"{_TEMPLATE}.{name}") for name in names}
    found = {name: text for name, text in found.items() if isinstance(text, str)}
    if set(found) <= {"default"}:
        return found.get("default")
    return [{"name": name, "template": text} for name, text in found.items()]

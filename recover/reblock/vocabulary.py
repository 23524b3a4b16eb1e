"""A folder's vocabulary as GGUF's metadata, as llama.cpp's converter writes it.

What is taken from where is what ``TextModel`` of the converter (conversion/base.py) takes. One
thing is otherwise: a ``tokenizer.json`` in SentencePiece's manner without a ``tokenizer.model``
gets scores in the order of its merges here. The converter gives all tokens the same one, with which
llama.cpp makes other tokens of a text than the original tokenizer does.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from recover._text import printable, quoted
from recover.containers.gguf.header import ValueType
from recover.containers.huggingface.architectures import text_config
from recover.containers.huggingface.vocabulary.files import HOW_TO_INSTALL
from recover.containers.huggingface.vocabulary.metadata import TokenType
from recover.containers.huggingface.vocabulary.parts import SPACE
from recover.containers.huggingface.vocabulary.splits import SPLITS
from recover.errors import ReblockError, VocabularyError
from recover.reblock.sentencepiece import load_vocabulary
from recover.reblock.special_tokens import Entry, read_json, special_entries

PIECES, TOKENIZER = "tokenizer.model", "tokenizer.json"

_ADDED_SCORE, _PADDING_SCORE = -1000.0, -10000.0
_MOST_TOKENS = 1 << 22
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SAID_SPECIAL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_NO_SPACE = ("gemma", "gemma2", "gemma3")


def vocabulary_entries(folder: Path, arch: str | None = None) -> list[Entry]:
    """Metadata for the vocabulary of a model's folder.

    Parameters
    ----------
    folder : Path
        With ``tokenizer.model`` or ``tokenizer.json``; ``config.json`` says how many tokens the
        embedding has.
    arch : str, optional
        GGUF's name of the architecture.

    Returns
    -------
    list of (str, ValueType, value)
        Key, type (of the elements of lists) and value; empty if there is neither file.

    Raises
    ------
    ReblockError
        If a file cannot be read, or contradicts itself.
    VocabularyError
        If it is of a kind that is not known, or the library `tokenizers` is not installed.
    """
    config = read_json(folder / "config.json") or {}
    tokenizer = read_json(folder / TOKENIZER)
    has_pieces = (folder / PIECES).exists()
    if tokenizer is None and not has_pieces:
        return []
    n_tokens = text_config(config).get("vocab_size")
    if n_tokens is not None and not (type(n_tokens) is int and 0 < n_tokens <= _MOST_TOKENS):
        raise ReblockError(
            f"config.json: a vocabulary of {n_tokens} tokens; at most {_MOST_TOKENS} are supported"
        )
    if has_pieces:
        entries = list(_of_pieces(folder, n_tokens, arch))
    else:
        entries = list(_of_merges(folder, tokenizer or {}, n_tokens, arch))
    n_found = len(next(value for key, _, value in entries if key == "tokenizer.ggml.tokens"))
    special = special_entries(folder, tokenizer, config, n_found)
    return [*entries, *special] if special or not has_pieces else [*entries, *_stated_ids(folder)]


def _model(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    model = tokenizer.get("model")
    return model if isinstance(model, dict) else {}


def _entries(model: str, pre: str, tokens: "_Tokens") -> Iterator[Entry]:
    yield "tokenizer.ggml.model", ValueType.STRING, model
    yield "tokenizer.ggml.pre", ValueType.STRING, pre
    yield "tokenizer.ggml.tokens", ValueType.STRING, tokens.texts
    if model == "llama":
        yield "tokenizer.ggml.scores", ValueType.FLOAT32, tokens.scores
    yield "tokenizer.ggml.token_type", ValueType.INT32, [int(kind) for kind in tokens.kinds]


class _Tokens:
    """Tokens by id; those that nothing is known of fill up the embedding.

    Attributes
    ----------
    texts : list of str
    scores : list of float
    kinds : list of int
        Numbers of `TokenType`.
    """

    def __init__(self, n: int) -> None:
        self.texts = [f"[PAD{i}]" for i in range(n)]
        self.scores = [_PADDING_SCORE] * n
        self.kinds = [int(TokenType.UNUSED)] * n

    def put(self, i: int, text: str, score: float, kind: int) -> None:
        self.texts[i], self.scores[i], self.kinds[i] = text, score, kind

    def put_added(self, i: int, text: str, is_special: bool) -> None:
        """A token that a text is searched for."""
        if is_special or _looks_special(text):
            self.put(i, text, _ADDED_SCORE, TokenType.CONTROL)
        else:  # llama.cpp searches for it in the text as it is
            self.put(i, text.replace(SPACE, " "), _ADDED_SCORE, TokenType.USER_DEFINED)


def _looks_special(text: str) -> bool:
    """`does_token_look_special` of llama.cpp's converter."""
    ends = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
    return text in _SAID_SPECIAL or any(text.startswith(a) and text.endswith(b) for a, b in ends)


def _of_pieces(folder: Path, n_tokens: int | None, arch: str | None) -> Iterator[Entry]:
    """From a ``tokenizer.model``, and tokens that were added to it."""
    pieces = load_vocabulary(folder / PIECES).pieces
    tokens = _Tokens(len(pieces) if n_tokens is None else n_tokens)
    n = len(tokens.texts)
    for i, (text, score, kind) in enumerate(pieces[:n]):
        # Pieces that a user defined are normal ones there, unless they are among the added ones.
        tokens.put(i, text, score, TokenType.NORMAL if kind == TokenType.USER_DEFINED else kind)
    for text, number in (read_json(folder / "added_tokens.json") or {}).items():
        if type(number) is int and 0 <= number < n:
            tokens.put(number, text, _ADDED_SCORE, TokenType.USER_DEFINED)
    config = read_json(folder / "tokenizer_config.json") or {}
    for i, text, is_special in _decoder(config):
        if i < n:
            tokens.put_added(i, text, is_special)
    space = False if arch in _NO_SPACE else config.get("add_prefix_space")
    if isinstance(space, bool) and (arch in _NO_SPACE or arch == "llama"):
        yield "tokenizer.ggml.add_space_prefix", ValueType.BOOL, space
    yield from _entries("llama", "default", tokens)


def _stated_ids(folder: Path) -> Iterator[Entry]:
    """Special tokens that a ``tokenizer.model`` states, where nothing else does."""
    for name, number in load_vocabulary(folder / PIECES).ids:
        yield f"tokenizer.ggml.{name}_token_id", ValueType.UINT32, number


def _decoder(config: Mapping[str, Any]) -> Iterator[tuple[int, str, bool]]:
    """Added tokens of a ``tokenizer_config.json``: id, text, whether it is special."""
    found = config.get("added_tokens_decoder")
    for number, each in found.items() if isinstance(found, dict) else ():
        text = each.get("content") if isinstance(each, dict) else None
        if isinstance(text, str) and number.isascii() and number.isdigit():
            yield int(number), text, bool(each.get("special"))


def _of_spelt_merges(tokenizer: Mapping[str, Any], n_tokens: int | None) -> Iterator[Entry]:
    """From a ``tokenizer.json`` whose tokens are spelt as they are, with bytes for the rest."""
    vocabulary, added = _vocabulary(tokenizer, n_tokens)
    order: dict[str, int] = {}
    for left, right in _merges(tokenizer):
        order.setdefault(left + right, len(order))
    tokens = _Tokens(n_tokens or max(vocabulary.values()) + 1)
    for text, i in vocabulary.items():
        kind = TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL
        score = 0.0 if kind == TokenType.BYTE else -float(order.get(text, len(order)))
        tokens.put(i, text, score, kind)
    unknown = _model(tokenizer).get("unk_token")
    for text, each in added.items():
        tokens.put_added(vocabulary[text], text, bool(each.get("special")))
        if text == unknown:
            tokens.kinds[vocabulary[text]] = int(TokenType.UNKNOWN)
    texts = json.dumps([tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")])
    has_space = '"Prepend"' in texts or re.search(r'"prepend_scheme": "(always|first)"', texts)
    yield "tokenizer.ggml.add_space_prefix", ValueType.BOOL, bool(has_space)
    yield from _entries("llama", "default", tokens)


def _of_merges(
    folder: Path, tokenizer: dict[str, Any], n_tokens: int | None, arch: str | None
) -> Iterator[Entry]:
    """From a ``tokenizer.json`` with merges."""
    if _model(tokenizer).get("type") != "BPE":
        kind = quoted(str(_model(tokenizer).get("type")))
        raise VocabularyError(f"{TOKENIZER}: a model of type {kind} is not read, BPE is")
    vocabulary, added = _vocabulary(tokenizer, n_tokens)
    library = _library(folder / TOKENIZER)
    config = read_json(folder / "tokenizer_config.json") or {}
    pre = _known_pre(library, config)
    if _model(tokenizer).get("byte_fallback") is True and (arch == "llama" or pre is None):
        yield from _of_spelt_merges(tokenizer, n_tokens)
        return
    pre = _pre_by_trial(library) if pre is None else pre
    special = {text for _, text, is_special in _decoder(config) if is_special}
    special |= set(_stated(config))
    tokens = _Tokens(n_tokens or max(vocabulary.values()) + 1)
    for text, i in vocabulary.items():
        if text not in added and text not in special:
            tokens.put(i, text, 0.0, TokenType.NORMAL)
            continue
        each = added.get(text, {})
        if each.get("normalized") is not True:  # llama.cpp takes them for normalized
            found = library.encode(text, add_special_tokens=False).ids
            text = library.decode(found, skip_special_tokens=False)
        tokens.put_added(i, text, each.get("special") is True or text in special)
    yield from _entries("gpt2", pre, tokens)
    merges = [f"{left} {right}" for left, right in _merges(tokenizer)]
    yield "tokenizer.ggml.merges", ValueType.STRING, merges


def _stated(config: Mapping[str, Any]) -> Iterator[str]:
    """The texts of special tokens in a ``tokenizer_config.json``."""
    more = config.get("additional_special_tokens")
    names = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    values = [*(config.get(f"{name}_token") for name in names), *(more or ())]
    for value in values:
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text:
            yield text


def _vocabulary(
    tokenizer: Mapping[str, Any], n_tokens: int | None
) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
    """Ids of all tokens, and what is said of the added ones."""
    own, listed = _model(tokenizer).get("vocab"), tokenizer.get("added_tokens") or []
    if not isinstance(own, dict) or not isinstance(listed, list):
        raise ReblockError(f"{TOKENIZER}: its vocabulary is no object")
    added = {str(each.get("content")): each for each in listed if isinstance(each, dict)}
    ids = {**own, **{text: each.get("id") for text, each in added.items()}}
    limit = n_tokens or _MOST_TOKENS
    for text, i in ids.items():
        if not isinstance(text, str) or type(i) is not int or not 0 <= i < limit:
            raise ReblockError(
                f"{TOKENIZER}: token {quoted(str(text))} has the id {i}, but the model has"
                f" {limit} embeddings"
            )
    if not ids:
        raise ReblockError(f"{TOKENIZER}: holds no tokens")
    if len(set(ids.values())) != len(ids):
        raise ReblockError(f"{TOKENIZER}: two tokens have one id")
    return ids, added


def _merges(tokenizer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs, in which GPT-2's character stands for a space."""
    found = _model(tokenizer).get("merges")
    pairs = []
    for merge in found if isinstance(found, list) else []:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(map(_is_text, parts)):
            raise ReblockError(f"{TOKENIZER}: merge {quoted(str(merge))} is no pair of texts")
        pairs.append((parts[0].replace(" ", "\u0120"), parts[1].replace(" ", "\u0120")))
    return pairs


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _library(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise VocabularyError(
            f"{TOKENIZER} is read by the library tokenizers, which is not installed;"
            f" {HOW_TO_INSTALL}"
        ) from None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise ReblockError(
            f"{printable(path)}: the library tokenizers refuses it:"
            f" {' '.join(str(error)[:200].split())}"
        ) from None


@cache
def _known() -> dict[str, Any]:
    """The text that tells pre-tokenizers apart, and their names by a digest of its ids."""
    return json.loads((files("recover") / "data" / "pre_tokenizers.json").read_text("utf-8"))


def _known_pre(library: Any, config: Mapping[str, Any]) -> str | None:
    """The name of how a tokenizer cuts a text, by llama.cpp's digests; None if there is none.

    They are of texts with what is put around them, which some classes of transformers take from
    ``tokenizer_config.json``.
    """
    ids = library.encode(_known()["text"]).ids
    bos = config.get("bos_token")
    bos = library.token_to_id(str(bos.get("content") if isinstance(bos, dict) else bos))
    wanted = [ids]
    if config.get("add_bos_token") is True and bos is not None and ids[:1] != [bos]:
        wanted.insert(0, [bos, *ids])
    digests = [hashlib.sha256(str(each).encode()).hexdigest() for each in wanted]
    return next((name for each in digests if (name := _known()["sha256"].get(each))), None)


def _pre_by_trial(library: Any) -> str:
    """The first of the ways to cut with which a text becomes the same ids."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    text = _known()["text"]
    expected = library.encode(text, add_special_tokens=False).ids
    other = Tokenizer.from_str(library.to_str())
    other.normalizer = None
    bytes_of_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for name, split in SPLITS.items():
        if not split.of_bytes or split.takes_whole_words != library.model.ignore_merges:
            continue
        cuts = [pre_tokenizers.Split(Regex(each), "isolated") for each in split.patterns]
        other.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytes_of_gpt2])
        if other.encode(text, add_special_tokens=False).ids == expected:
            return name
    raise VocabularyError(
        f"{TOKENIZER}: how it cuts texts into words is nothing that llama.cpp knows"
    )

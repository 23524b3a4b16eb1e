"""The vocabulary that a GGUF file's metadata state, as llama.cpp reads it.

What is assumed where a file says nothing is what ``llama_vocab::impl::load`` (src/llama-vocab.cpp)
assumes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

from recover._text import printable, quoted
from recover.containers.huggingface.vocabulary.splits import SPLITS, Split
from recover.containers.model import Model
from recover.errors import VocabularyError

HOW_ELSE = "take the tokenizer's files from a folder of the model with --config FOLDER"

BYTE_LEVEL, SENTENCEPIECE, UNIGRAM = "gpt2", "llama", "t5"
"""Values of ``tokenizer.ggml.model``: how texts become tokens."""

_PREFIX = "tokenizer.ggml."
# GGUF's names of special tokens, by those of Hugging Face.
SPECIAL = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}
# What is assumed; ids beyond the vocabulary count as absent.
_DEFAULT_IDS = {
    SENTENCEPIECE: {"bos": 1, "eos": 2, "unk": 0},
    UNIGRAM: {"eos": 1, "unk": 2, "pad": 0},
    BYTE_LEVEL: {"bos": 11, "eos": 11},
}
_NO_BOS = ("chatglm-bpe", "glm4", "glm5")
_ADDS = {SENTENCEPIECE: ("bos",), UNIGRAM: ("eos",)}

# Tokens that llama.cpp takes for control tokens whatever their type is: ends, and marks of code.
_CONTROL_TOKENS = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn>"
    " <|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance>"
    " <eos> <turn|> <|tool_response> <\uff5cend\u2581of\u2581sentence\uff5c> [e~["
    " <|fim_prefix|> <fim-prefix> <fim_prefix> <\uff5cfim\u2581begin\uff5c> <PRE> \u2581<PRE>"
    " <|code_prefix|> <|prefix|> <|fim_suffix|> <fim-suffix> <fim_suffix>"
    " <\uff5cfim\u2581hole\uff5c> <SUF> \u2581<SUF> <|code_suffix|> <|suffix|> <|fim_middle|>"
    " <fim-middle> <fim_middle> <\uff5cfim\u2581end\uff5c> <MID> \u2581<MID> <|code_middle|>"
    " <|middle|> <|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo>"
    " <REPO> <reponame> <|file_sep|>"
)
_CONTROL = frozenset(_CONTROL_TOKENS.split())


class TokenType(IntEnum):
    """Of a token; the numbers are GGUF's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """What a model's tokenizer is made of."""

    kind: str
    """`BYTE_LEVEL`, `SENTENCEPIECE` or `UNIGRAM`."""
    split: Split
    """How a text is cut first; nothing is cut for the latter two."""
    tokens: Sequence[str]
    """By id."""
    types: Sequence[int]
    """Numbers of `TokenType`."""
    scores: Sequence[float]
    """Higher ones are merged first, or are likelier; empty for `BYTE_LEVEL`."""
    merges: Sequence[tuple[str, str]]
    """sequence of (str, str): what is merged, the first before the second; empty for the others."""
    ids: Mapping[str, int]
    """Special tokens by Hugging Face's names (bos, eos, unk, sep, pad, cls, mask)."""
    adds_bos: bool
    adds_eos: bool
    """Whether a text begins and ends with them."""
    adds_space: bool
    """Whether a space is put in front of a text."""
    merges_spaces: bool
    """Whether a run of spaces counts as one."""
    strips_right: bool
    """Whether spaces behind a special token are dropped."""

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Ids by token."""
        return {token: i for i, token in enumerate(self.tokens)}

    @cached_property
    def added(self) -> Mapping[int, bool]:
        """Tokens that are found in a text before anything else, and whether they are special."""
        normal = "</s>" if "<|tool_response>" in self.numbers else None  # as in Gemma 4
        found = {}
        for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            is_control = kind in (TokenType.CONTROL, TokenType.UNKNOWN) or token in _CONTROL
            if (is_control or kind == TokenType.USER_DEFINED) and token != normal:
                found[i] = is_control
        return found

    @cached_property
    def n_used(self) -> int:
        """Number of tokens without those at the end that only fill up the embedding."""
        n = len(self.tokens)
        while n and self.types[n - 1] == TokenType.UNUSED and self.tokens[n - 1] == f"[PAD{n - 1}]":
            n -= 1
        return n


def has_vocabulary(model: Model) -> bool:
    """Whether a model's metadata hold tokens."""
    return model.get(f"{_PREFIX}model") not in (None, "none", "no_vocab")


def read_vocabulary(model: Model) -> Vocabulary:
    """The vocabulary of a model.

    Parameters
    ----------
    model : Model
        With the metadata of a GGUF file.

    Returns
    -------
    Vocabulary

    Raises
    ------
    VocabularyError
        If there is none, it contradicts itself, or nothing is known of its kind.
    GGUFError
        If a value cannot be read.
    """
    try:
        return _Reader(model).read()
    except VocabularyError as error:
        raise VocabularyError(f"{printable(model.path)}: {error}; {HOW_ELSE}") from None


class _Reader:
    """Reads the entries of a model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def _get(self, key: str, default: Any = None) -> Any:
        return self._model.get(_PREFIX + key, default)

    def _list(self, key: str, kind: type | tuple[type, ...]) -> list[Any]:
        value = self._get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, kind) for each in value):
            raise VocabularyError(f"metadata {_PREFIX}{key} is no list of the right type")
        return value

    def read(self) -> Vocabulary:
        name = self._get("model", "none")
        if name in ("none", "no_vocab"):
            raise VocabularyError("the metadata hold no vocabulary")
        pre = self._get("pre") or "default"
        kind = BYTE_LEVEL if name == "gemma4" else name
        pre = name if name == "gemma4" else pre
        if kind not in _DEFAULT_IDS:
            raise VocabularyError(
                f"vocabularies of kind {quoted(str(name))} (tokenizer.ggml.model) are not written;"
                f" those of {', '.join(_DEFAULT_IDS)} and gemma4 are"
            )
        if kind == UNIGRAM and self._list("precompiled_charsmap", int):
            # The library looks up a letter with its accents as one, by the shortest entry that it
            # begins with; llama.cpp goes on with the longest entry (spm_precompiled 0.1.4,
            # `Precompiled::transform`): some texts would get other tokens.
            raise VocabularyError(
                "a table of replacements (tokenizer.ggml.precompiled_charsmap) is not written: the"
                " library tokenizers looks up a letter with its accents as one and drops what its"
                " shortest entry leaves, llama.cpp goes on behind the longest one"
            )
        if kind == BYTE_LEVEL and pre not in SPLITS:
            raise VocabularyError(
                f"how pre-tokenizer {quoted(str(pre))} (tokenizer.ggml.pre) cuts texts is not known"
            )
        split = SPLITS[pre] if kind == BYTE_LEVEL else Split((), of_bytes=False)
        tokens = self._tokens()
        adds = {each: each in _ADDS.get(kind, ()) for each in ("bos", "eos")}
        adds["bos"] |= split.adds_bos
        adds = {each: bool(self._get(f"add_{each}_token", adds[each])) for each in adds}
        adds["bos"] |= pre == "gemma4"
        ids = self._ids(kind, pre, len(tokens))
        title = str(self._model.get("general.name")).lower()
        for each in adds:
            if adds[each] and each not in ids:
                raise VocabularyError(f"texts get a token {each}, but its id is not stated")
        return Vocabulary(
            kind=kind,
            split=split,
            tokens=tokens,
            types=self._numbers("token_type", int, len(tokens), TokenType.NORMAL),
            scores=self._numbers("scores", (int, float), len(tokens), 0.0)
            if kind != BYTE_LEVEL
            else [],
            merges=self._merges() if kind == BYTE_LEVEL else [],
            ids=ids,
            adds_bos=adds["bos"],
            adds_eos=adds["eos"],
            adds_space=bool(self._get("add_space_prefix", kind == SENTENCEPIECE)),
            merges_spaces=bool(self._get("remove_extra_whitespaces", False)),
            strips_right=any(each in title for each in ("phi-3", "phi3")),
        )

    def _tokens(self) -> list[str]:
        tokens = self._list("tokens", str)
        if not tokens:
            raise VocabularyError("the metadata hold no tokens")
        tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
        if len(set(tokens)) != len(tokens):
            twice = Counter(tokens).most_common(1)[0][0]
            raise VocabularyError(f"token {quoted(twice)} is there twice")
        return tokens

    def _numbers(
        self, key: str, kind: type | tuple[type, ...], n: int, default: float
    ) -> list[Any]:
        values = self._list(key, kind)
        if not values:
            return [default] * n
        if len(values) < n:
            raise VocabularyError(f"{n} tokens, but metadata {_PREFIX}{key} are {len(values)}")
        return values[:n]

    def _merges(self) -> list[tuple[str, str]]:
        """Pairs in their order, each once: parts are separated by a space behind the first."""
        pairs: dict[tuple[str, str], None] = {}
        for merge in self._list("merges", str):
            at = merge.find(" ", 1)
            pairs.setdefault((merge[:at], merge[at + 1 :]) if at > 0 else ("", ""))
        pairs.pop(("", ""), None)
        return list(pairs)

    def _ids(self, kind: str, pre: str, n_tokens: int) -> dict[str, int]:
        found = dict(_DEFAULT_IDS[kind])
        if pre in _NO_BOS:
            found.pop("bos", None)
        if pre == "gemma4":
            found.clear()
        for name, own in SPECIAL.items():
            number = self._get(f"{own}_token_id")
            if isinstance(number, int) and number < n_tokens:
                found[name] = number
        return {name: number for name, number in found.items() if 0 <= number < n_tokens}

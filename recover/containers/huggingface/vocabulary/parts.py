"""The parts of a ``tokenizer.json`` that make the same tokens of a text as llama.cpp does.

A part is what the library `tokenizers` has under that name in its files: plain data. Of llama.cpp
these functions of src/llama-vocab.cpp are mirrored: ``llm_tokenizer_bpe_session``,
``llm_tokenizer_spm_session``, ``llm_tokenizer_ugm_session``, ``tokenizer_st_partition`` and
``tokenize``.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from recover._text import quoted
from recover.containers.huggingface.vocabulary.metadata import (
    BYTE_LEVEL,
    SENTENCEPIECE,
    UNIGRAM,
    TokenType,
    Vocabulary,
)
from recover.errors import VocabularyError

NEVER_IN_A_TEXT = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE)
"""What tokens of kind `UNIGRAM` are found in no text, though their spelling may be in it."""

SPACE = "\u2581"
"""What stands for a space in tokens that are not spelt in bytes."""

Part = dict[str, Any]

# So far below the lowest score is that of a character without a token, in the library as well.
_UNKNOWN = 10.0
_EXACT = 2.0**52


def tokenizer_parts(vocabulary: Vocabulary) -> Part:
    """All parts, as in a ``tokenizer.json``.

    Raises
    ------
    VocabularyError
        If merges need tokens that are not there.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(vocabulary),
        "normalizer": _normalizer(vocabulary),
        "pre_tokenizer": _pre_tokenizer(vocabulary),
        "post_processor": _post_processor(vocabulary),
        "decoder": _decoder(vocabulary),
        "model": _model(vocabulary),
    }


def added_tokens(vocabulary: Vocabulary) -> list[Part]:
    """Tokens that are found in a text before anything else."""
    kept = {"</s>": True, "<unk>": False, "<s>": False, "<|endoftext|>": False}
    return [
        {
            "id": i,
            "content": vocabulary.tokens[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": vocabulary.strips_right and kept.get(vocabulary.tokens[i], True),
            "normalized": False,
            "special": is_special,
        }
        for i, is_special in vocabulary.added.items()
    ]


def _sequence(kind: str, parts: Sequence[Part]) -> Part | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    return {"type": "Sequence", kind: list(parts)}


def _replace(pattern: Part, content: str) -> Part:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _normalizer(vocabulary: Vocabulary) -> Part | None:
    if vocabulary.split.of_bytes:
        return None
    parts: list[Part] = []
    if vocabulary.kind == UNIGRAM and vocabulary.merges_spaces:
        parts.append(_replace({"Regex": r"\A +| +\z"}, ""))
        parts.append(_replace({"Regex": " {2,}"}, " "))
    if vocabulary.kind == UNIGRAM and (vocabulary.adds_space or vocabulary.merges_spaces):
        parts.append(_replace({"Regex": r"\A(?= *[^ ])"}, SPACE))  # not to spaces alone
    elif vocabulary.kind == SENTENCEPIECE and vocabulary.adds_space:
        parts.append({"type": "Prepend", "prepend": SPACE})
    return _sequence("normalizers", [*parts, _replace({"String": " "}, SPACE)])


def _pre_tokenizer(vocabulary: Vocabulary) -> Part | None:
    """What cuts a text."""
    split = vocabulary.split
    patterns = list(split.patterns)
    # A byte without a token is left out of a text, but its neighbours are not merged across it.
    missing = [chr(i) for i in range(128) if split.of_bytes and _spelt(i) not in vocabulary.numbers]
    if missing:
        patterns.append(f"[{re.escape(''.join(missing))}]")
    patterns += _between(vocabulary)
    parts: list[Part] = [
        {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
        for pattern in patterns
    ]
    if split.of_bytes:
        parts.append(_byte_level())
    return _sequence("pretokenizers", parts)


def _between(vocabulary: Vocabulary) -> list[str]:
    """Cuts behind the first letter of what is spelt like a token that a text is never cut into.

    Tokens that are found before anything else are no longer in the text.
    """
    if vocabulary.kind != UNIGRAM:
        return []
    spelt = [
        token
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in NEVER_IN_A_TEXT
        and len(token) > 1
        and (i not in vocabulary.added or SPACE in token)
    ]
    rests: dict[str, list[str]] = {}
    for token in spelt:
        rests.setdefault(token[0], []).append(re.escape(token[1:]))
    return [rf"(?<={re.escape(first)})(?={'|'.join(each)})" for first, each in rests.items()]


def _spelt(byte: int) -> str:
    """GPT-2's character for a byte of ASCII: itself if it can be seen, else one behind U+0100."""
    if 33 <= byte < 127:
        return chr(byte)
    return chr(256 + min(33, byte))


def _byte_level() -> Part:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }


def _post_processor(vocabulary: Vocabulary) -> Part | None:
    """Puts the tokens for the beginning and the end around a text."""
    parts = [_byte_level()] if vocabulary.split.of_bytes else []
    around = [
        [name] if adds else []
        for name, adds in (("bos", vocabulary.adds_bos), ("eos", vocabulary.adds_eos))
    ]
    names = [name for each in around for name in each]
    if names:
        ids = {vocabulary.tokens[vocabulary.ids[name]]: vocabulary.ids[name] for name in names}

        def one(letter: str, number: int) -> Iterator[Part]:
            for name in (*around[0], None, *around[1]):
                if name is None:
                    yield {"Sequence": {"id": letter, "type_id": number}}
                else:
                    token = vocabulary.tokens[vocabulary.ids[name]]
                    yield {"SpecialToken": {"id": token, "type_id": number}}

        parts.append(
            {
                "type": "TemplateProcessing",
                "single": list(one("A", 0)),
                "pair": [*one("A", 0), *one("B", 1)],
                "special_tokens": {
                    token: {"id": token, "ids": [i], "tokens": [token]} for token, i in ids.items()
                },
            }
        )
    return _sequence("processors", parts)


def _decoder(vocabulary: Vocabulary) -> Part:
    if vocabulary.split.of_bytes:
        return _byte_level()
    parts: list[Part] = [_replace({"String": SPACE}, " ")]
    if vocabulary.kind != UNIGRAM:
        parts += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if vocabulary.adds_space and vocabulary.kind != BYTE_LEVEL:
        parts += [] if vocabulary.kind != UNIGRAM else [{"type": "Fuse"}]
        parts.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": parts}


def _model(vocabulary: Vocabulary) -> Part:
    if vocabulary.kind == UNIGRAM:
        return _unigram(vocabulary)
    n = vocabulary.n_used
    tokens = {token: i for i, token in enumerate(vocabulary.tokens[:n])}
    is_pieces = vocabulary.kind != BYTE_LEVEL
    unknown = vocabulary.ids.get("unk") if is_pieces else None
    has_bytes = not vocabulary.split.of_bytes and "<0x00>" in tokens
    pairs = merges_of_scores(vocabulary) if is_pieces else _known(vocabulary.merges, tokens)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if unknown is None else vocabulary.tokens[unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": is_pieces,
        "byte_fallback": has_bytes,
        "ignore_merges": vocabulary.split.takes_whole_words,
        "vocab": tokens,
        "merges": pairs,
    }


def _known(merges: Sequence[tuple[str, str]], tokens: dict[str, int]) -> Sequence[tuple[str, str]]:
    """Merges whose parts and results are tokens, which all must be."""
    for left, right in merges:
        if not (left in tokens and right in tokens and left + right in tokens):
            raise VocabularyError(
                f"the merge of {quoted(left)} and {quoted(right)} needs a token that is not there"
            )
    return merges


def merges_of_scores(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The merges that SentencePiece's scores mean, the first before the second.

    llama.cpp merges the two neighbours whose concatenation is the token of the highest score, and
    the leftmost ones among equals. A list of merges has no equals: of two that make the same token,
    the one with the longer left part goes first, which is what the leftmost ones are in a run of
    one character.

    Parameters
    ----------
    vocabulary : Vocabulary
        With scores.

    Returns
    -------
    list of (str, str)
    """
    tokens, scores = vocabulary.numbers, vocabulary.scores
    order = sorted(range(len(vocabulary.tokens)), key=lambda i: -scores[i])
    return [
        (token[:at], token[at:])
        for token in (vocabulary.tokens[i] for i in order)
        for at in range(len(token) - 1, 0, -1)
        if token[:at] in tokens and token[at:] in tokens
    ]


def _unigram(vocabulary: Vocabulary) -> Part:
    """Tokens with their scores, times a power of two that makes whole numbers of them.

    llama.cpp adds scores of 24 bits, so that the order of tokens makes no difference to most sums,
    and the first of equals wins. The library reads other decimal numbers than whole ones with an
    error in the last place, which decides among them. Tokens that a text is never cut into have the
    lowest score of all; a character that is no token gets 10 less, which makes that score.
    """
    scored = list(zip(vocabulary.types, vocabulary.scores, strict=True))
    normal = [score for kind, score in scored if kind == TokenType.NORMAL]
    unknown = float(np.float32(min(normal, default=0.0)) - np.float32(_UNKNOWN))
    factor = _power_that_makes_whole([*vocabulary.scores, unknown])
    fixed = dict.fromkeys(NEVER_IN_A_TEXT, unknown * factor + _UNKNOWN)
    fixed[TokenType.USER_DEFINED] = 0.0
    by_number = {int(kind): score for kind, score in fixed.items()}
    scores = [by_number.get(kind, score * factor) for kind, score in scored]
    n = vocabulary.n_used
    return {
        "type": "Unigram",
        "unk_id": vocabulary.ids.get("unk"),
        "vocab": list(zip(vocabulary.tokens[:n], scores[:n], strict=True)),
        "byte_fallback": False,
    }


def _power_that_makes_whole(numbers: Sequence[float]) -> float:
    """The least power of two that makes whole numbers of all, or as nearly as 52 bits allow."""
    factor = float(max((number.as_integer_ratio()[1] for number in numbers), default=1))
    largest = max(map(abs, numbers), default=0.0)
    while factor > 1 and factor * largest > _EXACT:
        factor /= 2
    return factor

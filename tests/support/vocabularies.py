"""Small vocabularies, trained by the library `tokenizers` or made by hand, in GGUF files."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gguf import GGUFWriter
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.support.gguf_files import write_out
from tests.support.many_scripts import lines

N_TRAINED = 3000
"""Lines that vocabularies are trained on."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPECIAL = (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), ("<|endoftext|>", CONTROL))
USER = ("<tool>", "<b>", "\t\t\t\t")
USER_PIECES = (*USER, "  ", "\n\n")

# What is frequent in them becomes one token, across places where some kinds cut.
_FREQUENT = ["'sabc", "abCD efGH", "\n\n\n", "x" + " " * 14 + "y"]
WHOLE = " qzxv"
"""Of kind ``gpt2`` a token that no merge makes."""


@cache
def byte_level(n_tokens: int = 1500) -> tuple[list[str], list[str]]:
    """Tokens in GPT-2's spelling, and merges.

    Lines are not cut into words before they are learnt: tokens reach over every place at which a
    pre-tokenizer may cut, so that a cut elsewhere gives other ids.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=12,
    )
    texts = [*lines(N_TRAINED, seed=1), *(text for text in _FREQUENT for _ in range(400))]
    tokenizer.train_from_iterator(texts, trainer)
    return [*_tokens(tokenizer), WHOLE.replace(" ", "\u0120")], _merges(tokenizer)


@cache
def pieces(n_tokens: int = 1500) -> list[str]:
    """Tokens with blocks for spaces, the earliest merge first; characters come last."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=n_tokens, show_progress=False, limit_alphabet=700)
    texts = ("\u2581" + text.replace(" ", "\u2581") for text in lines(N_TRAINED, seed=1))
    tokenizer.train_from_iterator(texts, trainer)
    found = _tokens(tokenizer)
    return [*(each for each in found if len(each) > 1), *(each for each in found if len(each) == 1)]


def _tokens(tokenizer: Tokenizer) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _merges(tokenizer: Tokenizer) -> list[str]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [" ".join(merge) for merge in merges]


def write(path: Path, model: str, entries: Mapping[str, Any]) -> Path:
    """A GGUF file without tensors, whose metadata begin with ``tokenizer.ggml.``."""
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_context_length(2048)
    for key, value in entries.items():
        name = key if key.startswith(("tokenizer", "general")) else f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, list(value))
    write_out(writer)
    return path


def write_byte_level(path: Path, pre: str, **more: Any) -> Path:
    """A vocabulary of kind ``gpt2`` with control, user-defined and unused tokens."""
    tokens, merges = byte_level()
    added = [("<|begin|>", CONTROL), ("<|end|>", CONTROL), *((each, USER_DEFINED) for each in USER)]
    n = len(tokens) + len(added)
    entries = {
        "pre": pre,
        "tokens": [*tokens, *(token for token, _ in added), f"[PAD{n}]", f"[PAD{n + 1}]"],
        "token_type": [NORMAL] * len(tokens) + [kind for _, kind in added] + [UNUSED] * 2,
        "merges": merges,
        "bos_token_id": len(tokens),
        "eos_token_id": len(tokens) + 1,
    }
    return write(path, "gpt2", entries | more)


def write_pieces(path: Path, user: Sequence[str] = USER_PIECES, **more: Any) -> Path:
    """A vocabulary of kind ``llama`` with bytes."""
    found = pieces()
    tokens = [token for token, _ in SPECIAL]
    kinds = [kind for _, kind in SPECIAL]
    tokens += [f"<0x{i:02X}>" for i in range(256)]
    kinds += [BYTE] * 256
    scores = [0.0] * len(tokens) + [-float(i) for i in range(len(found))]
    tokens += found
    kinds += [NORMAL] * len(found)
    user = [each for each in user if each not in tokens]
    entries = {
        "pre": "default",
        "tokens": [*tokens, *user],
        "scores": [*scores, *([-1000.0] * len(user))],
        "token_type": [*kinds, *([USER_DEFINED] * len(user))],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return write(path, "llama", entries | more)


def write_merged_pieces(path: Path, **more: Any) -> Path:
    """A vocabulary of kind ``gemma4``: pieces with blocks for spaces, bytes, and merges."""
    found = pieces()
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256)), *found]
    known = set(tokens)
    merges = [
        f"{token[:at]} {token[at:]}"
        for token in found
        for at in range(1, len(token))
        if token[:at] in known and token[at:] in known
    ]
    kinds = [CONTROL] * 3 + [UNKNOWN] + [BYTE] * 256 + [NORMAL] * len(found)
    entries = {
        "tokens": tokens,
        "token_type": kinds,
        "scores": [0.0] * len(tokens),
        "merges": merges,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "padding_token_id": 0,
    }
    return write(path, "gemma4", entries | more)


def write_unigram(path: Path, **more: Any) -> Path:
    """A vocabulary of kind ``t5``: pieces with logarithms of their shares."""
    tokens = ["<pad>", "</s>", "<unk>", *pieces()]
    texts = ("\u2581" + text.replace(" ", "\u2581") for text in lines(N_TRAINED, seed=1))
    counts = _counts(texts, tokens)
    total = sum(counts.values())
    scores = [0.0] * 3 + [math.log((counts[each] + 0.5) / total) for each in tokens[3:]]
    entries = {
        "pre": "default",
        "tokens": tokens,
        "scores": scores,
        "token_type": [CONTROL, CONTROL, UNKNOWN, *([NORMAL] * (len(tokens) - 3))],
        "eos_token_id": 1,
        "unknown_token_id": 2,
        "padding_token_id": 0,
        "add_space_prefix": True,
        "remove_extra_whitespaces": True,
    }
    return write(path, "t5", entries | more)


def _counts(texts: Iterable[str], tokens: Sequence[str]) -> Counter[str]:
    """How often a piece of text is one of the tokens."""
    known, counts = set(tokens), Counter[str]()
    longest = max(map(len, tokens))
    for text in texts:
        for start in range(len(text)):
            for end in range(start + 1, min(len(text), start + longest) + 1):
                if text[start:end] in known:
                    counts[text[start:end]] += 1
    return counts

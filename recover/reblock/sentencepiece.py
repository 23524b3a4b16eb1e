"""The vocabulary in a SentencePiece ``tokenizer.model``, and GGUF's metadata for it.

The file is a protocol buffer, ``ModelProto`` in sentencepiece_model.proto; of its fields these are
read::

    ModelProto     1 pieces (repeated)   2 trainer_spec
    SentencePiece  1 piece, text         2 score, float       3 type, enum (1 if absent)
    TrainerSpec    40 unk_id             41 bos_id            42 eos_id            43 pad_id
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recover._files import UnreadableError, read_bytes
from recover._text import printable
from recover.containers.gguf.header import ValueType, encode_key_value
from recover.errors import ReblockError

_NORMAL, _UNKNOWN, _UNUSED, _LAST_TYPE = 1, 2, 5, 6
_PADDING_SCORE = -10000.0
# Far beyond every vocabulary.
_MAX_PIECES = 1 << 19
_MAX_FIELDS = 1 << 22
_MAX_FILE = 1 << 24
_LARGEST_SCORE = 3.4e38
_IDS = {40: "unknown", 41: "bos", 42: "eos", 43: "padding"}
_DEFAULT_IDS = {40: 0, 41: 1, 42: 2, 43: -1}


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary.

    Attributes
    ----------
    pieces : tuple of (str, float, int)
        Text, score and type, whose numbers are those of GGUF.
    ids : tuple of (str, int)
        Special tokens by GGUF's names.
    """

    pieces: tuple[tuple[str, float, int], ...]
    ids: tuple[tuple[str, int], ...]

    def metadata(self, n_tokens: int) -> list[bytes]:
        """Encoded entries for a model of `n_tokens` embeddings, the surplus ones being unused.

        Raises
        ------
        ReblockError
            If the model has fewer embeddings than the vocabulary has tokens.
        """
        if n_tokens < len(self.pieces):
            raise ReblockError(
                f"the vocabulary has {len(self.pieces)} tokens, the model {n_tokens} embeddings"
            )
        if n_tokens > _MAX_PIECES:
            raise ReblockError(
                f"a vocabulary of {n_tokens} tokens: more than {_MAX_PIECES} are not supported"
            )
        missing = range(n_tokens - len(self.pieces))
        padding = [(f"[PAD{i}]", _PADDING_SCORE, _UNUSED) for i in missing]
        texts, scores, kinds = zip(*self.pieces, *padding, strict=True)
        entries: list[tuple[str, ValueType, Any]] = [
            ("model", ValueType.STRING, "llama"),
            ("pre", ValueType.STRING, "default"),
            ("tokens", ValueType.STRING, list(texts)),
            ("scores", ValueType.FLOAT32, list(scores)),
            ("token_type", ValueType.INT32, list(kinds)),
            *((f"{name}_token_id", ValueType.UINT32, number) for name, number in self.ids),
        ]
        return [
            encode_key_value(f"tokenizer.ggml.{key}", kind, value) for key, kind, value in entries
        ]


def load_vocabulary(path: Path) -> Vocabulary:
    """Read a ``tokenizer.model``.

    Raises
    ------
    ReblockError
        If it cannot be read or is damaged.
    """
    try:
        return parse_vocabulary(read_bytes(path, _MAX_FILE))
    except (UnreadableError, ReblockError) as error:
        raise ReblockError(f"{printable(path)}: {error}") from None


def parse_vocabulary(buffer: memoryview | bytes) -> Vocabulary:
    """The vocabulary in the bytes of a ``tokenizer.model``; `ReblockError` if it is damaged."""
    view = memoryview(buffer)
    pieces: list[tuple[str, float, int]] = []
    ids = dict(_DEFAULT_IDS)
    fields = _Fields()
    for field, value in fields.of(view):
        if field == 1 and isinstance(value, memoryview):
            pieces.append(_piece(fields, value))
            if len(pieces) > _MAX_PIECES:
                raise ReblockError(f"tokenizer: more than {_MAX_PIECES} tokens")
        elif field == 2 and isinstance(value, memoryview):
            ids |= {
                number: _signed(each)
                for number, each in fields.of(value)
                if number in _IDS and isinstance(each, int)
            }
    if not pieces:
        raise ReblockError("tokenizer: holds no tokens")
    found = tuple((_IDS[key], i) for key, i in ids.items() if 0 <= i < len(pieces))
    return Vocabulary(tuple(pieces), found)


def _piece(fields: "_Fields", view: memoryview) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, _NORMAL
    for field, value in fields.of(view):
        if field == 1 and isinstance(value, memoryview):
            try:
                text = str(value, "utf-8")
            except UnicodeDecodeError:
                raise ReblockError("tokenizer: a token is not UTF-8") from None
        elif field == 2 and isinstance(value, float):
            score = value
        elif field == 3 and isinstance(value, int):
            kind = value
    if not _NORMAL <= kind <= _LAST_TYPE:
        raise ReblockError(f"tokenizer: a token of type {kind}")
    if not abs(score) < _LARGEST_SCORE:
        raise ReblockError(f"tokenizer: a token with the score {score:g}, beyond float32")
    return text, score, kind


def _signed(value: int) -> int:
    """An int32 that was stored as a varint of 64 bits."""
    return value - (1 << 64) if value >> 63 else value


class _Fields:
    """Reads fields of messages, as many in all as a vocabulary may have."""

    def __init__(self) -> None:
        self._n_left = _MAX_FIELDS

    def of(self, view: memoryview) -> Iterator[tuple[int, int | float | memoryview]]:
        """Numbers and values of the fields of a message."""
        at = 0
        while at < len(view):
            self._n_left -= 1
            if self._n_left < 0:
                raise ReblockError(f"tokenizer: more than {_MAX_FIELDS} fields")
            key, at = _varint(view, at)
            wire_type = key & 7
            value: int | float | memoryview
            if wire_type == 0:
                value, at = _varint(view, at)
            elif wire_type in (1, 5):
                size = 8 if wire_type == 1 else 4
                raw = _part(view, at, size)
                value = struct.unpack("<d" if size == 8 else "<f", raw)[0]
                at += size
            elif wire_type == 2:
                length, at = _varint(view, at)
                value = _part(view, at, length)
                at += length
            else:
                raise ReblockError(f"tokenizer: wire type {wire_type} at byte {at} is unknown")
            yield key >> 3, value


def _part(view: memoryview, at: int, length: int) -> memoryview:
    if length > len(view) - at:
        raise ReblockError(f"tokenizer: needs {length} bytes, but {len(view) - at} are left")
    return view[at : at + length]


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for i in range(10):
        if at + i >= len(view):
            break
        byte = view[at + i]
        number |= (byte & 127) << (7 * i)
        if byte < 128:
            return number & ((1 << 64) - 1), at + i + 1
    raise ReblockError(f"tokenizer: a number at byte {at} does not end")

"""A vocabulary of pieces as SentencePiece's own file, ``tokenizer.model``.

Programs that know nothing of ``tokenizer.json`` read it, and llama.cpp's converter needs it for the
scores. It is a protocol buffer, ``ModelProto`` in sentencepiece_model.proto; these fields are
written::

    ModelProto      1 pieces (repeated)   2 trainer_spec         3 normalizer_spec
    SentencePiece   1 piece, text         2 score, float         3 type, enum
    TrainerSpec     3 model_type (2: BPE) 4 vocab_size           35 byte_fallback
                    40 to 43 ids of unk, bos, eos and pad        45 to 48 their pieces
    NormalizerSpec  1 name                3 add_dummy_prefix     4 remove_extra_whitespaces
                    5 escape_whitespaces
"""

import struct

from recover.containers.huggingface.vocabulary.metadata import TokenType, Vocabulary

_BPE = 2
_IDS = ("unk", "bos", "eos", "pad")


def pieces_file(vocabulary: Vocabulary) -> bytes | None:
    """The bytes of a ``tokenizer.model``.

    Parameters
    ----------
    vocabulary : Vocabulary
        With scores.

    Returns
    -------
    bytes or None
        None if no token is for what is unknown: SentencePiece refuses such a vocabulary.
    """
    unknown = vocabulary.ids.get("unk")
    if unknown is None:
        return None
    kinds = [_kind(kind) for kind in vocabulary.types[: vocabulary.n_used]]
    kinds[unknown] = TokenType.UNKNOWN
    pieces = [
        _text(1, token) + _key(2, 5) + struct.pack("<f", score) + _number(3, kind)
        for token, score, kind in zip(vocabulary.tokens, vocabulary.scores, kinds, strict=False)
    ]
    trainer = _number(3, _BPE) + _number(4, len(pieces))
    trainer += _number(35, int(TokenType.BYTE in kinds))
    ids = [vocabulary.ids.get(name, -1) for name in _IDS]
    trainer += b"".join(_number(40 + k, each) for k, each in enumerate(ids))
    trainer += b"".join(
        _text(45 + k, vocabulary.tokens[each]) for k, each in enumerate(ids) if each >= 0
    )
    normalizer = _text(1, "identity") + _number(3, int(vocabulary.adds_space))
    normalizer += _number(4, int(vocabulary.merges_spaces)) + _number(5, 1)
    messages = [*((1, piece) for piece in pieces), (2, trainer), (3, normalizer)]
    return b"".join(_key(field, 2) + _varint(len(each)) + each for field, each in messages)


def _kind(kind: int) -> int:
    """One token alone may be for what is unknown."""
    return TokenType.CONTROL if kind == TokenType.UNKNOWN else kind


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    parts = bytearray()
    while value > 127:
        parts.append(128 | value & 127)
        value >>= 7
    return bytes([*parts, value])


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _text(field: int, text: str) -> bytes:
    raw = text.encode()
    return _key(field, 2) + _varint(len(raw)) + raw

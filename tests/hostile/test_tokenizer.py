"""A ``tokenizer.model`` that lies: refused in one line, at little cost."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recover.errors import ReblockError, RecoverError
from recover.reblock.sentencepiece import load_vocabulary, parse_vocabulary
from tests.hostile.checks import check_line, check_message
from tests.support import memory

PIECE = b"\x0a\x03abc" + b"\x15" + struct.pack("<f", -1.5) + b"\x18\x03"
GOOD = b"\x0a" + bytes([len(PIECE)]) + PIECE + b"\x12\x06\xc8\x02\x00\xd0\x02\x00"


def test_what_is_good() -> None:
    vocabulary = parse_vocabulary(GOOD)
    assert vocabulary.pieces == (("abc", -1.5, 3),)
    assert dict(vocabulary.ids) == {"unknown": 0, "bos": 0, "eos": 0}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"\x0a", "does not end"),
        (b"\x0a\x05abc", "needs 5 bytes, but 3 are left"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "are left"),
        (b"\xff" * 11, "does not end"),
        (b"\x0b\x00", "wire type 3"),
        (b"\x0d\x00", "needs 4 bytes"),
        (b"\x09\x00", "needs 8 bytes"),
        (b"\x12\x00", "holds no tokens"),
        (b"\x0a\x04\x0a\x02\xff\xff", "not UTF-8"),
        (b"\x0a\x02\x18\x07", "a token of type 7"),
        (b"\x0a\x02\x18\x00", "a token of type 0"),
    ],
)
def test_damaged(raw: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(raw)
    with memory.at_most(1 << 18), pytest.raises(ReblockError) as caught:
        load_vocabulary(path)
    check_message(str(caught.value), path)
    assert expected in str(caught.value)


def test_too_few_embeddings() -> None:
    vocabulary = parse_vocabulary(b"\x0a\x03\x0a\x01a" * 5)
    with pytest.raises(ReblockError, match="has 5 tokens, the model 4 embeddings"):
        vocabulary.metadata(4)
    assert len(vocabulary.metadata(5)) > 5


@given(st.binary(max_size=40))
def test_noise(raw: bytes) -> None:
    for start in (b"", GOOD[:-4], b"\x0a\x10"):
        try:
            assert parse_vocabulary(start + raw).pieces
        except RecoverError as error:
            check_line(str(error))

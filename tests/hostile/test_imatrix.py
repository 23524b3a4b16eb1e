"""Importance matrices that lie, in both formats: one line, and little memory."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recover.errors import GGUFError
from recover.quantize.imatrix import Imatrix, load_imatrix, parse_imatrix
from tests.hostile.builder import array, gguf, kv, scalar, string, tensor
from tests.hostile.checks import check_line, check_message
from tests.hostile.imatrices import entry, f32, i32, legacy, modern
from tests.hostile.kinds import ARRAY, F16, F32, STRING, UINT32, UINT64
from tests.support import memory

HUGE = 2**31 - 1


def load(path: Path, content: bytes) -> Imatrix:
    path.write_bytes(content)
    return load_imatrix(path)


def test_right_ones(tmp_path: Path) -> None:
    path = tmp_path / "imatrix"
    assert load(path, legacy(entry(), entry("b"))).entries["a"].means().tolist() == [0.5, 1]
    assert load(path, modern()).entries["a"].means().tolist() == [1, 2]
    imatrix = load(path, legacy(entry(n_calls=4), end=b""))
    assert (imatrix.datasets, imatrix.n_chunks) == ((), 0)
    assert imatrix.entries["a"].means().tolist() == [0.25, 0.5]
    assert load(path, legacy(entry(n_calls=0))).entries["a"].means().tolist() == [1, 2]
    assert load(path, legacy(entry(), end=i32(7))).n_chunks == 7
    assert load(path, legacy(entry(), end=i32(7, 4) + b"x\0yz")).datasets == ("x",)
    assert load(path, legacy(entry(), end=i32(7, 0))).datasets == ()


def test_counts_are_rounded_and_unused_experts_weigh_one(tmp_path: Path) -> None:
    imatrix = load(tmp_path / "imatrix", modern(f32(3, 6, 5, 5), f32(2.5, 0.4)))
    assert imatrix.entries["a"].means().tolist() == [1, 2, 1, 1]


LEGACY = {
    "empty": b"",
    "short": b"\1\0",
    "no entries": legacy(),
    "negative number of entries": legacy(entry(), n_entries=-1),
    "too many entries": legacy(entry(), n_entries=HUGE),
    "one entry too many": legacy(entry(), n_entries=2, end=b""),
    "text": b"This is no importance matrix." * 9,
    "name longer than the file": legacy(entry(length=HUGE)),
    "negative length of a name": legacy(entry(length=-1)),
    "name that is not UTF-8": legacy(entry(b"\xff\xfe")),
    "name that is very long": legacy(entry("x" * 70_000)),
    "more values than the file": legacy(entry(n_values=HUGE)),
    "no values": legacy(entry(values=b"")),
    "negative number of values": legacy(entry(n_values=-5)),
    "twice the same": legacy(entry(), entry()),
    "NaN": legacy(entry(values=f32(1, np.nan))),
    "signalling NaN": legacy(entry(values=struct.pack("<2I", 0x7F800001, 0))),
    "infinite": legacy(entry(values=f32(np.inf, 1))),
    "negative": legacy(entry(values=f32(1, -1e-30))),
    "end cut off": legacy(entry(), end=b"\1\2"),
    "data set cut off": legacy(entry(), end=i32(5, 9) + b"t"),
    "negative length of the data set": legacy(entry(), end=i32(5, -1)),
}
MODERN = {
    "header only": gguf(),
    "a model": gguf([], [tensor("blk.0.attn_q.weight")], bytes(32)),
    "counts alone": modern(names=("b", "a.counts")),
    "sums alone": modern(names=("a.in_sum2", "b")),
    "sums of two tensors": modern(names=("a.in_sum2", "b.counts")),
    "F16 sums": modern(bytes(4), sums_type=F16),
    "F16 counts": modern(counts=bytes(2), counts_type=F16),
    "counts that do not fit": modern(f32(1, 2, 3), f32(1, 1)),
    "more counts than sums": modern(f32(1), f32(1, 1)),
    "NaN sums": modern(f32(1, np.nan)),
    "negative sums": modern(f32(1, -1)),
    "NaN counts": modern(counts=f32(np.nan)),
    "infinite counts": modern(counts=f32(np.inf)),
    "negative counts": modern(counts=f32(-1)),
    "truncated": modern()[:-33],
    "number of chunks of another type": modern(
        entries=(kv("imatrix.chunk_count", UINT64, scalar(UINT64, 5)),)
    ),
    "data sets that are no array": modern(entries=(kv("imatrix.datasets", STRING, string("x")),)),
    "data sets that are not UTF-8": modern(
        entries=(kv("imatrix.datasets", ARRAY, array(STRING, [string(b"\xff")])),)
    ),
}


@pytest.mark.parametrize("content", [*LEGACY.values(), *MODERN.values()], ids=[*LEGACY, *MODERN])
def test_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "imatrix"
    path.write_bytes(content)
    with memory.at_most(1 << 20), pytest.raises(GGUFError) as caught:
        load_imatrix(path)
    check_message(str(caught.value), path)


def test_data_sets_that_are_no_texts_are_left_out(tmp_path: Path) -> None:
    numbers = array(UINT32, [scalar(UINT32, 1)])
    imatrix = load(tmp_path / "i", modern(entries=(kv("imatrix.datasets", ARRAY, numbers),)))
    assert imatrix.datasets == ()


def test_a_large_file_of_nothing_is_refused_cheaply(tmp_path: Path) -> None:
    path = tmp_path / "imatrix"
    path.write_bytes(i32(1 << 17))
    os.truncate(path, 1 << 40)
    with pytest.raises(GGUFError, match="entry ''"):
        load_imatrix(path)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_cannot_be_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "imatrix"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(GGUFError) as caught:
        load_imatrix(path)
    check_message(str(caught.value), path)


RIGHT = (legacy(entry(), entry("b", f32(1, 2, 3, 4))), modern())


@given(
    content=st.sampled_from(RIGHT),
    changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
    n_bytes=st.integers(0, 400),
)
def test_damaged_files(content: bytes, changes: list[tuple[int, int]], n_bytes: int) -> None:
    damaged = bytearray(content)
    for position, byte in changes:
        damaged[position % len(damaged)] = byte
    try:
        imatrix = parse_imatrix(np.frombuffer(bytes(damaged[:n_bytes]), np.uint8))
    except GGUFError as error:
        check_line(str(error))
        return
    for importance in imatrix.entries.values():
        means = importance.means()
        assert means.shape == (importance.n_values,)
        assert np.isfinite(means).all()
        assert (means >= 0).all()


def test_more_counts_than_any_model_has_matrices(tmp_path: Path) -> None:
    n = (1 << 16) + 1
    head = gguf([], [tensor("a.in_sum2", (n,)), tensor("a.counts", (n,), F32, 262_176)])
    with pytest.raises(GGUFError, match="65537 counts; more than 65536 are not read"):
        load(tmp_path / "imatrix", head + bytes(262_176 + 4 * n))

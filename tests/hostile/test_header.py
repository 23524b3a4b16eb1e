"""Headers that lie: each is refused with one line that names the file and the tensor or key."""

import os
import struct
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recover.containers.gguf.header import parse_header
from recover.containers.gguf.reader import open_gguf
from recover.errors import GGUFError
from tests.hostile.builder import array, gguf, kv, scalar, string, tensor, u32, u64
from tests.hostile.checks import check_line, check_message, exercise, refusal_of
from tests.hostile.kinds import (
    ARRAY,
    BOOL,
    F16,
    F32,
    FLOAT32,
    FLOAT64,
    FORMATS,
    INT32,
    Q4_K,
    Q8_0,
    STRING,
    UINT8,
    UINT32,
    UINT64,
)

HUGE = 1 << 60
DATA = bytes(range(32))
"""What the default tensor of the builder holds: 8 weights of F32."""


def with_value(kind: int, raw: bytes) -> bytes:
    """A file whose key 'k' has that value, and a right tensor behind it."""
    return gguf([kv("k", kind, raw)], [tensor("t")], DATA)


def with_alignment(kind: int, raw: bytes) -> bytes:
    return gguf([kv("general.alignment", kind, raw)], [tensor("t")], DATA)


def with_tensor(**wrong: object) -> bytes:
    return gguf([], [tensor("t", **wrong)], DATA)  # type: ignore[arg-type]  # any one field


def nested(depth: int) -> bytes:
    raw = array(UINT8, [b"\1"])
    for _ in range(depth - 1):
        raw = array(ARRAY, [raw])
    return raw


K, T = "metadata 'k'", "tensor 't'"

HOSTILE: dict[str, tuple[bytes, tuple[str, ...]]] = {
    # The first 24 bytes.
    "empty": (b"", ("empty",)),
    "one byte": (b"G", ("not a GGUF file",)),
    "magic only": (b"GGUF", ("only 0 are left",)),
    "wrong magic": (gguf(magic=b"GGML"), ("not a GGUF file", "GGML")),
    "magic of line ends": (gguf(magic=b"\n\x1b[m"), ("not a GGUF file",)),
    "a safetensors file": (u64(2) + b"{}", ("not a GGUF file",)),
    "version 0": (gguf(version=u32(0)), ("version 0 is not supported",)),
    "version 4": (gguf(version=u32(4)), ("version 4 is not supported",)),
    "version 65536": (gguf(version=u32(65536)), ("version 65536 is not supported",)),
    "big-endian 2": (gguf(version=struct.pack(">I", 2)), ("big-endian", "gguf-convert-endian")),
    "big-endian 3": (gguf(version=struct.pack(">I", 3)), ("big-endian", "gguf-convert-endian")),
    "2^60 tensors": (gguf(n_tensors=HUGE), (f"{HUGE} tensors",)),
    "2^64-1 tensors": (gguf(n_tensors=2**64 - 1), (f"{2**64 - 1} tensors",)),
    "2^60 entries": (gguf(n_entries=HUGE), (f"{HUGE} metadata entries",)),
    "2^64-1 entries": (gguf(n_entries=2**64 - 1), (f"{2**64 - 1} metadata entries",)),
    "one tensor too many": (
        gguf([], [tensor("t")], bytes(64), n_tensors=2),
        ("tensor '' overlaps tensor 't'",),
    ),
    "one entry too many": (
        gguf([kv("k", UINT8, b"\1")], n_entries=2),
        ("2 metadata entries",),
    ),
    # Metadata.
    "key of 2^60 bytes": (gguf([string("k", HUGE) + bytes(40)]), ("metadata", str(HUGE))),
    "key of 2^64-1 bytes": (gguf([string("k", 2**64 - 1) + bytes(40)]), ("metadata",)),
    "key that ends behind the file": (gguf([string("k" * 20, 21)]), ("metadata", "only 20")),
    "key of 1 MB": (gguf([kv("k" * (1 << 20), UINT8, b"\1")]), ("metadata", "1048576 bytes")),
    "key that is not UTF-8": (gguf([kv(b"\xff\xfe", UINT8, b"\1")]), ("metadata", "not UTF-8")),
    "key that is a surrogate": (gguf([kv(b"\xed\xa0\x80", UINT8, b"\1")]), ("not UTF-8",)),
    "key twice": (gguf([kv("k", UINT8, b"\1")] * 2), (K, "twice")),
    "value type 13": (with_value(13, b"\1"), (K, "type 13")),
    "value type 2^32-1": (with_value(2**32 - 1, b"\1"), (K, f"type {2**32 - 1}")),
    "value missing": (gguf([kv("k", FLOAT64, bytes(7))]), (K, "needs 8 bytes")),
    "text of 2^60 bytes": (with_value(STRING, string("v", HUGE)), (K, str(HUGE))),
    "text of 2^64-1 bytes": (with_value(STRING, string("v", 2**64 - 1)), (K, str(2**64 - 1))),
    "text that ends behind the file": (gguf([kv("k", STRING, string("v", 2))]), (K,)),
    "text that is not UTF-8": (with_value(STRING, string(b"v\xc3")), (K, "not UTF-8")),
    # Arrays.
    "array without type": (gguf([kv("k", ARRAY, b"\0")]), (K,)),
    "array of unknown type": (with_value(ARRAY, array(13, [])), (K, "type 13")),
    **{
        f"array of 2^60 of type {kind}": (with_value(ARRAY, array(kind, [], HUGE)), (K, str(HUGE)))
        for kind in (STRING, ARRAY)
    },
    **{
        f"array of 2^60 of type {kind}": (with_value(ARRAY, array(kind, [], HUGE)), (K, "needs"))
        for kind in FORMATS
    },
    "array whose size wraps to 0": (with_value(ARRAY, array(UINT64, [], 1 << 61)), (K, "needs")),
    "array of texts whose size wraps": (with_value(ARRAY, array(STRING, [], 1 << 61)), (K,)),
    "array one element short": (gguf([kv("k", ARRAY, array(UINT8, [b"a"], 2))]), (K,)),
    "array with a text of 2^63 bytes": (
        with_value(ARRAY, array(STRING, [string("a", 1 << 63), string("b"), string("c")])),
        (K, "beyond the end"),
    ),
    "array with a text that wraps to itself": (
        with_value(ARRAY, array(STRING, [string("a", 2**64 - 8), string("b")])),
        (K, "beyond the end"),
    ),
    "array whose last text is too long": (
        gguf([kv("k", ARRAY, array(STRING, [string("a"), string("b", 2)]))]),
        (K, "beyond the end"),
    ),
    "array with a hostile array": (
        with_value(ARRAY, array(ARRAY, [array(INT32, []), array(STRING, [], HUGE)])),
        (K, str(HUGE)),
    ),
    "arrays 5 deep": (with_value(ARRAY, nested(5)), (K, "nested")),
    "arrays 50,000 deep": (with_value(ARRAY, nested(50_000)), (K, "nested")),
    # Alignment.
    "alignment 0": (with_alignment(UINT32, u32(0)), ("'general.alignment'", "power of two")),
    "alignment 3": (with_alignment(UINT32, u32(3)), ("'general.alignment'", "is 3")),
    "alignment 48": (with_alignment(UINT32, u32(48)), ("'general.alignment'", "is 48")),
    "alignment 2^31": (with_alignment(UINT32, u32(1 << 31)), (T, "beyond the end")),
    "alignment as UINT64": (with_alignment(UINT64, u64(32)), ("'general.alignment'", "UINT64")),
    "alignment as INT32": (with_alignment(INT32, u32(32)), ("'general.alignment'", "INT32")),
    "alignment as text": (with_alignment(STRING, string("32")), ("'general.alignment'", "STRING")),
    "alignment as array": (
        with_alignment(ARRAY, array(UINT32, [u32(32)])),
        ("'general.alignment'", "ARRAY"),
    ),
    # The tensor table.
    "name of 2^60 bytes": (gguf([], [string("t", HUGE) + bytes(40)]), ("tensor", str(HUGE))),
    "name of 1 MB": (gguf([], [tensor("t" * (1 << 20))], DATA), ("tensor", "1048576 bytes")),
    "name that is not UTF-8": (gguf([], [tensor(b"t\xff")], DATA), ("tensor", "not UTF-8")),
    "name twice": (
        gguf([], [tensor("t"), tensor("t", offset=32)], DATA * 2),
        (T, "twice"),
    ),
    "9 dimensions": (with_tensor(dims=(8, *[1] * 8)), (T, "9 dimensions")),
    "2^32-1 dimensions": (with_tensor(n_dims=2**32 - 1), (T, f"{2**32 - 1} dimensions")),
    "a dimension of 0": (with_tensor(dims=(8, 0)), (T, "(8, 0)")),
    "a first dimension of 0": (with_tensor(dims=(0,)), (T, "(0,)")),
    "dimensions whose product wraps to 0": (with_tensor(dims=(1 << 32, 1 << 32)), (T, "beyond")),
    "dimensions whose bytes wrap to 0": (with_tensor(dims=(1 << 62,)), (T, "beyond")),
    "dimensions whose product wraps to 8": (
        with_tensor(dims=(8, 1 << 61, 1 << 61, 8)),
        (T, "beyond"),
    ),
    "four dimensions of 2^64-1": (with_tensor(dims=(2**64 - 1,) * 4), (T, "beyond")),
    "tensor type 4": (with_tensor(kind=4), (T, "type 4")),
    "tensor type 2^32-1": (with_tensor(kind=2**32 - 1), (T, f"type {2**32 - 1}")),
    "half a block of Q8_0": (with_tensor(dims=(16,), kind=Q8_0), (T, "32", "Q8_0")),
    "half a superblock": (with_tensor(dims=(128, 2), kind=Q4_K), (T, "256", "Q4_K")),
    "table cut off": (gguf([], [tensor("t")[:-1]], alignment=1), (T, "needs 8 bytes")),
    # Offsets.
    "offset 4": (with_tensor(offset=4), (T, "offset 4", "32")),
    "offset of alignment 32 at alignment 64": (
        gguf(
            [kv("general.alignment", UINT32, u32(64))],
            [tensor("a"), tensor("t", offset=32)],
            DATA * 2,
            alignment=64,
        ),
        (T, "offset 32", "64"),
    ),
    "offset 2^60": (with_tensor(offset=HUGE), (T, "beyond the end", "truncated")),
    "offset that wraps": (with_tensor(offset=2**64 - 32), (T, "beyond the end")),
    "offset at the end": (with_tensor(offset=32), (T, "ends 32 bytes beyond the end")),
    "data one byte short": (gguf([], [tensor("t")], DATA[:-1]), (T, "ends 1 bytes beyond")),
    "no data": (gguf([], [tensor("t")]), (T, "beyond the end")),
    "same place": (gguf([], [tensor("a"), tensor("t")], DATA), (T, "overlaps", "'a'")),
    "overlapping": (
        gguf([], [tensor("t", offset=32), tensor("a", dims=(16,))], DATA * 3),
        (T, "overlaps", "'a'"),
    ),
    "one inside another": (
        gguf([], [tensor("a", dims=(64,)), tensor("t", offset=64)], DATA * 8),
        (T, "overlaps", "'a'"),
    ),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_header_is_refused(path: Path, case: str) -> None:
    content, words = HOSTILE[case]
    message = refusal_of(path, content)
    assert [word for word in words if word not in message] == []


def test_the_cases_are_right_but_for_one_thing(path: Path) -> None:
    path.write_bytes(with_value(STRING, string("v")))
    model = open_gguf(path)
    assert model.get("k") == "v"
    assert model.tensors["t"].raw.tobytes() == DATA
    for right in (
        with_tensor(),
        with_value(ARRAY, nested(4)),
        with_alignment(UINT32, u32(32)),
        gguf([], [tensor("t", offset=32), tensor("a", dims=(8,))], DATA * 2),
        gguf(),
    ):
        path.write_bytes(right)
        exercise(open_gguf(path))


@pytest.mark.parametrize("exponent", [*range(13), 16])
def test_every_power_of_two_is_an_alignment(path: Path, exponent: int) -> None:
    alignment = 1 << exponent
    second = -(-32 // alignment) * alignment
    content = gguf(
        [kv("general.alignment", UINT32, u32(alignment))],
        [tensor("a"), tensor("b", dims=(3,), offset=second)],
        DATA + bytes(second - 32) + b"twelve bytes",
        alignment=alignment,
    )
    path.write_bytes(content)
    model = open_gguf(path)
    assert model.header.alignment == alignment
    assert model.tensors["a"].raw.tobytes() == DATA
    assert model.tensors["b"].raw.tobytes() == b"twelve bytes"


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dims", [(), (8,), (8, 1), (1, 2, 2, 2), (1, 2, 2, 1, 2, 1, 1, 1)])
def test_versions_and_dimensions(path: Path, version: int, dims: tuple[int, ...]) -> None:
    path.write_bytes(gguf([], [tensor("t", dims=dims)], DATA, version=u32(version)))
    model = open_gguf(path)
    assert model.header.version == version
    assert model.tensors["t"].dims == (dims or (1,))
    assert model.n_weights == (8 if dims else 1)


HOSTILE_NAMES = {
    "line ends": "a\nrecover: done\r\n",
    "terminal codes": "\x1b[2J\x1b]0;title\x07",
    "NUL": "a\0b",
    "right to left": "\u202egpj.exe",
    "line separator": "a\u2028b\x85c",
    "private and unassigned": "\ue000\U000e0001\U0010ffff" * 20,
    "quotes": "'\"" * 30,
    "64 kB": "x" * 65_535,
    "64 kB of line ends": "\n" * 65_535,
    "wide": "\U0001f600" * 16_000,
}


@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())
def test_hostile_names_are_shown_safely(path: Path, name: str) -> None:
    wrong = {
        "value type": gguf([kv(name, 99, b"\1")]),
        "array": gguf([kv(name, ARRAY, array(STRING, [], HUGE))]),
        "key twice": gguf([kv(name, UINT8, b"\1")] * 2),
        "dimensions": gguf([], [tensor(name, n_dims=9)], DATA),
        "tensor type": gguf([], [tensor(name, kind=99)], DATA),
        "shape": gguf([], [tensor(name, dims=(0,))], DATA),
        "block": gguf([], [tensor(name, dims=(1,), kind=Q8_0)], DATA),
        "offset": gguf([], [tensor(name, offset=1)], DATA),
        "overlap": gguf([], [tensor(name), tensor("t")], DATA),
        "end": gguf([], [tensor(name, offset=320)], DATA),
        "twice": gguf([], [tensor(name), tensor(name, offset=32)], DATA * 2),
    }
    begin = repr(name)[1:20]
    for case, content in wrong.items():
        message = refusal_of(path, content, most_memory=4 << 20)  # `refusal_of` checks what it is
        assert begin in message or begin.replace('"', "'") in message, case


def test_long_names_are_shortened_but_usable(path: Path) -> None:
    name = "x" * 65_535
    path.write_bytes(gguf([kv(name, UINT8, b"\7")], [tensor(name)], DATA))
    model = open_gguf(path)
    assert model.get(name) == 7
    assert model.tensors[name].raw.tobytes() == DATA
    message = refusal_of(path, gguf([], [tensor(name, kind=4)], DATA))
    assert "xxx...' (65535 characters)" in message


# Files that are large, but not on the disk: zeros behind a header.

SPARSE = {
    "tensors": gguf(n_tensors=1 << 30),
    "tensors with no name": gguf(n_tensors=1 << 17),
    "entries": gguf(n_entries=1 << 30),
    "entries with no name": gguf(n_entries=1 << 17),
    "key": gguf([u64(1 << 35)]),
    "text": gguf([kv("k", STRING, u64(1 << 35))]),
    "name": gguf([], [u64(1 << 35)]),
    "strings": gguf([kv("k", ARRAY, array(STRING, [], 1 << 32))]),
    "arrays": gguf([kv("k", ARRAY, array(ARRAY, [], 1 << 31))]),
    "strings in two arrays": gguf(
        [kv("k", ARRAY, array(ARRAY, [array(STRING, [bytes(8)] * 10), array(STRING, [], 1 << 23)]))]
    ),
}


@pytest.mark.parametrize("case", SPARSE)
def test_large_counts_cost_little_even_if_the_file_is_large(path: Path, case: str) -> None:
    refusal_of(path, SPARSE[case], size=1 << 36)


def test_a_header_has_a_largest_size(path: Path) -> None:
    n_elements = 1 << 35
    path.write_bytes(gguf([kv("k", ARRAY, array(UINT8, [], n_elements))], n_entries=1))
    os.truncate(path, path.stat().st_size + n_elements)
    with pytest.raises(GGUFError, match=r"'k'.*more than 134217728 bytes") as caught:
        open_gguf(path)
    check_message(str(caught.value), path)


# Random files.


@st.composite
def values(draw: st.DrawFn) -> tuple[int, bytes]:
    """A value's type and bytes."""
    kind = draw(st.sampled_from([*FORMATS, STRING, ARRAY]))
    if kind == STRING:
        return kind, string(draw(st.text(max_size=8)))
    if kind in FORMATS:
        size = struct.calcsize(FORMATS[kind])
        return kind, draw(st.binary(min_size=size, max_size=size))
    return kind, draw(arrays(depth=1))


@st.composite
def arrays(draw: st.DrawFn, depth: int) -> bytes:
    """An array's bytes."""
    kinds = [UINT8, FLOAT32, BOOL, STRING] + [ARRAY] * (depth < 4)
    kind = draw(st.sampled_from(kinds))
    if kind == ARRAY:
        items = draw(st.lists(arrays(depth=depth + 1), max_size=2))
    elif kind == STRING:
        items = [string(text) for text in draw(st.lists(st.text(max_size=4), max_size=3))]
    else:
        size = struct.calcsize(FORMATS[kind])
        items = draw(st.lists(st.binary(min_size=size, max_size=size), max_size=3))
    return array(kind, items)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A right file that ends with the last byte of its last tensor."""
    alignment = 1 << draw(st.integers(0, 6))
    entries = [kv("general.alignment", UINT32, u32(alignment))]
    for i, (kind, raw) in enumerate(draw(st.lists(values(), max_size=4))):
        entries.append(kv(f"key.{i}", kind, raw))
    table, data = [], b""
    sizes = {F32: (1, 4), F16: (1, 2), Q8_0: (32, 34), Q4_K: (256, 144)}
    for i in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(sorted(sizes)))
        block_size, type_size = sizes[kind]
        n_blocks, n_rows = draw(st.integers(1, 2)), draw(st.integers(1, 2))
        data += bytes(-len(data) % alignment)
        table.append(tensor(f"blk.{i}", (n_blocks * block_size, n_rows), kind, len(data)))
        data += bytes([i + 1]) * (n_blocks * n_rows * type_size)
    version = draw(st.sampled_from([2, 3]))
    return gguf(entries, table, data, alignment=alignment, version=u32(version))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(content=files())
def test_file_that_is_cut_off_anywhere_is_refused(content: bytes) -> None:
    header = parse_header(content)
    assert header.tensors == () or header.data_start < len(content)
    for end in range(len(content)):
        with pytest.raises(GGUFError) as caught:
            parse_header(content[:end])
        check_line(str(caught.value))


def test_cut_off_file_on_the_disk(path: Path) -> None:
    content = gguf([kv("k", STRING, string("v"))], [tensor("t")], DATA)
    path.write_bytes(content)
    exercise(open_gguf(path))
    for end in reversed(range(len(content))):
        os.truncate(path, end)
        with pytest.raises(GGUFError) as caught:
            open_gguf(path)
        check_message(str(caught.value), path)


VICTIM = gguf(
    [
        kv("general.architecture", STRING, string("llama")),
        kv("general.alignment", UINT32, u32(32)),
        kv("a.bool", BOOL, scalar(BOOL, True)),
        kv("a.float", FLOAT64, scalar(FLOAT64, 1.5)),
        kv("tokens", ARRAY, array(STRING, [string("<s>"), string("é"), string("")])),
        kv("scores", ARRAY, array(FLOAT32, [scalar(FLOAT32, i) for i in range(3)])),
        kv("nested", ARRAY, array(ARRAY, [array(INT32, [u32(7)]), array(STRING, [string("x")])])),
    ],
    [
        tensor("blk.0.a", (32, 2), Q8_0, 0),
        tensor("blk.0.b", (8,), F32, 96),
        tensor("blk.0.c", (2, 3), F16, 128),
    ],
    bytes(range(140)),
)
INTERESTING = [0, 1, 4, 9, 31, 255, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]

edits = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.sampled_from(INTERESTING).map(u64),
    st.sampled_from(INTERESTING).map(lambda number: u32(number % 2**32)),
)


def opens(path: Path, content: bytes) -> bool:
    """Whether a file of that content is opened, and is consistent then; else it is refused well."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    try:
        model = open_gguf(path)
    except GGUFError as error:
        check_message(str(error), path)
        return False
    exercise(model)
    return True


def test_damaged_file_is_refused_or_consistent(path: Path) -> None:
    outcomes = {"opened": 0, "refused": 0}

    @settings(derandomize=True, deadline=None, max_examples=1000)
    @given(st.lists(st.tuples(st.integers(0, len(VICTIM) - 1), edits), min_size=1, max_size=3))
    def damage(changes: list[tuple[int, bytes]]) -> None:
        content = bytearray(VICTIM)
        for position, edit in changes:
            content[position : position + len(edit)] = edit
        outcomes["opened" if opens(path, bytes(content)) else "refused"] += 1

    damage()
    assert min(outcomes.values()) > 100, outcomes


def test_impossible_number_anywhere(path: Path) -> None:
    n_refused = 0
    for position, number in product(range(len(VICTIM) - 8), (2**64 - 1, 2**60, 0)):
        content = VICTIM[:position] + u64(number) + VICTIM[position + 8 :]
        n_refused += not opens(path, content)
    assert n_refused > len(VICTIM)


def test_arbitrary_bytes_behind_a_right_start() -> None:
    @settings(derandomize=True, deadline=None, max_examples=500)
    @given(st.integers(0, 3), st.integers(0, 3), st.binary(max_size=200))
    def parse(n_tensors: int, n_entries: int, rest: bytes) -> None:
        content = gguf(n_tensors=n_tensors, n_entries=n_entries) + rest
        if n_tensors + n_entries == 0:
            assert parse_header(content).tensors == ()
            return
        try:
            parse_header(content)
        except GGUFError as error:
            check_line(str(error))

    parse()

"""What opens, opens right: compared with gguf-py in both directions; split files; odd paths."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from recover.containers.gguf.header import ValueType, encode_header, encode_key_value, place_tensors
from recover.containers.gguf.reader import Model, open_gguf
from recover.errors import GGUFError
from recover.quants import type_by_name
from tests.hostile.builder import (
    ARRAY,
    BOOL,
    FLOAT32,
    FLOAT64,
    INT32,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    array,
    gguf,
    kv,
    scalar,
    string,
    tensor,
    u32,
)
from tests.hostile.checks import check_message, exercise, refusal

DATA = bytes(range(32))

SCALARS: dict[GGUFValueType, list[Any]] = {
    GGUFValueType.UINT8: [0, 1, 255],
    GGUFValueType.INT8: [-128, -1, 127],
    GGUFValueType.UINT16: [0, 65_535],
    GGUFValueType.INT16: [-32_768, 32_767],
    GGUFValueType.UINT32: [0, 2**32 - 1],
    GGUFValueType.INT32: [-(2**31), 2**31 - 1],
    GGUFValueType.FLOAT32: [0.0, -1.5, float(np.float32(1e-5)), float("inf"), 2.0**-149],
    GGUFValueType.BOOL: [True, False],
    GGUFValueType.STRING: ["", "llama", "\u0120the", "\U0001f999 \n\0"],
    GGUFValueType.UINT64: [0, 2**64 - 1],
    GGUFValueType.INT64: [-(2**63), 2**63 - 1],
    GGUFValueType.FLOAT64: [0.1, -1e300, float("-inf"), 5e-324],
}
NESTED: list[Any] = [
    [[1, 2, 3], [4]],
    [["a", "b"], ["", "\u00e9"]],
    [[[1.5], [2.5, -3.5]], [[0.0]]],
    [[[[7]]]],
]


def write_with_gguf_py(
    path: Path,
    entries: Iterable[tuple[str, Any, GGUFValueType, GGUFValueType | None]],
    tensors: Mapping[str, tuple[np.ndarray, GGMLQuantizationType | None]],
    alignment: int | None = None,
    **options: Any,
) -> None:
    writer = GGUFWriter(path, "test", **options)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, value, kind, element in entries:
        writer.add_key_value(key, value, kind, element)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def some_tensors() -> dict[str, tuple[np.ndarray, GGMLQuantizationType | None]]:
    random = np.random.default_rng(1)
    return {
        "token_embd.weight": (random.normal(size=(5, 64)).astype(np.float16), None),
        "output_norm.weight": (random.normal(size=37).astype(np.float32), None),
        "blk.0.q8": (
            random.integers(0, 256, (3, 2 * 34), np.uint8),
            GGMLQuantizationType.Q8_0,
        ),
        "blk.0.q4": (random.integers(0, 256, (2, 144), np.uint8), GGMLQuantizationType.Q4_K),
        "blk.0.bf16": (random.integers(0, 256, (2, 10), np.uint8), GGMLQuantizationType.BF16),
        "blk.0.ids": (random.integers(-99, 99, (2, 3, 2), np.int32), None),
        "blk.0.double": (random.normal(size=(1, 2, 1, 2)), None),
        "blk.0.bytes": (random.integers(-9, 9, 7, np.int8), None),
    }


def all_entries() -> list[tuple[str, Any, GGUFValueType, GGUFValueType | None]]:
    entries: list[tuple[str, Any, GGUFValueType, GGUFValueType | None]] = []
    for kind, examples in SCALARS.items():
        entries += [(f"{kind.name}.{i}", value, kind, None) for i, value in enumerate(examples)]
        entries.append((f"{kind.name}.array", examples, GGUFValueType.ARRAY, kind))
    for i, value in enumerate(NESTED):
        entries.append((f"nested.{i}", value, GGUFValueType.ARRAY, None))
    return entries


# gguf-py writes, we read.


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_what_gguf_py_writes_is_read_right(tmp_path: Path, alignment: int | None) -> None:
    path, entries, tensors = tmp_path / "model.gguf", all_entries(), some_tensors()
    write_with_gguf_py(path, entries, tensors, alignment)
    model = open_gguf(path)
    assert len(entries) > 40
    for key, value, kind, _ in entries:
        assert model.get(key) == value, key
        assert type(model.get(key)) is type(value), key
        assert model.metadata[key].value_type == kind
    assert len(model.metadata) == len(entries) + 1 + (alignment is not None)
    assert model.get("general.architecture") == "test"
    assert model.get("no.such.key") is None
    assert model.get("no.such.key", 3) == 3
    assert list(model.tensors) == list(tensors)
    reader = GGUFReader(path)
    for theirs in reader.tensors:
        ours = model.tensors[theirs.name]
        assert ours.name == theirs.name
        assert ours.dims == tuple(theirs.shape.tolist())
        assert ours.type.name == theirs.tensor_type.name
        assert ours.n_weights == theirs.n_elements
        assert model.header.data_start + ours.info.offset == theirs.data_offset
        assert ours.raw.tobytes() == theirs.data.tobytes() == tensors[ours.name][0].tobytes()
    assert len(reader.tensors) == len(model.tensors) == 8
    assert model.header.alignment == reader.alignment == (alignment or 32)
    assert model.n_bytes == path.stat().st_size
    assert model.parts == (path,)
    exercise(model)


def test_big_endian_file_of_gguf_py_gets_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_with_gguf_py(path, all_entries(), {}, endianess=GGUFEndian.BIG)
    assert "big-endian" in refusal(path)


# We write, gguf-py reads.


def written_by_us(path: Path, spans: list[bytes], alignment: int = 32) -> dict[str, bytes]:
    """A file of our encoder with a few tensors; the tensors' bytes."""
    random = np.random.default_rng(2)
    shapes = {"F32": (8, 3), "F16": (5,), "BF16": (4, 1, 2), "Q8_0": (32, 2), "Q6_K": (256,)}
    placed, n_bytes = place_tensors(
        [(f"t.{name}", dims, type_by_name(name)) for name, dims in shapes.items()], alignment
    )
    data = bytearray(n_bytes)
    contents = {}
    for info in placed:
        contents[info.name] = random.integers(0, 256, info.n_bytes, np.uint8).tobytes()
        data[info.offset : info.offset + info.n_bytes] = contents[info.name]
    path.write_bytes(encode_header(spans, placed, alignment) + data)
    return contents


def flat(value: Any) -> list[Any]:
    return [leaf for part in value for leaf in flat(part)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("alignment", [8, 32, 1024])
def test_what_we_write_is_read_right_by_gguf_py(tmp_path: Path, alignment: int) -> None:
    path, values = tmp_path / "model.gguf", {}
    spans = [encode_key_value("general.alignment", ValueType.UINT32, alignment)]
    for kind, examples in SCALARS.items():
        for i, value in enumerate([*examples, examples]):
            values[f"{kind.name}.{i}"] = value
            spans.append(encode_key_value(f"{kind.name}.{i}", ValueType(kind), value))
    contents = written_by_us(path, spans, alignment)
    reader = GGUFReader(path)
    assert len(values) > 40
    for key, value in values.items():
        field = reader.fields[key]
        assert field.contents() == value, key
        expected = [GGUFValueType.ARRAY] * isinstance(value, list)
        assert field.types[: len(expected)] == expected
        assert field.types[-1].name == key.partition(".")[0]
    assert len(reader.fields) == 3 + len(spans)  # three of gguf-py's own
    assert {theirs.name: theirs.data.tobytes() for theirs in reader.tensors} == contents
    assert reader.alignment == alignment
    exercise(open_gguf(path))


def test_spans_that_we_copy_are_read_right_by_gguf_py(tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    write_with_gguf_py(first, all_entries(), {})
    spans = [entry.span for entry in open_gguf(first).metadata.values()]
    written_by_us(second, spans)
    before, after = GGUFReader(first), GGUFReader(second)
    for key, value, _, _ in all_entries():
        assert after.fields[key].types == before.fields[key].types
        # gguf-py reads nested arrays flattened
        contents = after.fields[key].contents()
        assert (flat(contents) if isinstance(value, list) else contents) == (
            flat(value) if isinstance(value, list) else value
        )
    assert [key for key in before.fields if not key.startswith("GGUF.")] == [
        key for key in after.fields if not key.startswith("GGUF.")
    ]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=10),
        st.one_of(
            st.tuples(st.just(ValueType.INT64), st.integers(-(2**63), 2**63 - 1)),
            st.tuples(st.just(ValueType.UINT64), st.integers(0, 2**64 - 1)),
            st.tuples(st.just(ValueType.FLOAT32), st.floats(width=32, allow_nan=False)),
            st.tuples(st.just(ValueType.FLOAT64), st.floats(allow_nan=False)),
            st.tuples(st.just(ValueType.STRING), st.text()),
            st.tuples(st.just(ValueType.BOOL), st.booleans()),
            st.tuples(st.just(ValueType.STRING), st.lists(st.text(), max_size=5)),
            st.tuples(st.just(ValueType.INT16), st.lists(st.integers(-(2**15), 2**15 - 1))),
        ),
        max_size=6,
    )
)
def test_any_value_survives_our_encoder_and_both_readers(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, tuple[ValueType, Any]]
) -> None:
    path = tmp_path_factory.mktemp("values") / "model.gguf"
    written_by_us(path, [encode_key_value(key, *entry) for key, entry in entries.items()])
    ours, theirs = open_gguf(path), GGUFReader(path)
    assert list(ours.metadata) == list(entries)
    for key, (_, value) in entries.items():
        assert ours.get(key) == value
        assert theirs.fields[key].contents() == value


def test_text_without_utf8_form_is_written_with_question_marks(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    undecodable = os.fsdecode(b"caf\xe9.gguf")
    written_by_us(path, [encode_key_value("name", ValueType.STRING, [undecodable])])
    assert open_gguf(path).get("name") == ["caf?.gguf"]


# Spans.


def test_spans_are_kept_byte_for_byte(tmp_path: Path) -> None:
    entries = [
        kv("bool.two", BOOL, b"\x02"),
        kv("nan", FLOAT32, bytes.fromhex("0100c07f")),
        kv("negative.zero", FLOAT64, scalar(FLOAT64, -0.0)),
        kv("no.utf8", ARRAY, array(STRING, [string(b"\xff\xfe"), string(b"\xed\xa0\x80")])),
        kv("empty", ARRAY, array(ARRAY, [])),
        kv("bools", ARRAY, array(BOOL, [b"\x00", b"\xff"])),
        kv("nested", ARRAY, array(ARRAY, [array(INT32, []), array(ARRAY, [array(STRING, [])])])),
    ]
    content = gguf(entries, [tensor("t", (2, 4))], DATA)
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    model = open_gguf(path)
    spans = [entry.span for entry in model.metadata.values()]
    assert spans == entries
    again = encode_header(spans, model.header.tensors, model.header.alignment)
    assert again + DATA == content
    assert model.get("nested") == [[], [[]]]
    assert model.get("bools") == [False, True]
    assert np.isnan(model.get("nan"))


def test_text_in_arrays_is_looked_at_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf([kv("a\nb", ARRAY, array(STRING, [string(b"\xff\xfe")]))]))
    model = open_gguf(path)
    with pytest.raises(GGUFError, match=r"'a\\nb'.* not UTF-8") as caught:
        model.get("a\nb")
    check_message(str(caught.value), path)


def test_tensors_are_read_only_views(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written_by_us(path, [])
    before = path.read_bytes()
    raw = open_gguf(path).tensors["t.F32"].raw
    with pytest.raises(ValueError, match="read-only"):
        raw[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        raw.flags.writeable = True
    assert path.read_bytes() == before


# Split files.


def split(folder: Path, **options: Any) -> list[Path]:
    """A model of eight tensors in several parts, by gguf-py."""
    path = folder / "model.gguf"
    write_with_gguf_py(path, [("k", 7, GGUFValueType.UINT32, None)], some_tensors(), **options)
    parts = sorted(folder.glob("model-*.gguf"))
    assert len(parts) > 1
    return parts


def contents(model: Model) -> dict[str, bytes]:
    return {name: entry.raw.tobytes() for name, entry in model.tensors.items()}


@pytest.mark.parametrize(
    ("n_parts", "options"),
    [
        (4, {"split_max_tensors": 2}),
        (8, {"split_max_tensors": 1}),
        (2, {"split_max_tensors": 8, "small_first_shard": True}),
    ],
)
def test_split_file_is_read_as_one(tmp_path: Path, n_parts: int, options: dict[str, Any]) -> None:
    parts = split(tmp_path, **options)
    assert len(parts) == n_parts
    expected = {name: values.tobytes() for name, (values, _) in some_tensors().items()}
    for part in parts:
        model = open_gguf(part)
        assert model.parts == tuple(parts)
        assert model.path == parts[0]
        assert contents(model) == expected
        assert list(model.tensors) == list(expected)
        assert model.get("k") == 7
        assert model.n_bytes == sum(path.stat().st_size for path in parts)


def test_folder_of_a_split_file_may_be_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = split(tmp_path, split_max_tensors=4)
    monkeypatch.chdir(tmp_path)
    assert len(open_gguf(parts[1].name).tensors) == 8
    assert len(open_gguf(os.path.relpath(parts[1])).tensors) == 8


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_missing_part(tmp_path: Path, missing: int) -> None:
    parts = split(tmp_path, split_max_tensors=2)
    parts[missing].unlink()
    for part in parts:
        assert "part of the split file is missing" in refusal(part, blamed=parts[missing])


def test_damaged_part_is_named(tmp_path: Path) -> None:
    parts = split(tmp_path, split_max_tensors=2)
    os.truncate(parts[2], parts[2].stat().st_size - 32)  # more than the padding
    assert "beyond the end" in refusal(parts[0], blamed=parts[2])
    parts[2].write_bytes(b"")
    assert "empty" in refusal(parts[0], blamed=parts[2])
    parts[2].unlink()
    parts[2].mkdir()
    assert "folder" in refusal(parts[0], blamed=parts[2])


def test_exchanged_parts(tmp_path: Path) -> None:
    parts = split(tmp_path, split_max_tensors=2)
    spare = tmp_path / "spare"
    parts[1].rename(spare)
    parts[2].rename(parts[1])
    spare.rename(parts[2])
    assert "split.no 2" in refusal(parts[0], blamed=parts[1])


def test_part_without_its_name(tmp_path: Path) -> None:
    parts = split(tmp_path, split_max_tensors=2)
    alone = parts[0].rename(tmp_path / "alone.gguf")
    assert "one of 4 parts" in refusal(alone)


@pytest.mark.parametrize(
    "name",
    ["m-00000-of-00000.gguf", "m-00000-of-00002.gguf", "m-00003-of-00002.gguf"],
)
def test_impossible_part(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gguf())
    assert "cannot exist" in refusal(tmp_path / name)


ARABIC_DIGITS = "m-\u0660\u0660\u0660\u0660\u0661-of-\u0660\u0660\u0660\u0660\u0662.gguf"


@pytest.mark.parametrize(
    "name",
    ["m-1-of-2.gguf", "m-00001-of-00002", "m-00001-of-00002.gguf.bak", ARABIC_DIGITS],
)
def test_names_that_only_look_like_parts(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gguf([], [tensor("t")], DATA))
    assert contents(open_gguf(tmp_path / name)) == {"t": DATA}


def test_single_part_and_joined_file(tmp_path: Path) -> None:
    entries = {
        "m-00001-of-00001.gguf": [],
        "n-00001-of-00001.gguf": [
            kv("split.count", UINT16, b"\1\0"),
            kv("split.no", UINT16, b"\0\0"),
        ],
        "joined.gguf": [
            kv("split.count", UINT16, b"\0\0"),
            kv("split.tensors.count", INT32, u32(5)),
        ],
    }
    for name, metadata in entries.items():
        (tmp_path / name).write_bytes(gguf(metadata, [tensor("t")], DATA))
        assert contents(open_gguf(tmp_path / name)) == {"t": DATA}


def number(key: str, value: int) -> bytes:
    return kv(key, UINT16, scalar(UINT16, value))


def two_parts(folder: Path, first: list[bytes], second: list[bytes], name: str = "b") -> list[Path]:
    parts = [folder / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    parts[0].write_bytes(gguf(first, [tensor("a")], DATA))
    parts[1].write_bytes(gguf(second, [tensor(name)], DATA))
    return parts


FIRST = [number("split.no", 0), number("split.count", 2)]
SECOND = [number("split.no", 1), number("split.count", 2)]


def test_two_parts_are_right(tmp_path: Path) -> None:
    total = kv("split.tensors.count", INT32, u32(2))
    parts = two_parts(tmp_path, [*FIRST, number("k", 3), total], [*SECOND, number("k", 3), total])
    assert contents(open_gguf(parts[1])) == {"a": DATA, "b": DATA}
    exercise(open_gguf(parts[1]))


@pytest.mark.parametrize(
    ("first", "second", "blamed", "words"),
    [
        ([], SECOND, 0, "split.count None"),
        (FIRST, [], 1, "split.no None"),
        (FIRST, [number("split.no", 1), number("split.count", 3)], 1, "split.count 3"),
        (FIRST, [number("split.no", 0), number("split.count", 2)], 1, "split.no 0"),
        (FIRST, [number("split.no", 1), kv("split.count", STRING, string("\n"))], 1, "STRING"),
        (FIRST, [number("split.count", 2), kv("split.no", ARRAY, array(UINT8, []))], 1, "ARRAY"),
        ([*FIRST, number("k", 3)], [*SECOND, number("k", 4)], 1, "'k' differs"),
        ([*FIRST, number("k", 3)], [*SECOND, kv("k", UINT32, u32(3))], 1, "'k' differs"),
        (FIRST, [*SECOND, kv("split.tensors.count", INT32, u32(3))], 1, "hold 2 tensors"),
    ],
)
def test_parts_that_disagree(
    tmp_path: Path, first: list[bytes], second: list[bytes], blamed: int, words: str
) -> None:
    parts = two_parts(tmp_path, first, second)
    assert words in refusal(parts[0], blamed=parts[blamed])


def test_tensor_in_two_parts(tmp_path: Path) -> None:
    parts = two_parts(tmp_path, FIRST, SECOND, name="a")
    assert "tensor 'a' is in another part" in refusal(parts[0], blamed=parts[1])


# Paths.


def test_paths_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, loop, pipe = tmp_path / "file", tmp_path / "loop", tmp_path / "pipe"
    file.write_bytes(gguf())
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    assert "no such file" in refusal(tmp_path / "missing.gguf")
    assert "folder" in refusal(tmp_path)
    assert "no regular file" in refusal(pipe)
    assert "no regular file" in refusal(Path("/dev/null"))
    assert "cannot be read" in refusal(file / "below.gguf")
    assert "cannot be read" in refusal(loop)
    assert "cannot be read" in refusal(tmp_path / "nul\0.gguf")
    assert "cannot be read" in refusal(tmp_path / "lone\ud800.gguf")
    assert "cannot be read" in refusal(tmp_path / ("x" * 300))
    assert "cannot be read" in refusal(tmp_path / ("x" * 300 + "-00001-of-00002.gguf"))

    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "Permission denied" in refusal(file)


@pytest.mark.parametrize("name", ["a\nb.gguf", "\x1b[31m.gguf", os.fsdecode(b"\xff.gguf")])
def test_hostile_names_of_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    try:
        path.write_bytes(b"GGML")
    except OSError:
        pytest.skip("the file system does not know such names")
    refusal(path)  # checks that the message is one printable line
    path.write_bytes(gguf([], [tensor("t")], DATA))
    assert contents(open_gguf(path)) == {"t": DATA}


def test_path_may_be_text_and_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link.gguf"
    path.write_bytes(gguf([], [tensor("t")], DATA))
    link.symlink_to(path)
    assert contents(open_gguf(str(link))) == {"t": DATA}

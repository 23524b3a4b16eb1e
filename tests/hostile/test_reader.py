"""What opens, opens right: compared with gguf-py in both directions; odd paths."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFEndian, GGUFReader, GGUFValueType
from hypothesis import given, settings
from hypothesis import strategies as st

from recover.containers.gguf.header import ValueType, encode_header, encode_key_value, place_tensors
from recover.containers.gguf.reader import open_gguf
from recover.errors import GGUFError
from recover.quants import type_by_name
from tests.hostile.builder import array, gguf, kv, scalar, string, tensor
from tests.hostile.checks import check_message, exercise, refusal
from tests.hostile.kinds import ARRAY, BOOL, FLOAT32, FLOAT64, INT32, STRING
from tests.support.gguf_py import DATA, contents, some_tensors, write_with_gguf_py

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
        st.text(min_size=1, max_size=10).filter(lambda key: not key.startswith("split.")),
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

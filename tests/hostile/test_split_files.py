"""Split files: read as one, and refused where their parts do not belong together."""

import os
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType

from recover.containers.gguf.reader import open_gguf
from tests.hostile.builder import array, gguf, kv, scalar, string, tensor, u32
from tests.hostile.checks import exercise, refusal
from tests.hostile.kinds import ARRAY, INT32, STRING, UINT8, UINT16, UINT32
from tests.support.gguf_py import DATA, contents, some_tensors, write_with_gguf_py

# Split files.


def split(folder: Path, **options: Any) -> list[Path]:
    """A model of eight tensors in several parts, by gguf-py."""
    path = folder / "model.gguf"
    write_with_gguf_py(path, [("k", 7, GGUFValueType.UINT32, None)], some_tensors(), **options)
    parts = sorted(folder.glob("model-*.gguf"))
    assert len(parts) > 1
    return parts


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

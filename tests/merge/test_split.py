"""Output in parts, as llama-gguf-split makes them."""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType
from hypothesis import given
from hypothesis import strategies as st

from recover.cli import main
from recover.containers.gguf.parts import cut, lay_out_parts, parse_size
from recover.containers.gguf.reader import open_gguf
from recover.errors import OutputError, PlanError
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from recover.quants import type_by_name
from tests.oracle.llama_cpp import LlamaModel
from tests.support.gguf_files import Stored, read_tensors, stored, tensor_bytes, write_gguf

KEYS = {
    "split.no": GGUFValueType.UINT16,
    "split.count": GGUFValueType.UINT16,
    "split.tensors.count": GGUFValueType.INT32,
}


def parts_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-of-*.gguf"))


def metadata(path: Path) -> dict[str, Any]:
    fields = GGUFReader(path).fields.items()
    return {key: field.contents() for key, field in fields if not key.startswith("GGUF.")}


def merge(inputs: Sequence[Path], output: Path, size: int | None, **options: Any) -> list[Path]:
    """The parts that a merge writes."""
    plan = plan_merge(inputs, output, split_max_size=size, **options)
    execute_merge(plan, n_threads=2, force=True)
    return [part.path for part in plan.parts]


@pytest.fixture(scope="module")
def whole(tiny: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output in one file."""
    path = tmp_path_factory.mktemp("whole") / "out.gguf"
    execute_merge(plan_merge(tiny, path))
    return path


# Where the cuts are.


def as_llama_gguf_split(sizes: list[int], most: int) -> list[list[int]]:
    """The loop of `split_strategy`, but where it gives up: a first tensor that is too large."""
    splits: list[list[int]] = [[]]
    curr_tensors_size = 0
    for i, n_bytes in enumerate(sizes):
        next_tensors_size = curr_tensors_size + n_bytes
        if next_tensors_size > most:
            if splits[-1]:
                splits.append([])
            curr_tensors_size = n_bytes
        else:
            curr_tensors_size = next_tensors_size
        splits[-1].append(i)
    return splits


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 100))
def test_cuts_are_those_of_llama_gguf_split(sizes: list[int], most: int) -> None:
    parts = cut(sizes, most)
    assert [list(part) for part in parts] == as_llama_gguf_split(sizes, most)
    assert [i for part in parts for i in part] == list(range(len(sizes)))
    for part in parts:
        assert len(part) == 1 or sum(sizes[i] for i in part) <= most


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("1", 1),
        ("123456", 123456),
        ("7K", 7000),
        ("500M", 500_000_000),
        ("500mb", 500_000_000),
        ("2G", 2_000_000_000),
        ("2GB", 2_000_000_000),
        ("2g", 2_000_000_000),
        ("2GiB", 2 * 1024**3),
        ("3kib", 3072),
        ("1T", 10**12),
        ("9B", 9),
    ],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    "text",
    ["", "0", "0G", "M", "-1M", "1.5G", "1 G", "1iB", "1BB", "1\u212a", "\u0661M", "9" * 30],
)
def test_bad_sizes_are_wrong_usage(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["merge", "a.gguf", "-o", "out.gguf", f"--split-max-size={text}"])
    assert caught.value.code == 2
    assert f"{text!r} is no size like 500M, 2GB or 2GiB" in capsys.readouterr().err


# What is written.


@pytest.mark.parametrize("size", [1, 400_000, 800_000, 2_000_000, 10**9])
def test_parts_hold_what_the_whole_file_holds(
    tiny: list[Path], whole: Path, tmp_path: Path, size: int
) -> None:
    parts = merge(tiny, tmp_path / "out.gguf", size)
    assert sorted(tmp_path.iterdir()) == parts
    n = len(parts)
    assert [part.name for part in parts] == [f"out-{i:05}-of-{n:05}.gguf" for i in range(1, n + 1)]
    assert (n > 1) == (size < 10**9)
    expected = tensor_bytes(whole)
    found: dict[str, Any] = {}
    for number, part in enumerate(parts):
        tensors = tensor_bytes(part)
        assert tensors
        assert len(tensors) == 1 or sum(len(each[2]) for each in tensors.values()) <= size
        found |= tensors
        fields = GGUFReader(part).fields
        assert {key: fields[key].types for key in KEYS} == {k: [kind] for k, kind in KEYS.items()}
        split = {
            "split.no": number,
            "split.count": n,
            "split.tensors.count": len(expected),
        }
        assert metadata(part) == (metadata(whole) if number == 0 else {}) | split
    assert list(found.items()) == list(expected.items())
    for part in parts:
        model = open_gguf(part)
        assert model.parts == tuple(parts)
        assert {name: tensor.raw.tobytes() for name, tensor in model.tensors.items()} == {
            name: raw for name, (_, _, raw) in expected.items()
        }


def test_the_parts_are_those_of_gguf_py(tiny: list[Path], whole: Path, tmp_path: Path) -> None:
    size = 800_000
    ours = merge(tiny, tmp_path / "ours.gguf", size)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    write_gguf(theirs / "out.gguf", read_tensors(whole), split_max_size=size)
    assert [tensor_bytes(part) for part in ours] == list(map(tensor_bytes, parts_of(theirs)))


@pytest.mark.inference
def test_llama_cpp_loads_the_parts(tiny: list[Path], whole: Path, tmp_path: Path) -> None:
    parts = merge(tiny, tmp_path / "out.gguf", 1_000_000)
    assert len(parts) > 4
    tokens = [1, *range(100, 160)]
    with LlamaModel(whole) as model:
        expected = model.logits(tokens)
    with LlamaModel(parts[0]) as model:
        np.testing.assert_array_equal(model.logits(tokens), expected)


def small_model(path: Path, kind: str, **options: Any) -> Path:
    x = np.random.default_rng(5).normal(0, 0.02, (4, 64, 256)).astype(np.float32)
    tensors: dict[str, Stored] = {
        f"blk.{i}.ffn_up.weight": stored(kind, each) for i, each in enumerate(x)
    }
    return write_gguf(path, tensors, **options)


def test_alignment_of_the_input(tmp_path: Path) -> None:
    def align(writer: Any) -> None:
        writer.add_custom_alignment(128)

    source = small_model(tmp_path / "in.gguf", "Q4_0", add=align)
    parts = merge([source], tmp_path / "out.gguf", 40_000)
    merge([source], tmp_path / "whole.gguf", None)
    assert len(parts) == 4
    expected = tensor_bytes(tmp_path / "whole.gguf")
    assert {k: v for part in parts for k, v in tensor_bytes(part).items()} == expected
    for part in parts:
        assert metadata(part)["general.alignment"] == 128
        assert all(tensor.data_offset % 128 == 0 for tensor in GGUFReader(part).tensors)
    assert (
        open_gguf(parts[0]).tensors["blk.3.ffn_up.weight"].raw.tobytes()
        == (expected["blk.3.ffn_up.weight"][2])
    )


def test_keys_of_split_inputs_are_not_carried_over(tmp_path: Path) -> None:
    small_model(tmp_path / "fine.gguf", "Q8_0", split_max_tensors=2)
    source = small_model(tmp_path / "coarse.gguf", "Q4_0")
    inputs = [tmp_path / "fine-00001-of-00002.gguf", source]
    parts = merge(inputs, tmp_path / "out.gguf", 40_000)
    assert [metadata(part)["split.count"] for part in parts] == [4] * 4
    merge(inputs, tmp_path / "whole.gguf", None)
    assert not any(key.startswith("split.") for key in metadata(tmp_path / "whole.gguf"))
    (part,) = merge(inputs, tmp_path / "one.gguf", 10**6)
    assert part.name == "one-00001-of-00001.gguf"
    assert metadata(part)["split.count"] == 1
    assert len(open_gguf(part).tensors) == 4


@pytest.mark.parametrize(
    ("given_name", "stem"),
    [
        ("out.gguf", "out"),
        ("out.v1.gguf", "out.v1"),
        (".gguf", ".gguf"),
        ("out-00001-of-00009.gguf", "out"),
        ("out-00002-of-00002.gguf", "out"),
    ],
)
def test_names(tmp_path: Path, given_name: str, stem: str) -> None:
    source = small_model(tmp_path / "in.gguf", "Q4_0")
    folder = tmp_path / "out"
    folder.mkdir()
    parts = merge([source], folder / given_name, 80_000)
    assert [part.name for part in parts] == [f"{stem}-0000{i}-of-00002.gguf" for i in (1, 2)]
    assert sorted(folder.iterdir()) == parts
    assert len(open_gguf(parts[1]).tensors) == 4


def test_too_many_parts() -> None:
    tensors = [(f"{i}", (1,), type_by_name("F32")) for i in range(65_536)]
    with pytest.raises(PlanError, match="would be 65,536, more than 65,535"):
        lay_out_parts([], tensors, 32, 1)


def test_on_the_command_line(
    tiny: list[Path], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = tmp_path / "deviation.gguf"
    arguments = ["merge", *map(str, tiny), "-o", str(tmp_path / "out.gguf"), "--split-max-size"]
    assert main([*arguments, "1M", "--dry-run", "-v"]) == 0
    captured = capsys.readouterr()
    assert "in 8 parts, posterior)" in captured.out
    assert captured.out.splitlines()[-6].split()[-1] == "8"
    assert main([*arguments, "1M", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert not list(tmp_path.iterdir())
    assert main([*arguments, "1M", "--json", "--uncertainty", str(second)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["output"] == str(tmp_path / "out-00001-of-00008.gguf") == plan["output"]
    sizes = {part["path"]: part["n_bytes"] for part in plan["parts"]}
    assert {str(path): path.stat().st_size for path in parts_of(tmp_path)} == sizes
    assert sum(sizes.values()) == plan["n_bytes"]
    assert list(tensor_bytes(second)) == list(tensor_bytes(whole))
    assert sorted(tmp_path.iterdir()) == sorted([second, *parts_of(tmp_path)])
    some = ["--tensors", r"blk\.1\."]
    assert main([*arguments, "500K", *some]) == 0
    assert "out-00001-of-00004.gguf (1.5 MiB in 4 parts" in capsys.readouterr().out
    assert main([*arguments, "100K"]) == 0
    warning = "warning: parts are larger than asked for where one tensor alone is: "
    assert f"{warning}'output.weight' (524,288 bytes), " in capsys.readouterr().err


# What is left alone.


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    small_model(tmp_path / "x.gguf", "Q8_0", split_max_tensors=2)
    inputs = parts_of(tmp_path)
    before = [path.read_bytes() for path in inputs]
    with pytest.raises(OutputError, match=r"x-00001-of-00002\.gguf: is one of the inputs"):
        plan_merge(inputs[:1], tmp_path / "x.gguf", split_max_size=80_000)
    assert len(merge(inputs[:1], tmp_path / "x.gguf", 40_000)) == 4
    assert [path.read_bytes() for path in inputs] == before


def test_the_whole_name_may_be_an_input(tmp_path: Path) -> None:
    source = small_model(tmp_path / "x.gguf", "Q8_0")
    before = source.read_bytes()
    assert len(merge([source], source, 80_000)) == 2
    assert source.read_bytes() == before


def test_names_that_cannot_be_written(tmp_path: Path) -> None:
    source = small_model(tmp_path / "in.gguf", "Q4_0")
    (tmp_path / "folder-00002-of-00002.gguf").mkdir()
    refused = {
        Path("/dev/null"): "is neither a GGUF file nor a folder; let its name end in .gguf or in /",
        tmp_path / "out": "is neither a GGUF file nor a folder",
        tmp_path / "no" / "folder.gguf": "folder does not exist",
        tmp_path / "folder.gguf": "folder-00002-of-00002.gguf: is no regular file",
        tmp_path / f"{'x' * 250}.gguf": "cannot be written",
    }
    for path, words in refused.items():
        with pytest.raises(OutputError, match=words):
            plan_merge([source], path, split_max_size=80_000)
    part = tmp_path / "out-00002-of-00002.gguf"
    with pytest.raises(OutputError, match="is the name of a part of a split file"):
        plan_merge([source], tmp_path / "out.gguf", split_max_size=80_000, uncertainty=part)
    with pytest.raises(PlanError, match="parts of 0 bytes"):
        plan_merge([source], tmp_path / "out.gguf", split_max_size=0)


def test_the_first_part_appears_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small_model(tmp_path / "in.gguf", "Q4_0")
    original, seen = os.replace, []

    def replace(old: Path, new: Path) -> None:
        for number in range(1, 5):  # all are complete before any gets its name
            part = tmp_path / f"out-0000{number}-of-00004.gguf"
            assert GGUFReader(next(tmp_path.glob(f".{part.name}.*.tmp"), part)).tensors
        seen.append(new.name)
        original(old, new)

    monkeypatch.setattr(os, "replace", replace)
    parts = merge([source], tmp_path / "out.gguf", 40_000)
    assert seen == [part.name for part in parts[::-1]]


@pytest.mark.parametrize("n_good", range(5))
@pytest.mark.parametrize("is_there", [False, True])
def test_no_part_appears_if_one_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_good: int, is_there: bool
) -> None:
    """The older ones are there again, all of them or, where there were none, nothing."""
    source = small_model(tmp_path / "in.gguf", "Q4_0")
    older = [tmp_path / f"out-0000{i}-of-00004.gguf" for i in range(1, 5)] if is_there else []
    for path in older:
        path.write_bytes(b"older")
    original, n_calls = os.replace, 0

    def replace(old: Path, new: Path) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == n_good + 1:
            raise OSError(errno.EIO, "Input/output error")
        original(old, new)

    monkeypatch.setattr(os, "replace", replace)
    second = tmp_path / "s.gguf"
    plan = plan_merge([source], tmp_path / "out.gguf", split_max_size=40_000, uncertainty=second)
    with pytest.raises(OutputError, match="cannot be written: Input/output error"):
        execute_merge(plan, n_threads=1)
    assert set(tmp_path.iterdir()) - {source} == set(older)
    assert all(path.read_bytes() == b"older" for path in older)
    monkeypatch.undo()
    execute_merge(plan, n_threads=1)
    assert len(set(tmp_path.iterdir())) == 6

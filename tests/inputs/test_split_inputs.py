"""All parts of a split file, as a shell makes them of a glob, are one input of every command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover import plan_merge
from recover.cli import main
from recover.containers.gguf.parts import without_further_parts
from tests.support.gguf_files import stored, tensor_bytes, write_gguf

UP, DOWN = "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., list[Path]]:
    def write(kind: str, **options: Any) -> list[Path]:
        rng = np.random.default_rng(4)
        tensors = {
            name: stored(kind, rng.normal(0, 0.02, (128, 256)).astype(np.float32))
            for name in (UP, DOWN)
        }
        write_gguf(tmp_path / f"{kind}.gguf", tensors, **options)
        return sorted(tmp_path.glob(f"{kind}*.gguf"))

    return write


@pytest.fixture
def parts(write: Callable[..., list[Path]]) -> list[Path]:
    found = write("Q5_K", split_max_tensors=1)
    assert len(found) == 2
    return found


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a-00001-of-00002 a-00002-of-00002", "a-00001-of-00002"),
        ("a-00002-of-00002 b a-00001-of-00002", "a-00002-of-00002 b"),
        ("a-00001-of-00002 b-00002-of-00002", "a-00001-of-00002 b-00002-of-00002"),
        ("a-00001-of-00002 a-00002-of-00003", "a-00001-of-00002 a-00002-of-00003"),
        ("a-00001-of-00002 x/a-00002-of-00002", "a-00001-of-00002 x/a-00002-of-00002"),
        ("a-00001-of-00002 ./x/../a-00002-of-00002", "a-00001-of-00002"),
        ("a-00001-of-00002 a a-00002-of-00002", "a-00001-of-00002 a"),
        ("a-00001-of-00002 a-00001-of-00002", "a-00001-of-00002 a-00001-of-00002"),
        ("a a", "a a"),
    ],
)
def test_paths(given: str, kept: str) -> None:
    paths = [f"folder/{name}.gguf" for name in given.split()]
    expected = [Path("folder", f"{name}.gguf") for name in kept.split()]
    assert without_further_parts(paths) == expected


def test_merge(
    parts: list[Path],
    write: Callable[..., list[Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (other,) = write("Q4_K")
    outputs = []
    for number, inputs in enumerate((parts[:1], parts, parts[::-1])):
        out = tmp_path / f"out-{number}.gguf"
        assert main(["merge", *map(str, [*inputs, other]), "-o", str(out), "--json"]) == 0
        captured = capsys.readouterr()
        assert "counts once" not in captured.err
        assert json.loads(captured.out)["inputs"] == [str(parts[0]), str(other)]
        outputs.append(out.read_bytes())
    assert len(set(outputs)) == 1
    assert len(tensor_bytes(out)) == 2


def test_a_part_that_is_there_twice_is_told_of(parts: list[Path], tmp_path: Path) -> None:
    plan = plan_merge([*parts, *parts], tmp_path / "out.gguf")
    assert plan.warnings[-1] == f"{parts[0]} is given more than once: it counts once"


def test_other_commands(
    parts: list[Path],
    write: Callable[..., list[Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (other,), (truth,), given = write("Q4_K"), write("F32"), [str(path) for path in parts]

    def document(*arguments: str | Path) -> Any:
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert len(document("inspect", *given)["files"]) == 1
    assert len(document("inspect", *given, other)["files"]) == 2
    assert len(document("verify", truth, *given)["inputs"]) == 1
    assert len(document("evaluate", *given, "--truth", truth)["models"]) == 1
    bounds = document("bounds", *given, "--summary")
    assert {tuple(each["types"]) for each in bounds["tensors"]} == {("Q5_K",)}
    fitted = document("calibrate", *given, other, "--truth", truth, "-o", tmp_path / "c.json")
    assert len(fitted["calibration"]["inputs"]) == 2

"""Commands whose work several processes share: bytes and reports are those of one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover.cli import main
from tests.support.models import TINY
from tests.support.sharding import LAST_MOMENTS, MOMENTS, contents, figures, hidden, in_a_process

Command = Callable[[Path], list[str]]


def commands(tiny: list[Path], folder: Path) -> dict[str, Command]:
    """By name, the arguments with which a command writes into a folder."""
    grid = _with_integers(folder)
    inputs = list(map(str, tiny))
    return {
        "quantize": lambda home: ["quantize", str(TINY), "Q4_K", "-o", f"{home}/out.gguf"],
        "export": lambda home: [
            *("export", str(TINY), "-o", f"{home}/out", "--outtype", "f16"),
            *("--max-shard-size", "2MB"),
        ],
        "bounds": lambda home: ["bounds", *inputs, "-o", f"{home}/out.safetensors"],
        "half bounds": lambda home: [
            *("bounds", *inputs[:2], "-o", f"{home}/out.safetensors"),
            *("--dtype", "f16", "--tensors", "blk.0"),
        ],
        "reblock": lambda home: ["reblock", str(grid), "-o", f"{home}/out.gguf"],
    }


NAMES = ("quantize", "export", "bounds", "half bounds", "reblock")


def _with_integers(folder: Path) -> Path:
    """A GGUF file of floats that hide integers, and of some that do not."""
    from tests.support.gguf_files import stored, write_gguf

    rng = np.random.default_rng(5)
    scales = rng.choice(np.array([0.5, 0.25, 0.125], np.float32), (64, 16, 1))
    q = rng.integers(-7, 8, (64, 16, 32)).astype(np.float32)
    q[..., 0] = 7
    tensors = {
        f"blk.{i}.ffn_up.weight": stored("F32", (q[i:] * scales[i:]).reshape(64 - i, 512))
        for i in range(4)
    }
    tensors["output_norm.weight"] = stored("F32", rng.normal(1, 0.1, 512).astype(np.float32))
    return write_gguf(folder / "grid.gguf", tensors)


class Shared:
    """A command that is shared."""

    def __init__(self, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
        self._command = command
        self._capsys = capsys

    def do(self, home: Path, shard: str | None = None, *more: str) -> dict[str, Any]:
        home.mkdir(exist_ok=True)
        arguments = [*self._command(home), "--json", "--threads", "2", *more]
        self._capsys.readouterr()
        status = main(arguments + ([] if shard is None else ["--shard", shard]))
        printed = self._capsys.readouterr()
        assert status == 0, printed.err
        document: dict[str, Any] = json.loads(printed.out)
        return document

    def check(self, home: Path, document: dict[str, Any], once: Path) -> None:
        expected = self.do(once)
        assert figures(document) == figures(expected)
        assert _without_paths(contents(home), home) == _without_paths(contents(once), once)
        assert [name[-12:] for name in hidden(home)] == [".shards.json"]


def _without_paths(files: dict[str, bytes], home: Path) -> dict[str, bytes]:
    """Reports name the output."""
    return {
        name: data.replace(str(home).encode(), b"") if name.endswith(".report.json") else data
        for name, data in files.items()
    }


@pytest.fixture(params=NAMES)
def shared(
    request: pytest.FixtureRequest,
    tiny: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Shared:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    return Shared(commands(tiny, inputs)[request.param], capsys)


def test_any_order(shared: Shared, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert shared.do(home, "3/3")["missing"] == [1, 2]
    assert shared.do(home, "1/3")["missing"] == [2]
    document = shared.do(home, "2/3")
    shared.check(home, document, tmp_path / "once")
    for shard in ("1/3", "2/3"):
        shared.check(home, shared.do(home, shard), tmp_path / f"again {shard[0]}")


def test_killed_and_repeated(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    for moment, shard in zip(MOMENTS, ("2/3", "1/3"), strict=True):
        with monkeypatch.context() as patch:
            MOMENTS[moment](patch)
            assert in_a_process(lambda shard=shard: shared.do(home, shard)) < 0  # type: ignore[misc]
    for shard in ("3/3", "1/3"):
        shared.do(home, shard)
    for moment in LAST_MOMENTS:
        with monkeypatch.context() as patch:
            LAST_MOMENTS[moment](patch)
            assert in_a_process(lambda: shared.do(home, "2/3")) < 0
    shared.check(home, shared.do(home, "2/3"), tmp_path / "once")


def test_other_options(shared: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    shared.do(home, "1/2")
    with pytest.raises(AssertionError, match=r"parts of another plan \(2 parts, not 4\)"):
        shared.do(home, "1/4")


def test_an_export_replaces_nothing_unasked(
    tiny: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = Shared(commands(tiny, tmp_path)["export"], capsys)
    home = tmp_path / "home"
    shared.do(home)
    with pytest.raises(AssertionError, match="is there already; --force replaces it"):
        shared.do(home, "1/2")
    shared.do(home, "1/2", "--force")
    shared.check(home, shared.do(home, "2/2", "--force"), tmp_path / "once")


def test_a_summary_has_no_parts(tiny: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bounds", *map(str, tiny), "--summary", "--shard", "1/2"]) == 2
    assert "name one with -o" in capsys.readouterr().err

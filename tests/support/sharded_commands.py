"""Commands whose work can be shared, and what they write."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover.cli import main
from tests.support.gguf_files import stored, write_gguf
from tests.support.models import TINY
from tests.support.sharding import contents, figures, hidden

Command = Callable[[Path], list[str]]


def commands(tiny: list[Path], folder: Path) -> dict[str, Command]:
    """By name, the arguments with which a command writes into a folder."""
    grid = _with_integers(folder)
    inputs = list(map(str, tiny))
    return {
        "quantize": lambda home: ["quantize", str(TINY), "Q4_K", "-o", f"{home}/out.gguf"],
        "quantize by rows": lambda home: [
            *("quantize", str(TINY), "Q8_0", "-o", f"{home}/out.gguf"),
            *("--tensor-type", "blk.0.attn_k=IQ4_KT"),
        ],
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


NAMES = ("quantize", "quantize by rows", "export", "bounds", "half bounds", "reblock")


def _with_integers(folder: Path) -> Path:
    """A GGUF file of floats that hide integers, and of some that do not."""
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
        self._once: dict[Path, dict[str, Any]] = {}

    def do(self, home: Path, shard: str | None = None, *more: str) -> dict[str, Any]:
        home.mkdir(exist_ok=True)
        arguments = [*self._command(home), "--json", "--threads", "2", *more]
        self._capsys.readouterr()
        status = main(arguments + ([] if shard is None else ["--shard", shard]))
        printed = self._capsys.readouterr()
        assert status == 0, printed.err
        document: dict[str, Any] = json.loads(printed.out)
        return document

    def check_same(
        self, home: Path, document: dict[str, Any], once: Path, expected: dict[str, Any]
    ) -> None:
        assert figures(document) == figures(expected)
        assert _without_paths(contents(home), home) == _without_paths(contents(once), once)

    def check(self, home: Path, document: dict[str, Any], once: Path) -> None:
        """It is as that of one process, and little is left."""
        if once not in self._once:
            self._once[once] = self.do(once)
        self.check_same(home, document, once, self._once[once])
        assert [name[-12:] for name in hidden(home)] == [".shards.json"]


def _without_paths(files: dict[str, bytes], home: Path) -> dict[str, bytes]:
    """Reports name the output."""
    return {
        name: data.replace(str(home).encode(), b"") if name.endswith(".report.json") else data
        for name, data in files.items()
    }

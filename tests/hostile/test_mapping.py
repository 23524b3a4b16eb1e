"""Inputs that are truncated, changed or replaced while they are mapped."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover import open_gguf
from recover.cli import main
from recover.containers import mapping
from recover.containers.safetensors.reader import open_safetensors
from recover.containers.safetensors.writer import lay_out
from recover.errors import InputError
from recover.execution.output import OutputFile
from recover.execution.tiles import for_each_tile
from recover.inputs.alignment import Alignment, align
from recover.quantize.execute import execute_quantize
from recover.quantize.plan import plan_quantize
from tests.support.models import ROOT, TINY


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    found = tmp_path / "in.gguf"
    found.write_bytes(TINY.read_bytes())
    yield found
    mapping.forget()


def touch_all(path: Path) -> int:
    """Read every byte of a model that is truncated in between."""
    before = mapping.faults()
    model = open_gguf(path)
    os.truncate(path, 1_000_000)
    total = sum(int(tensor.raw.sum(dtype=np.int64)) for tensor in model.tensors.values())
    with pytest.raises(InputError) as caught:
        mapping.check_faults(before)
    message = str(caught.value)
    assert message.startswith(f"{path}: was truncated from 5,798,304 to 1,000,000 bytes while it")
    assert "in tensor 'blk." in message or "in tensor 'output" in message or "token" in message
    return total


def test_pages_that_are_gone_read_as_zeros(path: Path) -> None:
    raw = TINY.read_bytes()
    start = open_gguf(TINY).header.data_start
    assert touch_all(path) < sum(raw[start:])


def test_the_fault_is_forgotten_with_the_file(path: Path) -> None:
    before = mapping.faults()
    touch_all(path)
    gc.collect()
    mapping.check_faults(before)  # nobody has it mapped any more
    path.write_bytes(TINY.read_bytes())
    model = open_gguf(path)
    assert all(tensor.raw.any() for tensor in model.tensors.values())
    mapping.check_unchanged([path])


def test_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    layout = lay_out([("a", "F32", (2_000,)), ("b", "F32", (5_000,))], {})
    path.write_bytes(layout.header + bytes(layout.n_bytes - len(layout.header)))
    before = mapping.faults()
    model = open_safetensors(path)
    os.truncate(path, layout.positions[1] + 1)
    assert not model.tensors["b"].raw.any()
    with pytest.raises(InputError, match=r"was truncated from .* in tensor 'b'"):
        mapping.check_faults(before)
    mapping.forget()


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"x")
    os.utime(path, ns=(1, 1))


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"another file")
    other.replace(path)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "grown": (grow, "was changed while it was read"),
    "overwritten": (overwrite, "was changed while it was read"),
    "truncated": (lambda path: os.truncate(path, 9), "was truncated from 5,798,304 to 9 bytes"),
    "touched": (lambda path: os.utime(path, ns=(1, 1)), "was changed while it was read"),
    # What was mapped is still what it was.
    "removed": (Path.unlink, ""),
    "replaced": (replace, ""),
    "read": (Path.read_bytes, ""),
    "renamed": (lambda path: path.rename(path.with_name("renamed")), ""),
    "another mode": (lambda path: path.chmod(0o400), ""),
    "a second name": (lambda path: path.with_name("second").hardlink_to(path), ""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_output_is_made_of_a_changed_input(path: Path, tmp_path: Path, change: str) -> None:
    apply, words = CHANGES[change]
    _model = open_gguf(path)
    out = tmp_path / "out"

    def write() -> None:
        with OutputFile(out, 9, [path]) as output:
            apply(path)
            output.write_at(0, b"something")

    if not words:
        write()
        assert out.read_bytes() == b"something"
        return
    with pytest.raises(InputError, match=words) as caught:
        write()
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


def test_what_other_files_do_is_no_matter(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(TINY.read_bytes())
    _models = open_gguf(path), open_gguf(other)
    os.utime(other, (1, 1))
    with OutputFile(tmp_path / "out", 0, [path]):
        pass
    with pytest.raises(InputError, match=str(other)):
        mapping.check_unchanged()


def test_tiles_end_with_the_error(path: Path) -> None:
    tensor = max(open_gguf(path).tensors.values(), key=lambda each: each.n_weights)

    def work(_tile: object) -> None:
        os.truncate(path, 1000)
        tensor.raw.sum()

    with pytest.raises(InputError, match="was truncated from 5,798,304 to 1,000 bytes"):
        for_each_tile([10], [work])


def test_writing_from_pages_that_are_gone(path: Path, tmp_path: Path) -> None:
    """The system then refuses to read them, without a signal."""
    plan = plan_quantize(path, tmp_path / "out.gguf", "F16")
    tensor = max(open_gguf(path).tensors.values(), key=lambda each: each.n_weights)
    os.truncate(path, 4096)
    with (
        pytest.raises(InputError, match="was truncated"),
        OutputFile(tmp_path / "copy", tensor.raw.size, [path]) as output,
    ):
        output.write_at(0, tensor.raw.data)
    with pytest.raises(InputError, match="was truncated"):
        execute_quantize(plan)
    assert [each.name for each in tmp_path.iterdir()] == ["in.gguf"]


def test_faults_elsewhere_end_the_process() -> None:
    """They are nobody's to hide."""
    code = (
        "import mmap, os, sys, tempfile\n"
        "from recover import open_gguf\n"
        "model = open_gguf(sys.argv[1])\n"
        "file = tempfile.TemporaryFile()\n"
        "file.truncate(8192)\n"
        "mapped = mmap.mmap(file.fileno(), 0)\n"
        "file.truncate(0)\n"
        "mapped[5000]\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(TINY)], cwd=ROOT, check=False)
    assert done.returncode == -7  # SIGBUS


TRUNCATED_EARLY = {
    "merge": ["-o", "out.gguf", "--dry-run"],
    "merge --json": ["-o", "out.gguf", "--dry-run", "--json"],
    "inspect": [],
    "inspect --json": ["--json"],
    "bounds": ["--summary"],
}


@pytest.mark.parametrize("command", TRUNCATED_EARLY)
def test_nothing_is_said_of_pages_that_are_gone(
    command: str,
    path: Path,
    tiny: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def truncate(*arguments: Any) -> Alignment:
        os.truncate(path, 400_000)
        return align(*arguments)

    for where in ("merge.plan", "bounds.plan", "inspect.report"):
        monkeypatch.setattr(f"recover.{where}.align", truncate)
    monkeypatch.chdir(tmp_path)
    path.write_bytes(tiny[0].read_bytes())
    assert main([command.split()[0], str(tiny[0]), str(path), *TRUNCATED_EARLY[command]]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"recover: error: {path}: was truncated from ")
    assert printed.err.count("\n") == 1

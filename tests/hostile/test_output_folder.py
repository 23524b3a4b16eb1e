"""Folders appear complete under their names, or not at all, whatever happens on the way."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recover.containers.places import FilePlan
from recover.errors import OutputError
from recover.execution.folder import OutputFolder
from recover.execution.publish import hidden
from tests.support.file_systems import mounted
from tests.support.outputs import NEW, REPOSITORY

OLD = {"config.json": b"{}", "model.safetensors": b"old weights"}
FILES = {"config.json": b"new", "model.safetensors": NEW}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def older(folder: Path) -> Path:
    folder.mkdir()
    for name, content in OLD.items():
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def write(folder: Path, *, replaces: bool = False, inputs: tuple[Path, ...] = ()) -> None:
    plans = [FilePlan(folder / name, b"", len(content)) for name, content in FILES.items()]
    with OutputFolder(folder, plans, inputs, replaces=replaces) as output:
        assert not folder.exists() or contents(folder) in ({}, OLD)
        for file, content in zip(output.files, FILES.values(), strict=True):
            file.write_at(0, content)
    assert output.are_in_place


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.parent.iterdir())


def test_new_folder(folder: Path) -> None:
    write(folder)
    assert contents(folder) == FILES
    assert names(folder) == ["out"]


def test_empty_folder_is_taken(folder: Path) -> None:
    folder.mkdir()
    write(folder)
    assert contents(folder) == FILES


def test_folder_that_is_there_stays_without_force(folder: Path) -> None:
    older(folder)
    with pytest.raises(OutputError, match="is there already; --force replaces it"):
        write(folder)
    assert contents(folder) == OLD


def test_folder_that_is_there_is_replaced(folder: Path) -> None:
    older(folder)
    write(folder, replaces=True)
    assert contents(folder) == FILES
    assert names(folder) == ["out"]


@pytest.mark.parametrize("kind", ["other files", "folders"])
def test_what_is_no_model_is_never_replaced(folder: Path, kind: str) -> None:
    if kind == "folders":
        (older(folder) / "photos").mkdir()
    else:
        folder.mkdir()
        (folder / "letter.txt").write_text("dear")
    before = sorted(folder.iterdir())
    with pytest.raises(OutputError, match="holds other things than a model"):
        write(folder, replaces=True)
    assert sorted(folder.iterdir()) == before


def test_inputs_are_never_replaced(folder: Path) -> None:
    older(folder)
    with pytest.raises(OutputError, match="holds one of the inputs"):
        write(folder, replaces=True, inputs=(folder / "model.safetensors",))
    assert contents(folder) == OLD


def test_wrong_places(folder: Path) -> None:
    folder.write_bytes(b"a file")
    with pytest.raises(OutputError, match="is no folder"):
        write(folder, replaces=True)
    with pytest.raises(OutputError, match="the folder above it does not exist"):
        write(folder.parent / "missing" / "out")


@pytest.mark.parametrize("is_older", [False, True])
def test_error_leaves_what_was_there(folder: Path, is_older: bool) -> None:
    if is_older:
        older(folder)
    plans = [FilePlan(folder / "config.json", b"", 3)]
    output = OutputFolder(folder, plans, (), replaces=True)

    def fail() -> None:
        with output:
            output.files[0].write_at(0, b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(folder) == (["out"] if is_older else [])
    assert not is_older or contents(folder) == OLD


@pytest.mark.parametrize("number", [1, 2])
def test_renaming_that_fails_puts_the_older_one_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    older(folder)
    rename, calls = Path.rename, [0]

    def failing(path: Path, target: Any) -> Path:
        calls[0] += 1
        if calls[0] == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="cannot be written: Input/output error"):
        write(folder, replaces=True)
    assert contents(folder) == OLD
    assert names(folder) == ["out"]


def test_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    with mounted(small, "12k"):
        with pytest.raises(OutputError, match="no space left"):
            write(small / "out")
        assert list(small.iterdir()) == []


CHILD = """
import os, signal, sys
from pathlib import Path
from recover.containers.places import FilePlan
from recover.execution.folder import OutputFolder

folder, moment = Path(sys.argv[1]), sys.argv[2]

def die(*_arguments):
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()

with OutputFolder(folder, [FilePlan(folder / "config.json", b"", 3)], (), replaces=True) as output:
    output.files[0].write_at(0, b"odd")
    if moment == "write":
        die()
    rename, calls = Path.rename, [0]
    def dying(path, target):
        calls[0] += 1
        rename(path, target)
        if calls[0] == int(moment):
            die()
    Path.rename = dying
"""


@pytest.mark.parametrize("moment", ["write", "1", "2"])
def test_process_that_dies_is_made_good(
    folder: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    older(folder)
    command = [sys.executable, "-c", CHILD, str(folder), moment]
    done = subprocess.run(command, cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    if moment == "1":  # between the two renames
        assert not folder.exists()
        assert hidden(folder, "older").is_dir()
    else:
        assert contents(folder) == (OLD if moment == "write" else {"config.json": b"odd"})
    monkeypatch.setattr(OutputFolder, "_publish", lambda _self: 1 / 0)
    with pytest.raises(ZeroDivisionError), OutputFolder(folder, [], (), replaces=True):
        pass
    assert contents(folder) == ({"config.json": b"odd"} if moment == "2" else OLD)
    assert names(folder) == ["out"]

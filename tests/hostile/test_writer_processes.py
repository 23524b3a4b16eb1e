"""Output of processes that die, and what they leave behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recover.errors import OutputError
from recover.execution.output import OutputFile
from recover.execution.publish import hidden
from recover.execution.temporary import tell_of_removals
from tests.support.outputs import CHILD, NEW, OLD, REPOSITORY, check_untouched, write


@contextmanager
def another_process(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One that has begun to write a file, and waits."""
    command = [sys.executable, "-c", CHILD, str(path), str(int(signal.SIGSTOP)), "write"]
    with subprocess.Popen(command, cwd=REPOSITORY) as process:
        try:
            assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
            yield process
        finally:
            process.kill()


def test_temporary_file_of_a_living_process(path: Path) -> None:
    with another_process(path):
        (other,) = path.parent.iterdir()
        write(path)
        assert sorted(path.parent.iterdir()) == sorted([other, path])


def test_temporary_files_of_dead_processes_are_removed_and_named(path: Path) -> None:
    with another_process(path):
        (other,) = path.parent.iterdir()
    elsewhere = path.with_name("another.gguf")
    write(elsewhere)  # of another file: nothing to do with it
    assert other.exists()
    heard: list[str] = []
    tell_of_removals(heard.append)
    try:
        write(path)
    finally:
        tell_of_removals(None)
    assert sorted(path.parent.iterdir()) == sorted([elsewhere, path])
    (line,) = heard
    assert str(other) in line
    assert path.name in line


def test_other_hidden_files_stay(path: Path) -> None:
    kept = [
        path.with_name(f".out.gguf.{'0' * 12}.01234567.tmp"),  # of another name
        hidden(path, "0123456g.tmp"),
        hidden(path, "01234567.tmp.txt"),
        path.with_name(".out.gguf.01234567.tmp"),
    ]
    for each in kept:
        each.write_bytes(OLD)
    folder = hidden(path, "76543210.tmp")
    folder.mkdir()
    link = hidden(path, "00000000.tmp")
    link.symlink_to(kept[0])
    write(path)
    assert sorted(path.parent.iterdir()) == sorted([*kept, folder, link, path])
    assert all(each.read_bytes() == OLD for each in kept)


def test_temporary_file_that_is_gone_is_an_error(path: Path, before: bytes | None) -> None:
    with pytest.raises(OutputError, match="cannot be written"), OutputFile(path, 9):
        next(path.parent.glob(".*.tmp")).unlink()
    check_untouched(path, before)


def run_child(path: Path, number: int, moment: str) -> int:
    """Exit status of a process that gets a signal at some moment of its output."""
    command = [sys.executable, "-c", CHILD, str(path), str(number), moment]
    return subprocess.run(command, cwd=REPOSITORY, timeout=20).returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_killed_process_leaves_no_file(
    path: Path, before: bytes | None, number: int, moment: str
) -> None:
    assert run_child(path, number, moment) == -number
    assert (path.read_bytes() if path.exists() else None) == before
    write(path)  # what the dead process left behind is in nobody's way
    assert path.read_bytes() == NEW


def test_child_that_is_not_killed(path: Path, before: bytes | None) -> None:
    assert run_child(path, signal.SIGKILL, "never") == 0
    check_untouched(path, b"x" * 100)


def test_interrupted_process_cleans_up(path: Path, before: bytes | None) -> None:
    code = CHILD.replace("signal.pause()", "raise AssertionError('not interrupted')")
    command = [sys.executable, "-c", code, str(path), str(int(signal.SIGINT)), "write"]
    done = subprocess.run(command, cwd=REPOSITORY, timeout=20, capture_output=True, text=True)
    assert "KeyboardInterrupt" in done.stderr
    check_untouched(path, before)

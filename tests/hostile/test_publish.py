"""Several files get their names together: errors, interrupts and kills at every step."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recover.errors import OutputError
from recover.execution.output import OutputFile, OutputFiles
from recover.execution.publish import finish_earlier, hidden
from tests.support.models import ROOT

NAMES = ("1", "2", "3")


def old_files(folder: Path) -> dict[str, bytes]:
    for name in NAMES:
        (folder / name).write_bytes(b"old " + name.encode())
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


NEW = {name: b"new " + name.encode() for name in NAMES}


def write_all(folder: Path, n_parts: int = 1) -> None:
    with OutputFiles([OutputFile(folder / name, 5) for name in NAMES], n_parts) as outputs:
        for file, name in zip(outputs.files, NAMES, strict=True):
            file.write_at(0, NEW[name])


def steps_of(monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], Any]) -> list[str]:
    """Let something happen instead of the step with that number; all steps so far."""
    steps: list[str] = []
    for owner, name in (
        (os, "replace"),
        (Path, "rename"),
        (Path, "hardlink_to"),
        (Path, "unlink"),
        (os, "pwrite"),
    ):
        original = getattr(owner, name)

        def step(
            *arguments: Any, original: Any = original, name: str = name, **options: Any
        ) -> Any:
            steps.append(name)
            if len(steps) == at + 1:
                act()
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, step)
    return steps


def fail() -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("n_parts", [1, 2, 3])
@pytest.mark.parametrize("is_there", [True, False])
def test_an_error_at_any_step_loses_nothing(tmp_path: Path, n_parts: int, is_there: bool) -> None:
    seen = set()
    for at in range(40):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        before = old_files(folder) if is_there else {}
        with pytest.MonkeyPatch.context() as patch:
            steps = steps_of(patch, at, fail)
            try:
                write_all(folder, n_parts)
                expected = NEW
            except OutputError:
                expected = before
        assert {k: v for k, v in contents(folder).items() if k in NAMES} == expected, steps
        if len(steps) <= at:
            break
        seen.add(steps[at])
        write_all(folder, n_parts)
        assert contents(folder) == NEW
    assert seen >= {"pwrite", "replace", "unlink"}


@pytest.mark.parametrize("n_parts", [1, 3])
def test_interrupts_at_any_step_come_after_it(tmp_path: Path, n_parts: int) -> None:
    """The older files or the newer ones, and nothing else."""
    found = []
    for at in range(40):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        before = old_files(folder)
        with pytest.MonkeyPatch.context() as patch:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            steps = steps_of(patch, at, lambda: os.kill(os.getpid(), signal.SIGINT))
            try:
                write_all(folder, n_parts)
            except KeyboardInterrupt:
                found.append(contents(folder))
                assert found[-1] in (before, NEW), (steps, at)
            else:
                break
    assert NEW in found


KILLED = """
import itertools, os, sys
from pathlib import Path
from recover.execution.output import OutputFile, OutputFiles
folder, at, n_parts = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
steps = itertools.count()
def dying(original):
    def step(*arguments):
        if next(steps) == at:
            os._exit(9)
        return original(*arguments)
    return step
for owner, name in ((os, "replace"), (Path, "rename"), (Path, "hardlink_to"), (Path, "unlink"),
                    (os, "fsync")):
    setattr(owner, name, dying(getattr(owner, name)))
with OutputFiles([OutputFile(folder / name, 5) for name in "123"], n_parts) as outputs:
    for file, name in zip(outputs.files, "123"):
        file.write_at(0, b"new " + name.encode())
"""


@pytest.mark.parametrize("n_parts", [1, 3])
@pytest.mark.parametrize("at", [2, 4, 6, 9, 11, 13, 15])
def test_a_process_that_is_killed_at_any_step(tmp_path: Path, n_parts: int, at: int) -> None:
    before = old_files(tmp_path)
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(at), str(n_parts)]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    assert status in (0, 9)
    found = contents(tmp_path)
    visible = {name: found[name] for name in NAMES if name in found}
    if n_parts > 1 and "1" in visible:  # the first one is there: then all are of its kind
        assert visible in (before, NEW)
    else:
        assert all(raw in (before[name], NEW[name]) for name, raw in visible.items())
    has_ended = finish_earlier(tmp_path / "1")
    after = {name: raw for name, raw in contents(tmp_path).items() if name in NAMES}
    assert after == (NEW if has_ended else visible)
    assert after in (before, NEW)
    write_all(tmp_path, n_parts)
    assert contents(tmp_path) == NEW


def test_where_files_cannot_have_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    before = old_files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", raise_once(os.replace))
        with pytest.raises(OutputError):
            write_all(tmp_path)
    assert contents(tmp_path) == before
    write_all(tmp_path)
    assert contents(tmp_path) == NEW


def raise_once(original: Callable[..., Any]) -> Callable[..., Any]:
    calls: list[int] = []

    def call(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            fail()
        return original(*arguments)

    return call


def test_older_files_that_cannot_be_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that there is stays, and the next run puts the new ones in place."""
    old_files(tmp_path)
    original, calls = os.replace, []

    def fail_from_the_second_on(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            fail()
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_from_the_second_on)
        with pytest.raises(OutputError, match="the next command that writes it puts the new ones"):
            write_all(tmp_path)
    assert finish_earlier(tmp_path / "1")
    assert contents(tmp_path) == NEW


def forged(folder: Path, document: Any) -> Path:
    record = hidden(folder / "1", "moves")
    record.write_text(document if isinstance(document, str) else json.dumps(document))
    return record


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[",
        "[" * 100_000,
        5,
        [[1, 2]],
        [["a"]],
        [["{folder}/victim", "{folder}/1"]],
        [["{folder}/.1.0123456789ab.01234567.tmp", "{folder}/sub/1"]],
        [["{folder}/.1.0123456789ab.01234567.tmp", "{folder}/victim"]],
        [["sub/.1.0123456789ab.01234567.tmp", "sub/1"]],
    ],
    ids=str,
)
def test_forged_records_move_nothing(tmp_path: Path, document: Any) -> None:
    (tmp_path / "victim").write_bytes(b"untouched")
    text = document if isinstance(document, str) else json.dumps(document)
    record = forged(tmp_path, text.replace("{folder}", str(tmp_path)))
    assert not finish_earlier(tmp_path / "1")
    assert not record.exists()
    assert contents(tmp_path) == {"victim": b"untouched"}
    write_all(tmp_path)
    assert contents(tmp_path) == NEW | {"victim": b"untouched"}

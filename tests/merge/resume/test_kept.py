"""Merges that are interrupted, however roughly, and gone on with."""

import errno
import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest

import recover.merge.execute as execute
import recover.merge.resume as resume_module
from recover.errors import OutputError, PlanError
from recover.execution.journal import Journal
from recover.execution.output import OutputFile
from recover.merge.execute import execute_merge
from tests.support.interrupting import N_TENSORS, OPTIONS, Interrupt, Interrupted, Whole, Workers
from tests.support.resuming import contents, figures, finish, make_plan, raise_

# What is kept, and taken over.


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("n_tensors", [1, 17, N_TENSORS])
def test_the_result_is_that_of_an_uninterrupted_merge(
    tiny: list[Path],
    tmp_path: Path,
    whole: Whole,
    workers: Workers,
    interrupt: Interrupt,
    case: str,
    n_tensors: int,
) -> None:
    files, document = whole(case)
    plan = make_plan(tiny, tmp_path, **OPTIONS[case])
    if n_tensors < N_TENSORS:
        said = interrupt(plan, n_tensors)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", raise_(OSError(errno.EIO, "Input/output error")))
            said = []
            with pytest.raises(OutputError, match="cannot be written"):
                execute_merge(plan, n_threads=1, resume=True, tell=said.append)
        workers.done.clear()
    (kept,) = said
    assert kept.startswith(
        f"{plan.output}: kept for the same command with --resume: {n_tensors} of"
    )
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == len(plan.files) + 1
    assert all(name.startswith(".") for name in names)
    plan = make_plan(tiny, tmp_path, **OPTIONS[case])
    progress: list[tuple[int, int]] = []
    result, said = finish(plan, progress=lambda *numbers: progress.append(numbers))
    assert said[0].startswith(f"{plan.output}: going on with what is there: {n_tensors} of 30")
    assert len(said) == 1
    assert workers.done == [tensor.name for tensor in plan.tensors[n_tensors:]]
    before = sum(tensor.n_weights for tensor in plan.tensors[:n_tensors])
    assert progress[0][0] >= before
    assert progress[-1] == (result.n_weights, result.n_weights)
    assert contents(tmp_path) == files
    assert figures(result) == document


def test_interrupted_again_and_again(
    tiny: list[Path], tmp_path: Path, whole: Whole, workers: Workers, interrupt: Interrupt
) -> None:
    plan = make_plan(tiny, tmp_path)
    for n_done in range(0, 19, 6):
        said = interrupt(plan, 6)
        assert len(said) == (2 if n_done else 1)
        assert f"{n_done + 6} of 30 tensors" in said[-1]
    result, _ = finish(plan)
    assert len(workers.done) == N_TENSORS - 24
    assert (contents(tmp_path), figures(result)) == whole("one file")
    workers.done.clear()
    again, said = finish(plan)  # as ever
    assert said == []
    assert len(workers.done) == N_TENSORS
    assert (contents(tmp_path), figures(again)) == whole("one file")


def test_time_adds_up(
    tiny: list[Path], tmp_path: Path, workers: Workers, interrupt: Interrupt
) -> None:
    plan = make_plan(tiny, tmp_path)
    workers.before = lambda: time.sleep(0.05)
    interrupt(plan, 8)
    workers.before = lambda: None
    interrupt(plan, 1)
    result, _ = finish(plan)
    assert result.seconds > 0.4


@pytest.mark.parametrize("case", OPTIONS)
def test_what_is_there_outlives_another_error(
    tiny: list[Path],
    tmp_path: Path,
    whole: Whole,
    workers: Workers,
    interrupt: Interrupt,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    """Even one before anything else is complete."""
    plan = make_plan(tiny, tmp_path, **OPTIONS[case])
    interrupt(plan, 20)
    for n_good in range(len(plan.files)):
        with monkeypatch.context() as patch:
            outcomes = [lambda *_arguments: None] * n_good
            outcomes.append(raise_(OSError(errno.ENOSPC, "No space left on device")))
            patch.setattr(os, "ftruncate", lambda *_arguments, each=outcomes: each.pop(0)())
            with pytest.raises(OutputError, match="no space left"):
                finish(plan)
    assert "20 of 30" in interrupt(plan, 0)[1]
    result, _ = finish(plan)
    assert len(workers.done) == 10
    assert (contents(tmp_path), figures(result)) == whole(case)


def test_nothing_is_kept_of_nothing(tiny: list[Path], tmp_path: Path, interrupt: Interrupt) -> None:
    assert interrupt(make_plan(tiny, tmp_path), 0) == []
    assert not list(tmp_path.iterdir())


def test_nothing_is_kept_without_the_option(
    tiny: list[Path], tmp_path: Path, workers: Workers
) -> None:
    workers.stops_after = 9
    for options in OPTIONS.values():
        with pytest.raises(Interrupted):
            execute_merge(make_plan(tiny, tmp_path, **options), n_threads=1)
        assert not list(tmp_path.iterdir())


def test_a_refusal_that_force_overrides(
    tiny: list[Path], tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tiny, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(execute, "contradicted", raise_(PlanError("they contradict")))
        with pytest.raises(PlanError, match="they contradict"):
            execute_merge(plan, n_threads=1, resume=True)
    workers.done.clear()
    finish(plan)
    assert workers.done == []


def test_entries_are_written_on_the_way(
    tiny: list[Path], tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not too often."""
    times: list[float] = []
    append = Journal.append

    def record(self: Journal, entry: Any) -> None:
        times.append(time.perf_counter())
        append(self, entry)

    monkeypatch.setattr(Journal, "append", record)
    monkeypatch.setattr(resume_module, "_SECONDS", 0.2)
    workers.before = lambda: time.sleep(0.03)
    finish(make_plan(tiny, tmp_path))
    gaps = [after - before for before, after in itertools.pairwise(times[:-1])]
    assert len(gaps) >= 2
    assert min(gaps) >= 0.2


# When the computer dies: nothing is there but what was flushed.


@pytest.mark.parametrize("case", OPTIONS)
def test_power_loss(
    tiny: list[Path],
    tmp_path: Path,
    whole: Whole,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    """The journal survives as it is, of the rest only what was flushed before."""
    monkeypatch.setattr(resume_module, "_SECONDS", 0)
    plan = make_plan(tiny, tmp_path, **OPTIONS[case])
    on_disk: dict[int, bytes] = {}
    name = "fdatasync" if hasattr(os, "fdatasync") else "fsync"
    original = getattr(os, name)

    def flush(descriptor: int) -> None:
        original(descriptor)
        status = os.fstat(descriptor)
        on_disk[status.st_ino] = os.pread(descriptor, status.st_size, 0)

    lost: dict[str, bytes] = {}

    def die() -> None:
        if len(workers.done) == 20 and not lost:
            for path in tmp_path.iterdir():
                size = path.stat().st_size
                raw = on_disk.get(path.stat().st_ino, b"").ljust(size, b"\xff")
                lost[path.name] = path.read_bytes() if path.suffix == ".journal" else raw
        time.sleep(0.02)

    monkeypatch.setattr(os, name, flush)
    workers.before = die
    execute_merge(plan, n_threads=1, resume=True)
    monkeypatch.undo()
    for path in tmp_path.iterdir():
        path.unlink()
    for file, raw in lost.items():
        (tmp_path / file).write_bytes(raw)
    workers.watch(monkeypatch)
    workers.done.clear()
    workers.before = lambda: None
    result, said = finish(plan)
    assert "going on with what is there" in said[0]
    assert 10 <= len(workers.done) < N_TENSORS
    assert (contents(tmp_path), figures(result)) == whole(case)


def test_a_flush_that_fails_is_never_trusted(
    tiny: list[Path],
    tmp_path: Path,
    whole: Whole,
    workers: Workers,
    interrupt: Interrupt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor one after it: the system may have dropped what it could not write."""
    plan = make_plan(tiny, tmp_path)
    interrupt(plan, 7)
    monkeypatch.setattr(resume_module, "_SECONDS", 0)
    calls, original = [], OutputFile.sync

    def sync(self: OutputFile) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OutputError("cannot be flushed")
        original(self)

    monkeypatch.setattr(OutputFile, "sync", sync)
    workers.before = lambda: time.sleep(0.02)
    with pytest.raises(OutputError, match="cannot be flushed"):
        finish(plan)
    monkeypatch.setattr(OutputFile, "sync", original)
    workers.done.clear()
    result, said = finish(plan)
    assert "7 of 30 tensors" in said[0]
    assert (contents(tmp_path), figures(result)) == whole("one file")

"""Merges that are interrupted, however roughly, and gone on with."""

import errno
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recover.merge.execute as execute
import recover.merge.resume as resume_module
from recover import calibrate
from recover.cli import main
from recover.errors import OutputError, PlanError
from recover.evidence.densities import density
from recover.execution.journal import Journal
from recover.execution.output import OutputFile
from recover.merge.execute import MergeResult, execute_merge
from recover.merge.plan import MergePlan, plan_merge
from recover.merge.resume import Unfinished
from recover.quants import ScalarType, type_by_name
from tests.hostile.test_writer import mounted
from tests.support.models import ROOT, TINY

N_TENSORS = 30  # of the small model; each is one tile
OPTIONS: dict[str, dict[str, Any]] = {
    "one file": {},
    "parts and deviations": {"split_max_size": 1_500_000, "uncertainty": "deviation.gguf"},
}


class Interrupted(BaseException):
    """Not an `Exception`, like what Ctrl-C raises."""


def make_plan(inputs: list[Path], folder: Path, **options: Any) -> MergePlan:
    if "uncertainty" in options:
        options["uncertainty"] = folder / options["uncertainty"]
    return plan_merge(inputs, folder / "out.gguf", **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def figures(result: MergeResult) -> dict[str, Any]:
    """What is reported, apart from the speed and the folder."""
    document = result.to_json()
    assert document.pop("seconds") > 0
    assert document.pop("weights_per_second") > 0
    return document | {"output": Path(document["output"]).name, "n_exact": result.n_exact}


def journal_of(folder: Path) -> Path:
    (path,) = folder.glob(".*.journal")
    return path


class Workers:
    """Counts the tiles that are worked on, and stops after some of them."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.stops_after = sys.maxsize
        self.error: BaseException = Interrupted()
        self.before: Callable[[], None] = lambda: None
        self._work = execute._Worker.work

    def work(self, worker: Any, tile: Any) -> None:
        self.before()
        if len(self.done) >= self.stops_after:
            raise self.error
        self._work(worker, tile)
        self.done.append(worker._tensor.name)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    found = Workers()
    monkeypatch.setattr(execute._Worker, "work", lambda self, tile: found.work(self, tile))
    return found


Interrupt = Callable[..., list[str]]


@pytest.fixture
def interrupt(workers: Workers) -> Interrupt:
    """Carries out a plan until so many tensors are complete; what it says."""

    def interrupt(plan: MergePlan, n_tensors: int, error: BaseException | None = None) -> list[str]:
        workers.done.clear()
        workers.stops_after, workers.error = n_tensors, error or Interrupted()
        said: list[str] = []
        with pytest.raises(type(workers.error)):
            execute_merge(plan, n_threads=1, resume=True, force=True, tell=said.append)
        workers.stops_after = sys.maxsize
        workers.done.clear()
        return said

    return interrupt


def finish(plan: MergePlan, **options: Any) -> tuple[MergeResult, list[str]]:
    """Carry out a plan; and what it says."""
    said: list[str] = []
    options = {"n_threads": 1, "resume": True, "force": True} | options
    return execute_merge(plan, tell=said.append, **options), said


Whole = Callable[[str], tuple[dict[str, bytes], dict[str, Any]]]


@pytest.fixture(scope="module")
def whole(tiny: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Files and figures of merges that nothing interrupts."""
    found = {}
    for case, options in OPTIONS.items():
        folder = tmp_path_factory.mktemp("whole")
        result = execute_merge(make_plan(tiny, folder, **options), n_threads=2)
        found[case] = contents(folder), figures(result)
    return found.__getitem__


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


def raise_(error: BaseException) -> Callable[..., Any]:
    def call(*_arguments: object, **_options: object) -> Any:
        raise error

    return call


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
    monkeypatch.setattr(execute._Worker, "work", lambda self, tile: workers.work(self, tile))
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


# What does not belong together.


def changed_input(tiny: list[Path], folder: Path, how: str) -> list[Path]:
    """Copies of the inputs, the second of which changes in some way when called again."""
    copies = [folder / path.name for path in tiny]
    for copy, path in zip(copies, tiny, strict=True):
        if not copy.exists():
            shutil.copy2(path, copy)
            how = ""
    if how == "touched":
        os.utime(copies[1], (1, 1))
    elif how == "grown":
        status = copies[1].stat()
        with copies[1].open("ab") as file:
            file.write(bytes(32))
        os.utime(copies[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    elif how == "header":
        status, data = copies[1].stat(), copies[1].read_bytes()
        copies[1].write_bytes(data.replace(b"tiny-llama-3m", b"tiny-llama-4m", 1))
        os.utime(copies[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    elif how == "order":
        copies.reverse()
    return copies


@pytest.mark.parametrize("how", ["touched", "grown", "header", "order"])
def test_changed_inputs(tiny: list[Path], tmp_path: Path, interrupt: Interrupt, how: str) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    interrupt(plan_merge(changed_input(tiny, folder, how), tmp_path / "out.gguf"), 9)
    plan = plan_merge(changed_input(tiny, folder, how), tmp_path / "out.gguf")
    said = interrupt(plan, 4)
    assert "starting over: what is there belongs to another merge (other inputs" in said[0]
    assert "4 of 30" in said[1]


CHANGES: dict[str, dict[str, Any]] = {
    "method": {"method": "midpoint"},
    "estimate": {"estimate": "map"},
    "outtype": {"outtype": "bf16"},
    "snap": {"snap": "bf16"},
    "tensors": {"tensors": "blk"},
    "uncertainty": {"uncertainty": "s.gguf"},
    "split": {"split_max_size": 700_000},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_options(tiny: list[Path], tmp_path: Path, interrupt: Interrupt, change: str) -> None:
    """Nothing is left of the other merge, whatever its files were."""
    interrupt(make_plan(tiny, tmp_path, **OPTIONS["parts and deviations"]), 3)
    plan = make_plan(tiny, tmp_path, **CHANGES[change])
    said = interrupt(plan, 2)
    assert "starting over: what is there belongs to another merge (other options)" in said[0]
    assert "2 of " in said[1]
    partials = {Unfinished(plan).partial(file.path) for file in plan.files}
    assert set(tmp_path.iterdir()) == {*partials, journal_of(tmp_path)}


def test_other_densities_and_calibrations(
    tiny: list[Path], tmp_path: Path, interrupt: Interrupt
) -> None:
    plan = make_plan(tiny, tmp_path)
    q5_k = type_by_name("Q5_K")
    assert isinstance(q5_k, ScalarType)
    rows = density(q5_k, weighted=False, has_cells=True).tolist()
    simulated = replace(plan, densities={("Q5_K", False, True): rows})
    fitted = calibrate(tiny, TINY)
    plans = {
        "densities": simulated,
        "options, calibration, densities": make_plan(tiny, tmp_path, calibration=fitted),
        "options, calibration": make_plan(
            tiny, tmp_path, calibration=replace(fitted, left_out="layer")
        ),
    }
    assert len(interrupt(plan, 2)) == 1
    for words, other in plans.items():
        said = interrupt(other, 2)
        assert f"starting over: what is there belongs to another merge (other {words})" in said[0]


def test_another_version(
    tiny: list[Path], tmp_path: Path, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tiny, tmp_path)
    interrupt(plan, 2)
    monkeypatch.setattr(resume_module, "__version__", "99.0")
    assert (
        "starting over: what is there belongs to another merge (other version)"
        in (interrupt(plan, 2)[0])
    )


@pytest.mark.parametrize("damage", ["missing", "shorter"])
@pytest.mark.parametrize("number", [0, 2, -1])
def test_files_that_are_not_as_they_were(
    tiny: list[Path],
    tmp_path: Path,
    whole: Whole,
    workers: Workers,
    interrupt: Interrupt,
    damage: str,
    number: int,
) -> None:
    case = "parts and deviations"
    plan = make_plan(tiny, tmp_path, **OPTIONS[case])
    interrupt(plan, 20)
    partial = Unfinished(plan).partial(plan.files[number].path)
    if damage == "missing":
        partial.unlink()
    else:
        os.truncate(partial, 1000)
    result, (said,) = finish(plan)
    assert f"starting over: {partial} {'is missing' if damage == 'missing' else 'has 1,0'}" in said
    assert len(workers.done) == N_TENSORS
    assert (contents(tmp_path), figures(result)) == whole(case)


# Journals.


def lines(raw: bytes, *numbers: int) -> bytes:
    return b"".join(raw.splitlines(keepends=True)[i] for i in numbers)


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "torn in the first record": (lambda raw: raw[:100], 0),
    "torn in the last record": (lambda raw: raw[:-9], 12),
    "without its last line end": (lambda raw: raw[:-1], 12),
    "a bit of the last record": (lambda raw: raw[:-60] + bytes([raw[-60] ^ 4]) + raw[-59:], 12),
    "the first bit": (lambda raw: bytes([raw[0] ^ 1]) + raw[1:], 0),
    "zeros behind": (lambda raw: raw + bytes(5000), 18),
    "a record twice": (lambda raw: raw + lines(raw, 2), 18),
    "a record left out": (lambda raw: lines(raw, 0, 2), 0),
    "two records swapped": (lambda raw: lines(raw, 0, 2, 1), 0),
    "garbage": (lambda _raw: bytes(range(256)) * 20, 0),
    "one long line": (lambda raw: raw.replace(b"\n", b" "), 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_journals(
    tiny: list[Path],
    tmp_path: Path,
    whole: Whole,
    workers: Workers,
    interrupt: Interrupt,
    damage: str,
) -> None:
    """Of three records: the plan, the first 12 tensors, and 6 more."""
    change, n_done = DAMAGES[damage]
    plan = make_plan(tiny, tmp_path)
    interrupt(plan, 12)
    interrupt(plan, 6)
    path = journal_of(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    result, (said,) = finish(plan)
    words = (
        f"going on with what is there: {n_done} of" if n_done else "over: its journal is damaged"
    )
    assert words in said
    assert len(workers.done) == N_TENSORS - n_done
    assert (contents(tmp_path), figures(result)) == whole("one file")


@pytest.mark.parametrize("is_there", [False, True])
def test_no_journal(
    tiny: list[Path],
    tmp_path: Path,
    whole: Whole,
    workers: Workers,
    interrupt: Interrupt,
    is_there: bool,
) -> None:
    """Bytes that no journal names are not taken over."""
    case = "parts and deviations"
    plan = make_plan(tiny, tmp_path, **OPTIONS[case])
    interrupt(plan, 12)
    path = journal_of(tmp_path)
    path.write_bytes(b"") if is_there else path.unlink()
    for file in plan.files:
        Unfinished(plan).partial(file.path).write_bytes(b"\xff" * file.n_bytes)
    result, said = finish(plan)
    assert said == []
    assert len(workers.done) == N_TENSORS
    assert (contents(tmp_path), figures(result)) == whole(case)


RECORDS = st.lists(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(),
        lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(), each, max_size=3),
        max_leaves=5,
    ),
    min_size=2,
    max_size=6,
)


@settings(max_examples=30)
@given(records=RECORDS, data=st.data())
def test_what_is_damaged_counts_as_not_written(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    path, texts = folder / "j", [json.dumps(record) for record in records]

    def reopened(*more: Any) -> tuple[list[str], bool]:
        journal = Journal(path, path).__enter__()
        found = [json.dumps(record) for record in journal.records]
        for record in more:
            journal.append(record)
        journal.__exit__(Interrupted, None, None)
        return found, journal.is_damaged

    assert reopened(*records) == ([], False)
    assert reopened() == (texts, False)
    raw = path.read_bytes()
    at = data.draw(st.integers(0, len(raw) - 1))
    n_whole = raw[:at].count(b"\n")
    how = data.draw(st.sampled_from(["cut", "bit", "inserted"]))
    if how == "cut":
        path.write_bytes(raw[:at])
    elif how == "bit":
        bit = 1 << data.draw(st.integers(0, 7))
        path.write_bytes(raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :])
    else:
        path.write_bytes(raw[:at] + b"\0" + raw[at:])
    is_clean = how == "cut" and (at == 0 or raw[at - 1 : at] == b"\n")
    assert reopened("new", "newer") == (texts[:n_whole], not is_clean)
    assert reopened() == ([*texts[:n_whole], '"new"', '"newer"'], False)


def test_a_journal_that_is_no_file(tiny: list[Path], tmp_path: Path, interrupt: Interrupt) -> None:
    plan = make_plan(tiny, tmp_path)
    interrupt(plan, 5)
    path = journal_of(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(OutputError, match=r"\.journal: is no regular file"):
        finish(plan)
    path.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"untouched")
    path.symlink_to(elsewhere)
    with pytest.raises(OutputError, match=r"its journal .* cannot be read or written"):
        finish(plan)
    path.unlink()
    partial = Unfinished(plan).partial(plan.output)
    partial.unlink(missing_ok=True)
    partial.symlink_to(elsewhere)
    finish(plan)
    assert elsewhere.read_bytes() == b"untouched"


def test_a_journal_that_cannot_be_written(
    tiny: list[Path],
    tmp_path: Path,
    whole: Whole,
    interrupt: Interrupt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = make_plan(tiny, tmp_path)
    interrupt(plan, 5)
    with monkeypatch.context() as patch:
        error = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(os, "fdatasync" if hasattr(os, "fdatasync") else "fsync", raise_(error))
        with pytest.raises(OutputError, match="No space left on device"):
            finish(plan)
    result, said = finish(plan)
    assert "5 of 30" in said[0]
    assert (contents(tmp_path), figures(result)) == whole("one file")


# Two at once.


def test_another_process_is_at_it(tiny: list[Path], tmp_path: Path, interrupt: Interrupt) -> None:
    plan = make_plan(tiny, tmp_path)
    interrupt(plan, 5)
    other = Unfinished(plan).__enter__()
    for options in ({}, {"outtype": "bf16"}, {"split_max_size": 10**6}):
        with pytest.raises(OutputError, match="another process is writing it with --resume"):
            finish(make_plan(tiny, tmp_path, **options))
    execute_merge(plan)  # without the option, in a temporary file of its own
    raw = plan.output.read_bytes()
    assert len(list(tmp_path.iterdir())) == 3
    other.__exit__(Interrupted, None, None)
    _, said = finish(plan)
    assert "5 of 30" in said[0]
    assert contents(tmp_path) == {"out.gguf": raw}


def test_many_at_once(tiny: list[Path], tmp_path: Path, whole: Whole) -> None:
    """Each has it alone, or is refused; none meets what another one has just removed."""
    plan = make_plan(tiny, tmp_path)
    outcomes: list[str] = []

    def work() -> None:
        for _ in range(2):
            try:
                finish(plan)
                outcomes.append("done")
            except OutputError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 6
    refusals = [each for each in outcomes if each != "done"]
    assert all("another process is writing it" in each for each in refusals)
    assert len(refusals) < 6
    assert contents(tmp_path) == whole("one file")[0]


def test_a_journal_that_its_owner_has_just_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock on a file without a name would keep nobody out."""
    path, calls, original = tmp_path / "j", [], fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        if not calls:
            path.unlink()
        calls.append(how)
        original(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    journal = Journal(path, path).__enter__()
    assert len(calls) == 2
    with pytest.raises(OutputError, match="another process"):
        Journal(path, path).__enter__()
    journal.append("one")
    journal.append("two")
    journal.__exit__(Interrupted, None, None)
    with Journal(path, path) as again:
        assert again.records == ["one", "two"]
    assert not path.exists()


def test_where_files_cannot_be_locked(
    tiny: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tiny, tmp_path)
    error = OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr("fcntl.flock", raise_(error))
    with pytest.raises(
        OutputError, match=r"cannot be locked .No locks available.*without --resume"
    ):
        finish(plan)
    monkeypatch.setattr("recover.execution.journal.fcntl", None)
    with pytest.raises(OutputError, match="cannot be locked here; go without --resume"):
        finish(plan)


# Real processes, real disks.

SLOW_MERGE = """
import sys, time
import recover.merge.execute as execute
import recover.merge.resume as resume
from recover.cli import main
from recover.execution.journal import Journal
work, append, n_fast, n_written = execute._Worker.work, Journal.append, int(sys.argv.pop(1)), 0
resume._SECONDS = 0
def count(self, record):
    global n_written
    append(self, record)
    n_written += len(record.get("tensors", []))
def slow(self, tile):
    global n_fast
    if n_fast == 0:
        while n_written < 20:
            time.sleep(0.01)
        print("slow", file=sys.stderr, flush=True)
        time.sleep(0.3)
    n_fast -= 1
    work(self, tile)
execute._Worker.work, Journal.append = slow, count
sys.exit(main(sys.argv[1:]))
"""


def interrupt_process(arguments: list[str], number: signal.Signals) -> tuple[int, str]:
    """Exit status and messages of a merge that gets a signal when 20 tensors are complete."""
    command = [sys.executable, "-c", SLOW_MERGE, "20", *arguments, "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        lines = list(itertools.takewhile(lambda line: line and line != "slow\n", process.stderr))
        process.send_signal(number)
        lines.append(process.stderr.read())
    return process.returncode, "".join(lines)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_signals(
    tiny: list[Path],
    tmp_path: Path,
    whole: Whole,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    case = "one file" if number == signal.SIGTERM else "parts and deviations"
    out = tmp_path / "out.gguf"
    arguments = ["merge", *map(str, tiny), "-o", str(out), "--resume", "--json"]
    if case != "one file":
        arguments += [
            "--split-max-size",
            "1500K",
            "--uncertainty",
            str(tmp_path / "deviation.gguf"),
        ]
    status, messages = interrupt_process(arguments, number)
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    if number == signal.SIGKILL:
        assert (status, messages) == (-number, "")
    else:
        kept, stopped = messages.splitlines()
        assert status == 128 + number
        assert "kept for the same command with --resume: 2" in kept
        assert stopped == (
            f"recover: stopped ({signal.strsignal(number)}); {out} is kept as far as it is"
            " complete, for --resume"
        )
    assert main(arguments) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.err.startswith("recover: ")
    assert captured.err.count("\n") == 1
    assert f"{document['output']}: going on with what is there: 2" in captured.err
    files, expected = whole(case)
    assert contents(tmp_path) == files
    assert document | {"output": Path(document["output"]).name} == {
        **{key: document[key] for key in ("seconds", "weights_per_second")},
        **{key: value for key, value in expected.items() if key != "n_exact"},
    }


def test_quiet(
    tiny: list[Path], tmp_path: Path, interrupt: Interrupt, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(make_plan(tiny, tmp_path), 5)
    arguments = ["merge", *map(str, tiny), "-o", str(tmp_path / "out.gguf"), "--resume", "-q"]
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""


def test_full_disk(
    tiny: list[Path],
    tmp_path: Path,
    whole: Whole,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One that does not show before the work."""
    unsupported = OSError(errno.EOPNOTSUPP, "Operation not supported")
    monkeypatch.setattr(os, "posix_fallocate", raise_(unsupported), raising=False)
    monkeypatch.setattr(resume_module, "_SECONDS", 0)
    workers.before = lambda: time.sleep(0.01)
    small = tmp_path / "small"
    with mounted(small, "7m"):
        ballast = small / "ballast"
        ballast.write_bytes(bytes(4_000_000))
        arguments = ["merge", *map(str, tiny), "-o", str(small / "out.gguf"), "--threads", "1"]
        assert main([*arguments, "--resume"]) == 1
        kept, error = capsys.readouterr().err.splitlines()
        n_kept = int(kept.split("--resume: ")[1].split(" of")[0])
        assert 5 < n_kept < 25
        assert "no space left for its 5,798" in error
        ballast.unlink()
        workers.done.clear()
        assert main([*arguments, "--resume"]) == 0
        assert f"going on with what is there: {n_kept} of 30" in capsys.readouterr().err
        assert len(workers.done) == N_TENSORS - n_kept
        assert contents(small) == whole("one file")[0]

"""Journals of interrupted merges: damaged, missing, and wanted by two at once."""

import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recover.errors import OutputError
from recover.execution.journal import Journal
from recover.merge.execute import execute_merge
from recover.merge.resume import Unfinished
from tests.support.interrupting import N_TENSORS, OPTIONS, Interrupt, Interrupted, Whole, Workers
from tests.support.resuming import contents, figures, finish, journal_of, make_plan, raise_

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
    path, original = tmp_path / "j", fcntl.flock
    calls: list[int] = []

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

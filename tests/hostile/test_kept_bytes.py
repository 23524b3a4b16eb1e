"""What an interrupted merge kept is data of unknown origin: damaged bytes and forged entries."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recover.containers import mapping
from recover.errors import InputError
from recover.execution import stacks
from recover.execution.journal import Journal
from recover.execution.tasks import Record, Task
from recover.merge.execute import MergeResult, execute_merge
from recover.merge.plan import MergePlan, plan_merge
from recover.merge.resume import Unfinished
from recover.merge.work import Worker

N_DONE = 12


class Interrupted(BaseException):
    """Not an `Exception`, like what Ctrl-C raises."""


def make_plan(inputs: list[Path], folder: Path) -> MergePlan:
    folder.mkdir(exist_ok=True)
    deviation = folder / "deviation.gguf"
    return plan_merge(inputs, folder / "out.gguf", uncertainty=deviation, tensors=r"blk\.[01]")


@pytest.fixture
def plan(tiny: list[Path], tmp_path: Path) -> MergePlan:
    return make_plan(tiny, tmp_path / "out")


@pytest.fixture(scope="module")
def whole(
    tiny: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], float | None]:
    """The files and the expected error of a merge that nothing happens to."""
    plan = make_plan(tiny, tmp_path_factory.mktemp("whole") / "out")
    result = execute_merge(plan)
    return {f.path.name: f.path.read_bytes() for f in plan.files}, result.expected_mse_ratio


def stop_after(plan: MergePlan, n_tiles: int) -> None:
    """Carry out a plan until so many tensors (of one tile each) are complete."""
    work, n_done = Worker.work, 0

    def some(self: Worker, task: Task, files: Any) -> Record:
        nonlocal n_done
        if n_done == n_tiles:
            raise Interrupted
        n_done += 1
        return work(self, task, files)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacks, "LARGEST", 0)  # one tensor a task
        patch.setattr(Worker, "work", some)
        with pytest.raises(Interrupted):
            execute_merge(plan, n_threads=1, resume=True)


def check_finished(plan: MergePlan, whole: tuple[dict[str, bytes], float | None]) -> list[str]:
    """Carry it out to its end; what is said, if files and figures are right."""
    said: list[str] = []
    result: MergeResult = execute_merge(plan, n_threads=1, resume=True, tell=said.append)
    assert {file.path.name: file.path.read_bytes() for file in plan.files} == whole[0]
    assert result.expected_mse_ratio == whole[1]
    assert len(list(plan.output.parent.iterdir())) == len(plan.files)
    return said


def flip(path: Path, position: int, bit: int = 1) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= bit
    path.write_bytes(raw)


# Bytes.


@pytest.mark.parametrize("tensor", [0, 5, N_DONE - 1])
@pytest.mark.parametrize("where", ["first byte", "last byte", "in the middle"])
@pytest.mark.parametrize("file", ["weights", "deviations"])
def test_a_flipped_bit_of_a_complete_tensor_is_found(
    plan: MergePlan, whole: Any, tensor: int, where: str, file: str
) -> None:
    stop_after(plan, N_DONE)
    each = plan.tensors[tensor]
    assert plan.uncertainty is not None
    start, n_bytes = each.position, 2 * each.n_weights
    if file == "deviations":
        start = plan.uncertainty.positions[each.name]
    offset = {"first byte": 0, "last byte": n_bytes - 1, "in the middle": n_bytes // 2}[where]
    index = 0 if file == "weights" else -1
    flip(Unfinished(plan).partial(plan.files[index].path), start + offset)
    said = check_finished(plan, whole)
    assert f"damaged on the disk, and made again: '{each.name}'" in said[0]
    assert f"going on with what is there: {N_DONE - 1} of" in said[1]


def test_bytes_that_no_tensor_has_are_zeros_again(plan: MergePlan, whole: Any) -> None:
    """Headers, what lies between tensors, and tensors that are not complete."""
    stop_after(plan, N_DONE)
    partial = Unfinished(plan).partial(plan.output)
    raw = np.fromfile(partial, np.uint8)
    keep = np.zeros(raw.size, bool)
    for each in plan.tensors[:N_DONE]:
        size = 4 if each.outtype == "F32" else 2
        keep[each.position : each.position + size * each.n_weights] = True
    raw[~keep] ^= 0xFF
    raw.tofile(partial)
    (said,) = check_finished(plan, whole)
    assert f"going on with what is there: {N_DONE} of" in said


def test_everything_damaged(plan: MergePlan, whole: Any) -> None:
    stop_after(plan, N_DONE)
    for file in plan.files:
        Unfinished(plan).partial(file.path).write_bytes(b"\xff" * file.n_bytes)
    said = check_finished(plan, whole)
    assert f"and {N_DONE - 3} more" in said[0]


def test_a_file_that_cannot_be_opened(plan: MergePlan, whole: Any, tmp_path: Path) -> None:
    stop_after(plan, N_DONE)
    partial = Unfinished(plan).partial(plan.output)
    elsewhere = tmp_path / "elsewhere"
    partial.rename(elsewhere)
    partial.symlink_to(elsewhere)  # links are not followed
    raw = elsewhere.read_bytes()
    with pytest.raises(Exception, match="cannot be written"):
        execute_merge(plan, resume=True)
    assert elsewhere.read_bytes() == raw


# Entries.


def forge(plan: MergePlan, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the last record of the journal, and make its digest right."""
    (path,) = plan.output.parent.glob(".*.journal")
    journal = Journal(path, path).__enter__()
    first, *records = journal.records
    change(records[-1])
    journal.restart(first)
    for record in records:
        journal.append(record)
    journal.__exit__(Interrupted, None, None)


def estimated(record: dict[str, Any]) -> list[Any]:
    """The entry of a tensor that is estimated."""
    entry: list[Any] = next(each for each in record["tensors"] if "estimated" in each[1])
    return entry


def set_sum(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: estimated(record)[1].update({name: value})


def set_estimated(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: estimated(record)[1]["estimated"].update({name: value})


def set_entry(field: int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        estimated(record)[field] = value

    return change


def set_seconds(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update(seconds=value)


FORGED: dict[str, Callable[[dict[str, Any]], None]] = {
    "NaN": set_estimated("variance", float("nan")),
    "infinite": set_estimated("variance", float("inf")),
    "negative": set_estimated("alone", [-1.0, 0.0]),
    "larger than any float32": set_estimated("variance", 1e300),
    "an integer beyond float64": set_estimated("variance", 10**400),
    "text": set_estimated("variance", "1"),
    "true": set_estimated("variance", True),
    "more conflicts than weights": set_estimated("n_conflicts", 1e12),
    "of more inputs": set_estimated("alone", [0.0] * 10**5),
    "of no input": set_estimated("alone", []),
    "inputs that are a number": set_estimated("alone", 5),
    "a sum of another name": set_estimated("total", 1.0),
    "no tally": set_sum("estimated", None),
    "an empty tally": set_sum("estimated", {}),
    "a count that is NaN": set_sum("certain", float("nan")),
    "a count that is a fraction": set_sum("certain", 0.5),
    "a negative count": set_sum("broken", -1),
    "a count beyond float64": set_sum("certain", 10**400),
    "more certain weights than weights": set_sum("certain", 10**12),
    "infinite difference": set_sum("difference", float("inf")),
    "text instead of a number": set_sum("expected", "1"),
    "a number of another name": set_sum("n_certain", 1),
    "no sums": set_entry(1, None),
    "sums by number": set_entry(1, [0.0] * 16),
    "no sums of what is estimated": set_entry(1, {}),
    "negative index": set_entry(0, -1),
    "index beyond the end": set_entry(0, 10**6),
    "index that is true": set_entry(0, True),
    "index that is a fraction": set_entry(0, 1.5),
    "time that is NaN": set_seconds(float("nan")),
    "negative time": set_seconds(-5),
    "infinite time": set_seconds(float("inf")),
    "time that is text": set_seconds("5"),
    "no tensors": lambda record: record.pop("tensors"),
    "tensors that are a number": lambda record: record.update(tensors=5),
    "an entry that is nothing": lambda record: record["tensors"].append(None),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_entries_count_for_nothing(plan: MergePlan, whole: Any, case: str) -> None:
    stop_after(plan, N_DONE)
    forge(plan, FORGED[case])
    (said,) = check_finished(plan, whole)
    assert "starting over: its journal is damaged" in said


def test_a_forged_digest_is_no_match(plan: MergePlan, whole: Any) -> None:
    for value in ("0" * 16, None, 5, ["x"]):
        stop_after(plan, N_DONE)
        forge(plan, set_entry(2, value))
        assert "made again" in check_finished(plan, whole)[0]


@pytest.mark.parametrize("text", [b"[" * 100_000, b"1" * 10_000, b"\xff", b"{", b""])
def test_records_that_are_no_json(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "j"
    journal = Journal(path, path)
    line = journal._digest_with(text + b"\n").encode() + b" " + text + b"\n"
    path.write_bytes(line)
    with journal:
        assert journal.records == []
        assert journal.is_damaged


# Inputs that change meanwhile.


@pytest.fixture
def copies(tiny: list[Path], tmp_path: Path) -> Iterator[list[Path]]:
    folder = tmp_path / "inputs"
    folder.mkdir()
    found = [folder / path.name for path in tiny]
    for source, copy in zip(tiny, found, strict=True):
        copy.write_bytes(source.read_bytes())
    yield found
    mapping.forget()


def test_nothing_that_was_made_of_a_changed_input_is_kept(
    copies: list[Path], tmp_path: Path
) -> None:
    plan = plan_merge(copies, tmp_path / "out.gguf")
    work, next_one = Worker.work, plan.tensors[N_DONE].name

    def spoil(self: Worker, task: Task, files: Any) -> Record:
        if next_one in task.tensors:
            flip(copies[1], copies[1].stat().st_size // 2)
            os.utime(copies[1])
        return work(self, task, files)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacks, "LARGEST", 0)
        patch.setattr(Worker, "work", spoil)
        with pytest.raises(InputError, match="was changed while it was read"):
            execute_merge(plan, n_threads=1, resume=True)
    assert not plan.output.exists()
    for path in tmp_path.glob(".*.journal"):
        records = [json.loads(line.split(b" ", 1)[1]) for line in path.read_bytes().splitlines()]
        assert all(each[0] < N_DONE for record in records[1:] for each in record["tensors"])

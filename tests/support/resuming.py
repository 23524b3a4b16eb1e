"""Merges that stop on the way, and go on."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recover.execution import stacks
from recover.execution.tasks import Record, Task
from recover.merge.execute import MergeResult, execute_merge
from recover.merge.plan import MergePlan, plan_merge
from recover.merge.work import Worker

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
    """Counts the tensors that are worked on, and stops after some of them."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.stops_after = sys.maxsize
        self.error: BaseException = Interrupted()
        self.before: Callable[[], None] = lambda: None
        self._work = Worker.work

    def work(self, worker: Worker, task: Task, files: Any) -> Record:
        self.before()
        if len(self.done) >= self.stops_after:
            raise self.error
        gave = self._work(worker, task, files)
        self.done += task.tensors
        return gave

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Come between the workers and their tasks, one a tensor, until the patch is undone."""
        patch.setattr(stacks, "LARGEST", 0)
        patch.setattr(Worker, "work", lambda worker, task, files: self.work(worker, task, files))


Interrupt = Callable[..., list[str]]


def finish(plan: MergePlan, **options: Any) -> tuple[MergeResult, list[str]]:
    """Carry out a plan; and what it says."""
    said: list[str] = []
    options = {"n_threads": 1, "resume": True, "force": True} | options
    return execute_merge(plan, tell=said.append, **options), said


Whole = Callable[[str], tuple[dict[str, bytes], dict[str, Any]]]


def raise_(error: BaseException) -> Callable[..., Any]:
    def call(*_arguments: object, **_options: object) -> Any:
        raise error

    return call

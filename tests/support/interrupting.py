"""What stops merges on the way: the cases, and the types of fixtures."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from recover.execution import stacks
from recover.execution.tasks import Record, Task
from recover.merge.work import Worker

N_TENSORS = 30  # of the small model; each is one tile
OPTIONS: dict[str, dict[str, Any]] = {
    "one file": {},
    "parts and deviations": {"split_max_size": 1_500_000, "uncertainty": "deviation.gguf"},
}


Interrupt = Callable[..., list[str]]
Whole = Callable[[str], tuple[dict[str, bytes], dict[str, Any]]]


class Interrupted(BaseException):
    """Not an `Exception`, like what Ctrl-C raises."""


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

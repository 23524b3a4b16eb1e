"""Tasks on their way to other processes: several that follow each other at once."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from recover.execution.tasks import Record, Take, Task, carry_out
from recover.quants import TILE

_WEIGHTS = 8 * TILE
"""Of a batch, about: some hundredths of a second of work, many times what sending it takes."""


class Batch(NamedTuple):
    """Tasks that one process does, one after the other."""

    tasks: list[Task]

    @property
    def records(self) -> list[Record]:
        """What is sent."""
        return [task.to_record() for task in self.tasks]

    @property
    def n_weights(self) -> int:
        """Of all tasks."""
        return sum(task.n_weights for task in self.tasks)

    def give(self, gave: list[Record], take: Take) -> None:
        """Pass on what the tasks gave."""
        for task, each in zip(self.tasks, gave, strict=True):
            take(task, each)


def batches(tasks: Iterable[Task]) -> Iterator[Batch]:
    """Tasks in batches, as they are asked for."""
    waiting: list[Task] = []
    n_weights = 0
    for task in tasks:
        waiting.append(task)
        n_weights += task.n_weights
        if n_weights >= _WEIGHTS:
            yield Batch(waiting)
            waiting, n_weights = [], 0
    if waiting:
        yield Batch(waiting)


def do_batch(records: list[Record]) -> list[Record]:
    """Do tasks in a process that has nothing but their records; what each gives.

    Raises
    ------
    RecoverError
        As of `recover.execution.tasks.carry_out`.
    """
    return [carry_out(record) for record in records]

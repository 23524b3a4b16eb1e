"""What tasks give, tensor by tensor: sums of the tiles, added up in their order."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recover.execution.output import OutputFile
from recover.execution.tasks import Record, Task, Watch
from recover.execution.tiles import Progress
from recover.execution.work import HowToWork, Summed, Work

Totals = dict[int, Any]
"""By index of a tensor, the sums of all its weights."""


class Gathering:
    """Sums per tensor, added up in the order of the tiles.

    So the figures do not depend on who worked on which tile; tiles are kept apart only while their
    tensor is worked on.

    Parameters
    ----------
    work : Work
        Whose tensors they are.
    done : mapping of int to Summed
        Those that were complete before.

    Attributes
    ----------
    done : frozenset of int
        The same.
    totals : dict of int to Summed
        All that are complete now.
    """

    def __init__(self, work: Work, done: Mapping[int, Any]) -> None:
        self.done = frozenset(done)
        self.totals: Totals = dict(done)
        self._work = work
        self._units = work.units
        self._sums = work.sums
        self._index = {unit.name: i for i, unit in enumerate(work.units)}
        self._lock = threading.Lock()
        self._open: dict[int, dict[int, Summed]] = {}
        self._finished: Totals = {}

    def add(self, task: Task, gave: Record) -> None:
        """Take the sums of a task's tiles, which are written."""
        sums = self._sums
        found = [
            each if isinstance(each, sums) else sums.from_record(each) for each in gave["sums"]
        ]
        step = self._units[self._index[task.tensors[0]]].step
        starts = range(task.start, task.end, step)
        if len(found) != len(task.tensors) * len(starts):
            raise ValueError(f"{len(found)} sums are not those of the task")
        with self._lock:
            for i, name in enumerate(task.tensors):
                own = found[i * len(starts) : (i + 1) * len(starts)]
                self._add(self._index[name], dict(zip(starts, own, strict=True)))

    def _add(self, index: int, tiles: dict[int, Summed]) -> None:
        unit = self._units[index]
        n_tiles = -(-unit.n_weights // unit.step)
        if len(tiles) < n_tiles:
            # What is done twice (by a worker that was taken for dead) gave the same.
            known = self._open.setdefault(index, {})
            known |= tiles
            tiles = known
        if len(tiles) < n_tiles:
            return
        self._open.pop(index, None)
        total, *others = (tiles[start] for start in sorted(tiles))
        for each in others:
            total += each
        self._finished[index] = self.totals[index] = self._work.complete(index, total)

    def take_finished(self) -> Totals:
        """The tensors of which all tiles were written since the last call."""
        with self._lock:
            finished, self._finished = self._finished, {}
            return finished


def do_tasks(
    work: Work,
    indices: Sequence[int],
    outputs: Sequence[OutputFile],
    gathering: Gathering,
    how: HowToWork,
    save_if_due: Callable[[], None] | None = None,
) -> None:
    """Have the tasks of some tensors done, and gather what they give.

    Parameters
    ----------
    work : Work
        Whose.
    indices : sequence of int
        Which tensors.
    outputs : sequence of OutputFile
        What takes the bytes, in the order of `Work.files`.
    gathering : Gathering
        What takes the sums.
    how : HowToWork
        Who does them.
    save_if_due : callable, optional
        Called now and then, and at the start.
    """
    n_left = sum(work.units[i].n_weights for i in indices)
    watch = _watch(how.progress, work.n_weights, n_left, save_if_due)
    watch(0)
    if not indices:
        return
    files = {str(file.place): file for file in outputs}
    places = [file.place for file in outputs]

    def take(task: Task, gave: Record) -> None:
        for path, written in gave.get("written", {}).items():
            for each in written:
                files[path].take_note(*each)
        gathering.add(task, gave)

    work.prepare(indices, how)
    executor = how.executor_of(work, {file.place: file for file in outputs})
    executor.run(work.tasks(indices, places), take, watch)


def _watch(
    progress: Progress | None, n_weights: int, n_left: int, save: Callable[[], None] | None
) -> Watch:
    """What is called while tasks are done."""

    def watch(n_done: int) -> None:
        if save is not None:
            save()
        if progress is not None:
            progress(n_weights - n_left + n_done, n_weights)

    return watch

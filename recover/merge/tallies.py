"""The sums of a merge, tensor by tensor, as tiles are written."""

import threading

from recover.execution.tasks import Record, Task
from recover.execution.tiles import n_tiles
from recover.merge.plan import MergePlan
from recover.merge.sums import Sums, Totals
from recover.quants import TILE


class Tallies:
    """Sums per tensor, added up in the order of the tiles.

    So the figures do not depend on who worked on which tile; tiles are kept apart only while their
    tensor is worked on. `done` are the tensors that were complete before, with their sums.
    """

    def __init__(self, plan: MergePlan, done: Totals) -> None:
        self.done = frozenset(done)
        self.totals = dict(done)
        self._n_tiles = [n_tiles(tensor.n_weights) for tensor in plan.tensors]
        self._index = {tensor.name: i for i, tensor in enumerate(plan.tensors)}
        self._lock = threading.Lock()
        self._open: dict[int, dict[int, Sums]] = {}
        self._finished: Totals = {}

    def add(self, task: Task, gave: Record) -> None:
        """Take the sums of a task's tiles, which are written."""
        found = [
            each if isinstance(each, Sums) else Sums.from_record(each) for each in gave["sums"]
        ]
        starts = range(task.start, task.end, TILE)
        if len(found) != len(task.tensors) * len(starts):
            raise ValueError(f"{len(found)} sums are not those of the task")
        with self._lock:
            for i, name in enumerate(task.tensors):
                own = found[i * len(starts) : (i + 1) * len(starts)]
                self._add(self._index[name], dict(zip(starts, own, strict=True)))

    def _add(self, index: int, tiles: dict[int, Sums]) -> None:
        if len(tiles) < self._n_tiles[index]:
            tiles = self._open.setdefault(index, {}) | tiles
            self._open[index] = tiles
        if len(tiles) < self._n_tiles[index]:
            return
        self._open.pop(index, None)
        total, *others = (tiles[start] for start in sorted(tiles))
        for each in others:
            total += each
        self._finished[index] = self.totals[index] = total

    def take_finished(self) -> Totals:
        """The tensors of which all tiles were written since the last call."""
        with self._lock:
            finished, self._finished = self._finished, {}
            return finished

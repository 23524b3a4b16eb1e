"""The sums of a merge, tensor by tensor, as tiles are written."""

import threading

import numpy as np
from numpy.typing import NDArray

from recover.execution.tiles import Tile, n_tiles
from recover.merge.plan import MergePlan
from recover.merge.resume import Sums


class Tallies:
    """Sums per tensor, added up in the order of the tiles.

    First those of `recover.merge.sums`, then those of the estimator (see `recover.estimators`).
    So the figures do not depend on the threads; tiles are kept apart only while their tensor is
    worked on. `done` are the tensors that were complete before, with their sums.
    """

    def __init__(self, plan: MergePlan, done: Sums) -> None:
        self.done = frozenset(done)
        self.totals = {index: sums for index, sums in done.items() if sums is not None}
        self._plan = plan
        self._lock = threading.Lock()
        self._open: dict[int, dict[int, NDArray[np.float64] | None]] = {}
        self._finished: Sums = {}

    def add(self, tile: Tile, tally: NDArray[np.float64] | None) -> None:
        """Take the sums of one tile that is written; None where nothing is estimated."""
        if n_tiles(self._plan.tensors[tile.tensor].n_weights) == 1:
            with self._lock:
                self._finish(tile.tensor, tally)
            return
        with self._lock:
            tallies = self._open.setdefault(tile.tensor, {})
            tallies[tile.start] = tally
            if len(tallies) == n_tiles(self._plan.tensors[tile.tensor].n_weights):
                in_order = [sums for _, sums in sorted(tallies.items()) if sums is not None]
                self._finish(tile.tensor, np.sum(in_order, axis=0) if in_order else None)
                del self._open[tile.tensor]

    def _finish(self, index: int, total: NDArray[np.float64] | None) -> None:
        self._finished[index] = total
        if total is not None:
            self.totals[index] = total

    def take_finished(self) -> Sums:
        """The tensors of which all tiles were written since the last call."""
        with self._lock:
            finished, self._finished = self._finished, {}
            return finished

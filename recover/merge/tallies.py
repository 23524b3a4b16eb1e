"""The sums of a merge, tensor by tensor, as tiles are written."""

import threading

from recover.execution.tiles import Tile, n_tiles
from recover.merge.plan import MergePlan
from recover.merge.sums import Sums, Totals


class Tallies:
    """Sums per tensor, added up in the order of the tiles.

    So the figures do not depend on who worked on which tile; tiles are kept apart only while their
    tensor is worked on. `done` are the tensors that were complete before, with their sums.
    """

    def __init__(self, plan: MergePlan, done: Totals) -> None:
        self.done = frozenset(done)
        self.totals = dict(done)
        self._plan = plan
        self._lock = threading.Lock()
        self._open: dict[int, dict[int, Sums]] = {}
        self._finished: Totals = {}

    def add(self, tile: Tile, sums: Sums) -> None:
        """Take the sums of one tile that is written."""
        n_all = n_tiles(self._plan.tensors[tile.tensor].n_weights)
        with self._lock:
            tiles = self._open.setdefault(tile.tensor, {})
            tiles[tile.start] = sums
            if len(tiles) < n_all:
                return
            del self._open[tile.tensor]
            total = Sums()
            for start in sorted(tiles):
                total += tiles[start]
            self._finished[tile.tensor] = self.totals[tile.tensor] = total

    def take_finished(self) -> Totals:
        """The tensors of which all tiles were written since the last call."""
        with self._lock:
            finished, self._finished = self._finished, {}
            return finished

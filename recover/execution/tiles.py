"""Work in tiles, on threads: any number of workers empty one queue, and an error stops them all.

What works on all weights of models takes two parameters for it, both optional: the int `n_threads`,
by default the cores that this process may use, and a `Progress`, which is called from the thread
that the work was asked from.
"""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from recover import _stopping as stopping
from recover.containers.mapping import check_faults, faults
from recover.quants import TILE

Progress = Callable[[int, int], None]
"""``progress(n_weights_done, n_weights)``, called now and then."""

_POLL_SECONDS = 0.1
# Weights that a worker takes at once, if a tensor has fewer.
_ENOUGH = 1 << 14


class Range(Protocol):
    """Something that is done to some weights."""

    @property
    def n_weights(self) -> int:
        """How many they are."""


Piece = TypeVar("Piece", bound=Range)


class Tile(NamedTuple):
    """A run of weights of one tensor."""

    tensor: int
    """Index of the tensor."""
    start: int
    """First weight."""
    end: int
    """One past the last weight."""

    @property
    def n_weights(self) -> int:
        """How many they are."""
        return self.end - self.start


def available_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def n_tiles(n_weights: int) -> int:
    """Number of tiles that a tensor is cut into."""
    return -(-n_weights // TILE)


def whole_rows(row_length: int, most: int = TILE) -> int:
    """Weights of a tile that is cut at rows: about `most`, or one row that is longer."""
    return max(1, most // row_length) * row_length


def for_each_tile(
    sizes: Sequence[int],
    workers: Sequence[Callable[[Tile], None]],
    progress: Progress | None = None,
    steps: Sequence[int] | None = None,
) -> None:
    """Cut tensors into tiles and let the workers take them in order, one thread each.

    Parameters
    ----------
    sizes : sequence of int
        Number of weights of each tensor.
    workers : sequence of callables
        Each is called with one tile at a time, from its own thread.
    progress : callable, optional
        Called from this thread.
    steps : sequence of int, optional
        For each tensor the weights of a tile (the last one may have fewer); default `TILE`.

    Raises
    ------
    Exception
        The first that a worker raises; the others stop after the tile at hand.
    InputError
        If a page of an input could not be read: what was made of it must not be used.
    Stopped
        If somebody asked for the end (see `recover._stopping`), after the tiles at hand.
    """
    n_weights = sum(sizes)
    tiles = (
        Tile(tensor, start, min(start + step, size))
        for tensor, (size, step) in enumerate(zip(sizes, steps or [TILE] * len(sizes), strict=True))
        for start in range(0, size, step)
    )
    for_each(tiles, workers, progress and (lambda n_done: progress(n_done, n_weights)))


def for_each(
    pieces: Iterable[Piece],
    workers: Sequence[Callable[[Piece], object]],
    watch: Callable[[int], object] | None = None,
) -> None:
    """Let workers take pieces of work in order, one thread each.

    Parameters
    ----------
    pieces : iterable of Range
        Asked for one after the other, as the workers need them.
    workers : sequence of callables
        Each is called with one piece at a time, from its own thread.
    watch : callable, optional
        Called from this thread now and then, with the number of weights done.

    Raises
    ------
    Exception
        As of `for_each_tile`.
    """
    queue, before = _Queue(pieces), faults()
    with ThreadPoolExecutor(len(workers), thread_name_prefix="recover") as pool:
        pending = {pool.submit(_work, worker, queue) for worker in workers}
        try:
            while pending:
                finished, pending = wait(pending, _POLL_SECONDS, FIRST_EXCEPTION)
                check_faults(before)
                if stopping.is_requested():
                    queue.close()
                elif watch is not None:
                    watch(queue.n_done)
                for future in finished:
                    future.result()
        finally:
            queue.close()
    check_faults(before)
    stopping.check()


class OneCount:
    """One count of progress over several passes; each is told of from 0 to all of its weights.

    Parameters
    ----------
    report : Progress or None
        Who is told of the weights done in all passes.
    n_weights : int
        How many there are in all of them.
    """

    def __init__(self, report: Progress | None, n_weights: int) -> None:
        self._report = report
        self._n_weights = n_weights
        self._before = 0

    def __call__(self, n_done: int, n_all: int) -> None:
        """What a pass is told with."""
        if self._report is not None:
            self._report(self._before + n_done, self._n_weights)
        if n_done == n_all:
            self._before += n_all


class _Queue(Generic[Piece]):
    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._lock = threading.Lock()
        self._pieces = iter(pieces)
        self.n_done = 0
        self.is_open = True

    def close(self) -> None:
        with self._lock:
            self._pieces = iter(())
            self.is_open = False

    def take(self, n_finished: int) -> list[Piece]:
        """One piece, or several small ones that follow each other; none at the end."""
        taken: list[Piece] = []
        n_weights = 0
        with self._lock:
            self.n_done += n_finished
            while n_weights < _ENOUGH and (piece := next(self._pieces, None)) is not None:
                taken.append(piece)
                n_weights += piece.n_weights
        return taken


def _work(worker: Callable[[Any], object], queue: _Queue[Any]) -> None:
    n_finished = 0
    while pieces := queue.take(n_finished):
        for piece in pieces:
            if queue.is_open:
                worker(piece)
        n_finished = sum(piece.n_weights for piece in pieces)

"""Bounds of one tensor as arrays: those that ``recover bounds`` writes, bit for bit."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recover._brief import Brief
from recover.bounds.checks import condition_of
from recover.bounds.execute import BoundStatistics, statistics_of
from recover.bounds.measuring import mark_conflicts, measure
from recover.bounds.plan import TensorPlan, checked, plan_tensors, prepare
from recover.evidence.intervals import Intervals
from recover.execution.tiles import Progress, Tile, available_cores, for_each_tile, n_tiles
from recover.inputs.alignment import index_of
from recover.inputs.open import one_or_more, open_models
from recover.quants import TILE, F32Array


@dataclass(frozen=True, repr=False)
class TensorBounds(Brief):
    """What the inputs prove of each weight of a tensor.

    Attributes
    ----------
    name : str
        Of the tensor.
    lower, upper : float32, in the tensor's shape
        No weight is outside; infinite where nothing confines it on that side, NaN where the inputs
        contradict each other.
    conflicts : bool, in the tensor's shape
        Where they do.
    statistics : BoundStatistics
        How much is known.
    condition : str
        What this rests on.
    failures : tuple of str
        Why inputs were left out, a line each.
    """

    name: str
    lower: F32Array
    upper: F32Array
    conflicts: NDArray[np.bool_]
    statistics: BoundStatistics
    condition: str
    failures: tuple[str, ...]

    @property
    def certified(self) -> bool:
        """Whether an input confines the weights, and none contradicts another one."""
        return not self.statistics.n_conflicts and self.statistics.two_sided > 0

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "name", self.name
        yield "shape", self.lower.shape
        yield "two_sided", self.statistics.two_sided
        yield "mean_width", self.statistics.mean_width
        yield "n_conflicts", self.statistics.n_conflicts
        yield "certified", self.certified


def bounds(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    tensor: str,
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> TensorBounds:
    """The proven interval of each weight of one tensor; no other tensor's weights are read.

    Parameters
    ----------
    paths : path-like, or sequence of them
        GGUF files and Hugging Face folders, quantized from the same original.
    tensor : str
        Its name, as GGUF files have it.
    n_threads, progress : optional
        See `recover.execution.tiles`.

    Returns
    -------
    TensorBounds

    Raises
    ------
    GGUFError, PlanError
        If an input cannot be read, or the inputs do not fit together.
    UsageError
        If there is no such tensor, or it holds no weights.
    """
    models, names = prepare(open_models(one_or_more(paths)), None, [])
    name = names[index_of(names, tensor)]
    n_threads = n_threads or available_cores()
    (plan,) = checked(plan_tensors(models, [name]), models, n_threads, None)
    lower, upper = np.empty((2, plan.n_weights), np.float32)
    figures = np.zeros((n_tiles(plan.n_weights), 4))
    workers = [_worker(plan, lower, upper, figures) for _ in range(n_threads)]
    for_each_tile([plan.n_weights], workers, progress)
    conflicts = lower > upper
    mark_conflicts(lower, upper)
    shape = plan.dims[::-1]
    return TensorBounds(
        name,
        lower.reshape(shape),
        upper.reshape(shape),
        conflicts.reshape(shape),
        statistics_of(plan.n_weights, figures),
        condition_of(models),
        plan.failures,
    )


def _worker(
    plan: TensorPlan, lower: F32Array, upper: F32Array, figures: NDArray[np.float64]
) -> Callable[[Tile], None]:
    """What bounds the weights of one tile, for one thread."""
    intervals = Intervals()
    intervals.look_at(plan.sources)

    def work(tile: Tile) -> None:
        found = intervals.bound(tile.start, tile.end)
        figures[tile.start // TILE] = measure(*found)
        lower[tile.start : tile.end], upper[tile.start : tile.end] = found

    return work

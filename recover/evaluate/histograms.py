"""What the pictures show of the weights, collected in one more pass over the tensors.

The upper 16 bits of a float32 order like the number itself and are 128 steps per power of two, so
that counts by them are a histogram of 65,536 bins which suits any model, whatever the size of its
errors; memory does not depend on the size of the model.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recover._compiled.float16 import f32_bits
from recover._compiled.jit import kernel
from recover._text import printable, quoted
from recover.containers.model import Model, StoredTensor
from recover.errors import EvaluationError
from recover.estimators import FIRST_ALONE, TileEstimator
from recover.evaluate.errors import ModelErrors
from recover.evidence.buffer import Source
from recover.evidence.cells import intersect_cells
from recover.execution.tiles import (
    OneCount,
    Progress,
    Tile,
    available_cores,
    for_each_tile,
    n_tiles,
)
from recover.inputs.alignment import with_common_rows
from recover.inputs.open import open_model
from recover.inputs.provenance import source_of
from recover.quants import TILE, F32Array, FloatType, ScalarType

F64Array = NDArray[np.float64]
Counts = NDArray[np.int64]

N_MAGNITUDES = 1 << 15
"""Bins of a magnitude: the upper 16 bits of a float32 without its sign."""
_INFINITY = 0x7F80
N_WEIGHT_BINS = 1 << 10
"""Bins by the magnitude of the true weight, four per power of two."""
WEIGHT_SHIFT = 21
"""Bits of a float32 that these bins leave out."""
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class TypeDistribution:
    """The errors of all tensors of one type in a model."""

    type: str
    """Name of the type."""
    errors: Counts
    """int64 (65536,): counts of the errors, decoded minus true weight, by the upper 16 bits of
    their float32."""
    n_by_weight: Counts
    """int64 (1024,): counts of the weights by the upper 11 bits of their magnitude as float32."""
    square_by_weight: F64Array
    """float64 (1024,): sums of the squared errors in the same bins."""
    widths: Counts
    """int64 (32768,): counts of the widths of the proven intervals by the upper 16 bits of their
    float32; all 0 if the codes prove nothing. Intervals that are open on a side are counted as
    infinite."""

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return int(self.errors.sum())

    def magnitudes(self) -> Counts:
        """Counts of the errors' magnitudes (32768,)."""
        return self.errors[:N_MAGNITUDES] + self.errors[N_MAGNITUDES:]

    def __add__(self, other: "TypeDistribution") -> "TypeDistribution":
        return TypeDistribution(
            type=self.type,
            errors=self.errors + other.errors,
            n_by_weight=self.n_by_weight + other.n_by_weight,
            square_by_weight=self.square_by_weight + other.square_by_weight,
            widths=self.widths + other.widths,
        )


@dataclass(frozen=True, eq=False)
class ModelDistributions:
    """One model's errors as the pictures show them."""

    path: str
    """As in `ModelErrors`."""
    types: tuple[TypeDistribution, ...]
    """By name of the type."""
    expected_rmse: Mapping[str, float]
    """For each quantized tensor the root mean square error that its type and its scales let expect,
    without a look at the truth."""


def collect_distributions(
    results: Sequence[ModelErrors],
    truth: str | os.PathLike[str],
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> list[ModelDistributions]:
    """Collect the distributions of errors of models that `evaluate_models` has compared.

    Parameters
    ----------
    results : sequence of ModelErrors
        Names the models and the tensors.
    truth : path-like
        The same original.
    n_threads, progress : optional
        See `recover.execution.tiles`.

    Returns
    -------
    list of ModelDistributions
        In the order of `results`.

    Raises
    ------
    GGUFError
        If a file cannot be read (again).
    EvaluationError
        If a file is not any more what it was when it was compared.
    """
    names = {tensor.name for result in results for tensor in result.tensors}
    original = open_model(truth).fitted(names)
    report = OneCount(progress, sum(each.total.n_weights for each in results))
    collector = _Collector(n_threads or available_cores(), report)
    return [_collect_model(result, original, collector) for result in results]


def _collect_model(
    result: ModelErrors, truth: Model, collector: "_Collector"
) -> ModelDistributions:
    model = open_model(result.path).fitted([each.name for each in result.tensors])
    types: dict[str, TypeDistribution] = {}
    expected: dict[str, float] = {}
    for each in result.tensors:
        tensor, original = model.tensors.get(each.name), truth.tensors.get(each.name)
        if tensor is None or original is None or tensor.type.name != each.type:
            raise _changed(model, each.name)
        tensor, original = with_common_rows(tensor, original)
        if not tensor.n_weights == original.n_weights == each.errors.n_weights:
            raise _changed(model, each.name)
        is_float = isinstance(tensor.type, FloatType)
        source = None if is_float else source_of(model, tensor)
        own, variance = collector.collect(tensor, original, source)
        types[each.type] = own + types[each.type] if each.type in types else own
        if source is not None:
            expected[each.name] = math.sqrt(variance)
    return ModelDistributions(result.path, tuple(types[name] for name in sorted(types)), expected)


def _changed(model: Model, name: str) -> EvaluationError:
    return EvaluationError(
        f"{printable(model.path)}: tensor {quoted(name)} is not any more what it was when it was"
        " compared"
    )


class _Collector:
    """Counts over one tensor at a time, on threads."""

    def __init__(self, n_threads: int, progress: Progress) -> None:
        self._n_threads = n_threads
        self._progress = progress

    def collect(
        self, tensor: StoredTensor, truth: StoredTensor, source: Source | None
    ) -> tuple[TypeDistribution, float]:
        """The distribution of one tensor's errors, and the variance to expect of them."""
        sums = _TileSums(n_tiles(tensor.n_weights))
        workers = [_Worker(tensor, truth, source, sums) for _ in range(self._n_threads)]
        for_each_tile([tensor.n_weights], [each.work for each in workers], self._progress)
        own = TypeDistribution(
            type=tensor.type.name,
            errors=_sum_of([each.errors for each in workers]),
            n_by_weight=_sum_of([each.n_by_weight for each in workers]),
            square_by_weight=sums.square_by_weight.sum(axis=0),
            widths=_sum_of([each.widths for each in workers]),
        )
        return own, float(sums.variance.sum() / tensor.n_weights)


def _sum_of(parts: Sequence[Counts]) -> Counts:
    """The counts of all threads."""
    return np.sum(parts, axis=0)


def _confines(source: Source) -> bool:
    """Whether codes are bounded by their cells; those of vector types never are."""
    return source.has_cells and isinstance(source.type, ScalarType)


class _TileSums:
    """Sums per tile, so that the order in which threads take the tiles does not matter."""

    def __init__(self, n: int) -> None:
        self.square_by_weight = np.zeros((n, N_WEIGHT_BINS))
        self.variance = np.zeros(n)


class _Worker:
    """Takes tiles of one tensor, on one thread."""

    def __init__(
        self, tensor: StoredTensor, truth: StoredTensor, source: Source | None, sums: _TileSums
    ) -> None:
        self._tensor = tensor
        self._truth = truth
        self._sums = sums
        self._estimator = None if source is None else TileEstimator([source], FIRST_ALONE)
        self._has_cells = source is not None and _confines(source)
        self._scratch = np.empty((4, min(TILE, tensor.n_weights)), np.float32)
        self.errors = np.zeros(2 * N_MAGNITUDES, np.int64)
        self.n_by_weight = np.zeros(N_WEIGHT_BINS, np.int64)
        self.widths = np.zeros(N_MAGNITUDES, np.int64)

    def work(self, tile: Tile) -> None:
        """Count one tile."""
        index = tile.start // TILE
        x, y, lower, upper = self._scratch[:, : tile.end - tile.start]
        self._truth.read(tile.start, tile.end, y)
        if self._estimator is None:
            self._tensor.read(tile.start, tile.end, x)
        else:
            tally = self._estimator.estimate([self._tensor], tile.start, tile.end, x)
            self._sums.variance[index] = tally.variance
            if self._has_cells:
                intersect_cells(self._estimator.evidence, lower, upper)
                _count_widths(lower, upper, self.widths)
        _count_errors(x, y, self.errors, self.n_by_weight, self._sums.square_by_weight[index])


@kernel
def _count_errors(
    x: F32Array, truth: F32Array, errors: Counts, n_by_weight: Counts, square_by_weight: F64Array
) -> None:
    """Counts of signed errors; counts and summed squares by the magnitude of the true weight."""
    for i in range(x.size):
        error = x[i] - truth[i]
        errors[f32_bits(error) >> np.uint32(16)] += 1
        weight = f32_bits(abs(truth[i])) >> np.uint32(WEIGHT_SHIFT)
        n_by_weight[weight] += 1
        square_by_weight[weight] += np.float64(error) * np.float64(error)


@kernel
def _count_widths(lower: F32Array, upper: F32Array, widths: Counts) -> None:
    """Counts of the widths of intervals; those that are empty have the width 0."""
    for i in range(lower.size):
        width = max(np.float32(0), upper[i] - lower[i])
        widths[f32_bits(width) >> np.uint32(16)] += 1


def magnitude_edges(shift: int = 16) -> F64Array:
    """Lower edges of the bins of magnitudes: floats whose lower `shift` bits are 0.

    Parameters
    ----------
    shift : int
        16 for errors and widths, 21 for the bins by weight.

    Returns
    -------
    float64 (n_bins + 1,)
        Up to and with infinity.
    """
    bits = np.arange((_INFINITY << 16 >> shift) + 1, dtype=np.uint32) << np.uint32(shift)
    return bits.view(np.float32).astype(np.float64)


def quantile_curve(counts: Counts, shares: F64Array) -> F64Array:
    """Quantiles of a magnitude, linear within the bins.

    Parameters
    ----------
    counts : int64 (32768,)
        Counts by the upper 16 bits, finite ones only.
    shares : float64 (n,)
        Between 0 and 1.

    Returns
    -------
    float64 (n,)
        The magnitudes that these shares of all do not exceed.
    """
    n = np.concatenate([[0], np.cumsum(counts[:_INFINITY])])
    edges = magnitude_edges()
    used = np.flatnonzero(counts[:_INFINITY])
    knots = np.union1d(used, used + 1)
    return np.interp(shares * n[-1], n[knots], np.minimum(edges[knots], _LARGEST))


def rebin(errors: Counts, edges: F64Array) -> F64Array:
    """Counts of signed errors in other bins; a count is spread evenly over its own bin.

    Parameters
    ----------
    errors : int64 (65536,)
        As in `TypeDistribution`.
    edges : float64 (n_bins + 1,)
        Ascending. What lies beyond the ends is left out.

    Returns
    -------
    float64 (n_bins,)
    """
    magnitudes = np.minimum(magnitude_edges(), _LARGEST)
    positive, negative = errors[:_INFINITY], errors[N_MAGNITUDES : N_MAGNITUDES + _INFINITY]
    # Sorted by value: the edges of the negative bins, mirrored, then those of the others.
    knots = np.concatenate([-magnitudes[::-1], magnitudes[1:]])
    below = np.concatenate([[0.0], np.cumsum(np.concatenate([negative[::-1], positive]))])
    return np.diff(np.interp(edges, knots, below))

"""How like two inputs of a tensor are whose codes prove nothing: what tells it of a tile."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover.estimators._variances import add_variance, group_variances
from recover.evidence.buffer import Evidence, take_one
from recover.merge.columns import Rows, excess_of_columns, sums_of_columns, without_others
from recover.merge.superblocks import FLATTER, OF_FIRST, compare_each
from recover.quants import GROUP, F32Array

_LARGEST_DIFFERENCE = 2.0  # square difference of two quantizations, over what errors explain
_MANY_OFF = 0.5  # share of the weights, so that the tensor is another one
# Of vector types the error may be so many times what is typical.
_VARYING = 2


class Likeness(NamedTuple):
    """How inputs without cells compare with the first one: the worst one, added up over tiles."""

    n_unlike: int
    """Weights in superblocks of which they say something unrelated."""
    square_difference: float
    """Of the decoded weights, summed."""
    expected: float
    """The same, as far as errors of both explain it."""
    n_off: float
    """Weights in superblocks of which they say a multiple, or, where their errors are as large as
    the weights, something unrelated."""

    def n_contradicted(self, n_weights: int) -> int:
        """Of a tensor's weights: all, if the inputs differ more than their errors explain."""
        if self.square_difference > _LARGEST_DIFFERENCE * self.expected:
            return n_weights
        if self.n_off > _MANY_OFF * n_weights:
            return n_weights
        return self.n_unlike


N_LIKENESS = len(Likeness._fields)

Likenesses = NDArray[np.float64]
"""Of tensors, float64 (n_tensors, 4): rows have the fields of `Likeness`."""


class Said(NamedTuple):
    """What an input says of a tile, and how far it may be off."""

    values: F32Array
    """Decoded weights (n,)."""
    variance: F32Array
    """The square error that its type explains, of groups (n / 16,)."""
    at_most: NDArray[np.float64]
    """The same, summed over the weights of each tensor, (n_tensors,)."""
    typical: float
    """What is typical, of all of them."""

    def tensor(self, i: int, rows: Rows) -> "Said":
        """What is said of one of the tensors; `at_most` and `typical` are those of all."""
        n, n_groups = self.values.size // rows.n_tensors, self.variance.size // rows.n_tensors
        values = self.values[i * n : (i + 1) * n]
        return self._replace(
            values=values, variance=self.variance[i * n_groups : (i + 1) * n_groups]
        )


def exactly(values: F32Array, n_tensors: int) -> Said:
    """What an input without errors says."""
    variance = np.zeros(-(-values.size // GROUP), np.float32)
    return Said(values, variance, np.zeros(n_tensors), 0.0)


def said_of(evidence: Evidence, k: int, n_tensors: int) -> Said:
    """What an input says, as its type tells."""
    variance = np.empty(evidence.scale.shape[1], np.float32)
    group_variances(evidence, k, variance)
    is_vector = k >= len(evidence.codes) + len(evidence.interval_values)
    sums = np.zeros((n_tensors, 1))
    add_variance(variance, sums, 0)
    varying = np.float32(_VARYING if is_vector else 1)
    return Said(decoded(evidence, k), varying * variance, varying * sums[:, 0], float(sums.sum()))


def decoded(evidence: Evidence, k: int) -> F32Array:
    """What an input says, decoded."""
    out = np.empty(evidence.codes.shape[1], np.float32)
    take_one(evidence, k, out)
    return out


def likeness_of(
    one: Said, other: Said, rows: Rows, *, is_typical: bool, largest_lost: float
) -> Likenesses:
    """How two inputs compare.

    Of one that is not typical the errors are as large as the weights; zeros may stand for weights
    of up to `largest_lost`.
    """
    first, second = (
        math.sqrt(said.typical / size) if 0 < (size := _square_sum(said.values)) < np.inf else 0.0
        for said in (one, other)
    )
    slopes = FLATTER * second, OF_FIRST * first
    found = _compared(one, other, slopes, is_typical, largest_lost, rows.n_tensors)
    found[:, 2] = one.at_most + other.at_most if is_typical else 0
    found[~np.isfinite(found[:, 1]), 1:] = 0
    is_large = found[:, 1] > _LARGEST_DIFFERENCE * found[:, 2]
    is_off = found[:, 3] > _MANY_OFF * one.values.size / rows.n_tensors
    for i in np.flatnonzero(is_large | is_off | (found[:, 0] > 0)).tolist():
        a, b = one.tensor(i, rows), other.tensor(i, rows)
        sums = sums_of_columns(
            a.values, b.values, (a.variance, b.variance), rows.start, rows.lengths[i]
        )
        excess = None
        if sums is not None:
            excess = excess_of_columns(sums)
            kept = without_others(a.values, b.values, sums, rows.start)
            a, b = a._replace(values=kept[0]), b._replace(values=kept[1])
            again = _compared(a, b, slopes, is_typical, largest_lost, 1)[0]
            found[i, [0, 3]] = np.minimum(found[i, [0, 3]], again[[0, 3]])
        most = _LARGEST_DIFFERENCE if excess is None else excess
        found[i, 1] = min(found[i, 1], most * found[i, 2])
    return found


def _compared(
    one: Said,
    other: Said,
    slopes: tuple[float, float],
    is_typical: bool,
    largest_lost: float,
    n_tensors: int,
) -> Likenesses:
    """See `compare_each`."""
    found = np.empty((n_tensors, N_LIKENESS))
    compare_each(one.values, other.values, *slopes, is_typical, largest_lost, found)
    return found


def worse(one: Likenesses, other: Likenesses) -> Likenesses:
    """The worse of two comparisons of each tensor, field by field, differences by their excess."""
    fields = np.maximum(one, other)
    is_empty = (one[:, 1] == 0) & (one[:, 2] == 0)
    is_other = is_empty | (other[:, 1] * one[:, 2] > one[:, 1] * other[:, 2])
    fields[:, 1:3] = np.where(is_other[:, None], other[:, 1:3], one[:, 1:3])
    return fields


def _square_sum(x: F32Array) -> float:
    return float(np.einsum("n,n", x, x, dtype=np.float64))

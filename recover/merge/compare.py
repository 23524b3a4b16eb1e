"""Whether inputs contradict each other, tile by tile, also those that are not combined.

Cells that do not meet are a proof. Inputs without cells are compared by the correlation of their
decoded weights, superblock by superblock: errors of a few bits leave most of it, while rows that
were swapped, or are another model's, have none. And the square difference of the whole tensor is to
be what the errors of both explain.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import kernel
from recover.containers.model import Model, StoredTensor
from recover.estimators._combine import add_variance, group_variances, square_difference
from recover.evidence.buffer import Evidence, EvidenceBuffer, Source, take_one
from recover.evidence.cells import intersect_cells
from recover.evidence.intervals import Intervals
from recover.inputs.matching import typical_error
from recover.merge.decide import Draft
from recover.quants import (
    GROUP,
    F32Array,
    FloatType,
    IntervalType,
    ScalarType,
    TensorType,
    VectorType,
)

SUPERBLOCK = 256
# In tensors of up to so many weights all are looked at, in larger ones one in eight at least.
_LOOK_AT_ALL = 1 << 20
_LARGEST_STEP = 8
_PAIR = 2 * GROUP  # weights that the bounds of lone extreme weights are found in
# Of two quantizations it is far larger (`python -m tests.benchmarks.likeness`), but of ternary
# types, whose errors are as large as the weights; of 256 unrelated weights it is 0.06 typically.
_UNLIKE = 0.25
_LARGEST_ERROR = 0.5
_LARGEST_DIFFERENCE = 2.0  # square difference of two quantizations, over what errors explain
# Of vector types the error may be so many times what is typical: of weights of which many are 0, or
# where some columns are much larger than others.
_VARYING = 4

# Types whose errors are known, so that they can be compared.
_SAID = ScalarType | IntervalType | VectorType


def step_for(n_weights: int) -> int:
    """One pair of groups in so many is looked at in a tensor."""
    return int(np.clip(n_weights // _LOOK_AT_ALL, 1, _LARGEST_STEP))


def count_conflicts(evidence: Evidence, step: int, n_tensors: int = 1) -> NDArray[np.int64]:
    """Weights on which inputs with bounds contradict each other, estimated from one in `step`.

    Parameters
    ----------
    evidence : Evidence
        Of a tile.
    step : int
        See `step_for`; 1 where there are several tensors.
    n_tensors : int
        So many tensors of one size lie one behind the other in the tile.

    Returns
    -------
    int64 (n_tensors,)
        Their number among those that are looked at, times `step`.
    """
    if len(evidence.codes) + len(evidence.interval_values) < 2:
        return np.zeros(n_tensors, np.int64)
    part = evidence if step == 1 else _every(evidence, step)
    lower, upper = np.empty((2, part.codes.shape[1]), np.float32)
    intersect_cells(part, lower, upper)
    return step * _count_each(lower > upper, n_tensors)


def _count_each(found: NDArray[np.bool_], n_tensors: int) -> NDArray[np.int64]:
    """How many of the weights (n,) of each tensor are what is asked for."""
    return np.add.reduce(found.reshape(n_tensors, -1), 1, dtype=np.int64)


def _every(evidence: Evidence, step: int) -> Evidence:
    """The evidence on every so many pairs of groups of 16 weights."""
    n_pairs = evidence.codes.shape[1] // _PAIR

    def pick(array: NDArray[Any], size: int) -> NDArray[Any]:
        pairs = array[:, : n_pairs * size].reshape(len(array), n_pairs, size)[:, ::step]
        return np.ascontiguousarray(pairs).reshape(len(array), pairs.shape[1] * size)

    return evidence._replace(
        codes=pick(evidence.codes, _PAIR),
        scale=pick(evidence.scale, 2),
        offset=pick(evidence.offset, 2),
        scale_error=pick(evidence.scale_error, 2),
        offset_error=pick(evidence.offset_error, 2),
        interval_lower=pick(evidence.interval_lower, _PAIR),
        interval_upper=pick(evidence.interval_upper, _PAIR),
    )


class Likeness(NamedTuple):
    """How inputs without cells compare with the first one, added up over them."""

    n_unlike: int
    """Weights in superblocks of which they say something unrelated."""
    square_difference: float
    """Of the decoded weights, summed."""
    expected: float
    """The same, as far as errors of both explain it."""

    def n_contradicted(self, n_weights: int) -> int:
        """Of a tensor's weights: all, if the inputs differ more than their errors explain."""
        if self.square_difference > _LARGEST_DIFFERENCE * self.expected:
            return n_weights
        return self.n_unlike


N_LIKENESS = len(Likeness._fields)

Likenesses = NDArray[np.float64]
"""Of tensors, float64 (n_tensors, 3): rows have the fields of `Likeness`."""


def compare_unproven(evidence: Evidence, n_tensors: int = 1) -> Likenesses:
    """Compare the inputs of a tile that have no cells with the first input.

    Parameters
    ----------
    evidence : Evidence
        The first input is the finest scalar or interval one, or the first of the others.
    n_tensors : int
        So many tensors of one size lie one behind the other in the tile.
    """
    edges = [*zip(evidence.lower_levels, evidence.upper_levels, strict=True)]
    edges += zip(evidence.interval_lower, evidence.interval_upper, strict=True)
    proves = [_is_finite_anywhere(*each) for each in edges]
    n_proven, typical = len(proves), evidence.likelihood[:, 3] < _LARGEST_ERROR
    finest = evidence.finest
    rows = [k for k in range(n_proven) if k != finest and not (proves[finest] and proves[k])]
    rows += [n_proven + v for v in range(n_proven == 0, len(typical)) if typical[v]]
    likeness = np.zeros((n_tensors, N_LIKENESS))
    if rows:
        first, error = _values(evidence, finest), _error_of(evidence, finest, n_tensors)
    for row in rows:
        values, row_error = _values(evidence, row), _error_of(evidence, row, n_tensors)
        likeness += _likeness(first, error, values, row_error)
    return likeness


def _likeness(
    one: F32Array, one_error: NDArray[np.float64], other: F32Array, other_error: NDArray[np.float64]
) -> Likenesses:
    """How two inputs compare: decoded weights (n,), and the square errors to expect, summed."""
    found = np.empty((len(one_error), N_LIKENESS))
    _compare_each(one, other, found)
    found[:, 2] = one_error + other_error
    found[~np.isfinite(found[:, 1]), 1:] = 0
    return found


class Comparison:
    """Compares what is taken of a tensor with inputs that take no part.

    Parameters
    ----------
    taken : StoredTensor
        The input whose weights are written.
    is_exact : bool
        Whether its decoded weights are the original's; otherwise its cells count.
    confining : sequence of StoredTensor
        Inputs whose numbers or codes prove bounds; `taken` among them if it does and is not exact.
    others : sequence of (StoredTensor, Source)
        Inputs that prove none, and how they were made.
    """

    def __init__(
        self,
        taken: StoredTensor,
        is_exact: bool,
        confining: Sequence[StoredTensor],
        others: Sequence[tuple[StoredTensor, Source]],
    ) -> None:
        self._taken = taken
        self._is_exact = is_exact
        self._others = [(tensor, EvidenceBuffer([source])) for tensor, source in others]
        self._own: EvidenceBuffer | None = None
        if others and not is_exact and isinstance(taken.type, _SAID):
            self._own = EvidenceBuffer([Source(taken.type)])
        self._intervals = Intervals()
        self._intervals.look_at(confining)

    def n_conflicts(self, start: int, end: int, n_tensors: int = 1) -> NDArray[np.int64]:
        """Of weights `start` to `end` those that an input with bounds contradicts: (n_tensors,).

        So many tensors of one size lie one behind the other there.
        """
        lower, upper = self._intervals.bound(start, end)
        if not self._is_exact:
            return _count_each(lower > upper, n_tensors)
        taken = self._taken.read(start, end)
        # The others may have been quantized from these, rounded to BF16.
        slack = np.abs(taken) * np.float32(2.0**-8)
        return _count_each((taken + slack < lower) | (taken - slack > upper), n_tensors)

    def likeness(self, start: int, end: int, n_tensors: int = 1) -> Likenesses:
        """How inputs without cells compare with what is taken of weights `start` to `end`."""
        likeness = np.zeros((n_tensors, N_LIKENESS))
        if not self._others:
            return likeness
        taken = self._taken.read(start, end)
        own_error = np.zeros(n_tensors)
        if self._own is not None:
            own_error = _error_of(self._own.read([self._taken], start, end), 0, n_tensors)
        for other, buffer in self._others:
            evidence = buffer.read([other], start, end)
            values, error = _values(evidence, 0), _error_of(evidence, 0, n_tensors)
            likeness += _likeness(taken, own_error, values, error)
        return likeness


def compare(
    inputs: Sequence[StoredTensor],
    confines: Sequence[bool],
    noises: Sequence[float | None],
    *,
    is_exact: bool,
) -> Comparison:
    """What compares the first input, which is taken, with the others.

    Parameters
    ----------
    inputs : sequence of StoredTensor
        As they are stored.
    confines : sequence of bool
        Whether their numbers or codes prove bounds.
    noises : sequence of float or None
        As of a `Source`, of those that are no floats.
    is_exact : bool
        Whether the decoded weights of the first one are the original's.
    """
    confining = [
        tensor
        for tensor, proves in zip(inputs, confines, strict=True)
        if proves and not (is_exact and tensor is inputs[0])
    ]
    kinds = [tensor.type for tensor in inputs]
    others = [
        (inputs[i], Source(kinds[i], noise=noises[i]))
        for i in unproven(kinds, confines, is_exact=is_exact)
    ]
    return Comparison(inputs[0], is_exact, confining, others)


def unproven(kinds: Sequence[TensorType], confines: Sequence[bool], *, is_exact: bool) -> list[int]:
    """Which inputs are compared with the first by how like it they are; arguments of `compare`."""
    return [
        i
        for i in range(1, len(kinds))
        if not (confines[i] and (confines[0] or is_exact))
        and isinstance(kinds[i], _SAID)
        and typical_error(kinds[i]) < _LARGEST_ERROR
    ]


def compared_of(draft: Draft, models: Sequence[Model]) -> list[StoredTensor]:
    """The tensors that `compare` is given of a draft: what is taken, then the others."""
    inputs = (draft.used[0], *draft.compared) if draft.compared else ()
    return [models[i].tensors[draft.name] for i in inputs]


def confines_of(draft: Draft) -> tuple[bool, ...]:
    """Whether they prove bounds."""
    inputs = (draft.used[0], *draft.compared) if draft.compared else ()
    return tuple(i in draft.confining for i in inputs)


def takes_exact_codes(taken: StoredTensor, *, is_known: bool) -> bool:
    """Whether what is taken are codes whose decoded weights are the original's."""
    return is_known and not isinstance(taken.type, FloatType)


def _error_of(evidence: Evidence, k: int, n_tensors: int) -> NDArray[np.float64]:
    """The square error to expect of an input at most, as its type tells, summed: (n_tensors,)."""
    variance = np.empty(evidence.scale.shape[1], np.float32)
    group_variances(evidence, k, variance)
    is_vector = k >= len(evidence.codes) + len(evidence.interval_values)
    sums = np.zeros((n_tensors, 1))
    add_variance(variance, sums, 0)
    return sums[:, 0] * (_VARYING if is_vector else 1)


def _values(evidence: Evidence, k: int) -> F32Array:
    """What an input says, decoded."""
    out = np.empty(evidence.codes.shape[1], np.float32)
    take_one(evidence, k, out)
    return out


@kernel
def _is_finite_anywhere(lower: F32Array, upper: F32Array) -> bool:
    """Whether any of some bounds, float32 (n,), are there."""
    i = 0
    while i < lower.size and not (np.isfinite(lower[i]) or np.isfinite(upper[i])):
        i += 1
    return i < lower.size


@kernel
def _compare_each(one: F32Array, other: F32Array, found: NDArray[np.float64]) -> None:
    """Fill the first two columns of what is found of tensors of one size (n_tensors, 3)."""
    n = one.size // found.shape[0]
    for i in range(found.shape[0]):
        a, b = one[i * n : (i + 1) * n], other[i * n : (i + 1) * n]
        found[i, 0] = count_unlike(a, b)
        found[i, 1] = square_difference(a, b)


@kernel
def count_unlike(one: F32Array, other: F32Array) -> int:
    """Weights in superblocks of which two inputs, float32 (n,), say something unrelated."""
    found = 0
    for start in range(0, one.size, SUPERBLOCK):
        end = min(start + SUPERBLOCK, one.size)
        aa = bb = ab = 0.0
        for i in range(start, end):
            a, b = np.float64(one[i]), np.float64(other[i])
            aa, bb, ab = aa + a * a, bb + b * b, ab + a * b
        if aa > 0 and bb > 0 and ab < _UNLIKE * np.sqrt(aa * bb):
            found += end - start
    return found

"""Whether inputs contradict each other, tile by tile, also those that are not combined.

Cells that do not meet are a proof. Inputs without cells are compared by what they say of each
superblock: errors of a few bits leave most of the correlation of its weights, while rows that were
swapped, or are another model's, have none. And the square difference of the whole tensor is to be
what the errors of both explain. A tensor times a constant keeps its correlation and may differ by
little: what tells it is the slope of one on the other, in many superblocks.
Where the difference is larger, the columns that an importance matrix cared for tell
(`recover.merge.columns`).

An encoder with an importance matrix may be far off where little matters, but not everywhere. In a
group it cuts off what exceeds its largest code, and a codebook without a zero has nothing for
weights that are smaller than its smallest. So weights at the ends of a group say nothing of the
slope and the difference, and are cut to the other input's ends in correlations. Of types that have
hardly more than ends (ternary ones) the correlation of many superblocks tells, not that of one.

A superblock of zeros has no correlation. Encoders make it of weights that are all but zero, or of a
few that do not matter.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inner, kernel
from recover.containers.model import Model, StoredTensor
from recover.evidence.buffer import Evidence, EvidenceBuffer, Source
from recover.evidence.cells import count_contradictions, intersect_cells
from recover.evidence.intervals import Intervals
from recover.inputs.matching import typical_error
from recover.merge.columns import Rows, row_lengths
from recover.merge.decide import Draft
from recover.merge.likeness import (
    N_LIKENESS,
    Likenesses,
    decoded,
    exactly,
    likeness_of,
    said_of,
    worse,
)
from recover.merge.superblocks import SUPERBLOCK, find_lost
from recover.quants import (
    F32Array,
    FloatType,
    IntervalType,
    ScalarType,
    TensorType,
    VectorType,
)

# In tensors of up to so many weights all are looked at, in larger ones one in eight at least.
_LOOK_AT_ALL = 1 << 20
_LARGEST_STEP = 8
_LARGEST_ERROR = 0.5

# Types whose errors are known, so that they can be compared.
_SAID = ScalarType | IntervalType | VectorType


def step_for(n_weights: int) -> int:
    """One pair of groups in so many is looked at in a tensor."""
    return min(max(n_weights // _LOOK_AT_ALL, 1), _LARGEST_STEP)


def count_conflicts(evidence: Evidence, step: int, n_tensors: int = 1) -> NDArray[np.int64]:
    """Weights on which inputs with bounds contradict each other, estimated from one in `step`.

    Parameters
    ----------
    evidence : Evidence
        Of a tile.
    step : int
        One pair of groups in so many is looked at (see `step_for`); 1 where there are several
        tensors.
    n_tensors : int
        So many tensors of one size lie one behind the other in the tile.

    Returns
    -------
    int64 (n_tensors,)
        Their number among those that are looked at, times `step`.
    """
    counts = np.zeros(n_tensors, np.int64)
    if len(evidence.codes) + len(evidence.interval_values) > 1:
        count_contradictions(evidence, step, counts)
    return step * counts


def count_decoded(
    evidence: Evidence, kinds: Sequence[TensorType], n_tensors: int = 1
) -> NDArray[np.int64]:
    """Weights on which inputs whose decoded weights tell cells contradict others.

    Parameters
    ----------
    evidence : Evidence
        Of a tile.
    kinds : sequence of TensorType
        Types of the inputs.
    n_tensors : int
        So many tensors of one size lie one behind the other in the tile.

    Returns
    -------
    int64 (n_tensors,)
        Besides those on which the cells of the other inputs have no point in common.
    """
    others = [kind for kind in kinds if isinstance(kind, VectorType)]
    if len(kinds) < 2 or all(kind.narrow is None for kind in others):
        return np.zeros(n_tensors, np.int64)
    lower, upper = np.empty((2, evidence.codes.shape[1]), np.float32)
    intersect_cells(evidence, lower, upper)
    is_known = lower > upper
    for values, kind in zip(evidence.values, others, strict=True):
        if kind.narrow is not None:
            kind.narrow(values, lower, upper)
    return _count_each((lower > upper) & ~is_known, n_tensors)


def _count_each(found: NDArray[np.bool_], n_tensors: int) -> NDArray[np.int64]:
    """How many of the weights (n,) of each tensor are what is asked for."""
    return np.add.reduce(found.reshape(n_tensors, -1), 1, dtype=np.int64)


def compare_unproven(evidence: Evidence, rows: Rows) -> Likenesses:
    """Compare the inputs of a tile that have no cells with the first input.

    Parameters
    ----------
    evidence : Evidence
        The first input is the finest scalar or interval one, or the first of the others.
    rows : Rows
        Where its weights lie.
    """
    n_tensors = rows.n_tensors
    n_proven, finest = len(evidence.levels) + len(evidence.interval_lower), evidence.finest
    proves, others = np.empty(n_proven, np.bool_), list[int]()
    do_all_prove, are_some_zero = _look(
        evidence.lower_levels,
        evidence.upper_levels,
        evidence.interval_lower,
        evidence.interval_upper,
        evidence.scale,
        n_tensors,
        proves,
    )
    if not do_all_prove:
        unlike = (k for k in range(n_proven) if not (proves[finest] and proves[k]))
        others = [k for k in unlike if k != finest]
    others += [n_proven + v for v in range(n_proven == 0, len(evidence.likelihood))]
    likeness = np.zeros((n_tensors, N_LIKENESS))
    if are_some_zero:
        likeness[:, 0] = _n_vanished(evidence, n_tensors)
    if not others:
        return likeness
    typical = evidence.likelihood[:, 3] < _LARGEST_ERROR
    first = said_of(evidence, finest, n_tensors)
    for k in others:
        found = likeness_of(
            first,
            said_of(evidence, k, n_tensors),
            rows,
            is_typical=k < n_proven or bool(typical[k - n_proven]),
            largest_lost=evidence.largest_lost,
        )
        likeness = worse(likeness, found)
    return likeness


def _n_vanished(evidence: Evidence, n_tensors: int) -> NDArray[np.int64]:
    """Weights in superblocks of which a scalar input has zeros alone, and another one has not.

    Codes of a scale of zero prove nothing, but no encoder gives it to superblocks of large weights.
    """
    values = (decoded(evidence, k) for k in range(len(evidence.scale)))
    return _n_lost(values, n_tensors, evidence.largest_lost)


def _n_lost(inputs: Iterable[F32Array], n_tensors: int, largest_lost: float) -> NDArray[np.int64]:
    """Weights in superblocks of which one input has zeros, and another one has large weights.

    Of decoded weights (n,) of each input; so many of each tensor, (n_tensors,).
    """
    empty = large = np.zeros((n_tensors, 0), np.bool_)
    for number, values in enumerate(inputs):
        rows = values.reshape(n_tensors, -1)
        n_superblocks = rows.shape[1] // SUPERBLOCK
        whole = np.ascontiguousarray(rows[:, : n_superblocks * SUPERBLOCK]).reshape(-1)
        is_empty, is_large = np.empty((2, n_tensors, n_superblocks), np.bool_)
        find_lost(whole, largest_lost, is_empty.reshape(-1), is_large.reshape(-1))
        empty, large = (is_empty | empty, is_large | large) if number else (is_empty, is_large)
    return SUPERBLOCK * np.count_nonzero(empty & large, axis=1).astype(np.int64)


@inner
def _are_some_zero(scale: F32Array, n_tensors: int) -> bool:
    """Whether all scales of any superblock are 0 in some inputs, but not in all of them."""
    n_inputs, n_groups = scale.shape[0], scale.shape[1] // n_tensors
    found = False
    for i in range(n_tensors):
        first, last = i * n_groups, (i + 1) * n_groups
        for start in range(first, last - 15, 16):
            n_zero = 0
            for k in range(n_inputs):
                g = start
                while g < start + 16 and scale[k, g] == 0:
                    g += 1
                n_zero += g == start + 16
            found = found or 0 < n_zero < n_inputs
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
        self._taken, self._row_lengths = taken, row_lengths(taken)
        self._is_exact = is_exact
        self._others = [(tensor, EvidenceBuffer([source])) for tensor, source in others]
        self._own: EvidenceBuffer | None = None
        if others and not is_exact and isinstance(taken.type, _SAID):
            self._own = EvidenceBuffer([Source(taken.type)])
        self._confining = [each for each in confining if isinstance(each.type, ScalarType)]
        self._largest_lost, self._has_zeros = 0.0, False
        self._intervals = Intervals(self._look_for_zeros)
        self._intervals.look_at(confining)

    def compare(
        self, start: int, end: int, n_tensors: int = 1
    ) -> tuple[NDArray[np.int64], Likenesses]:
        """Of weights `start` to `end` how many an input with bounds contradicts, and the likeness.

        So many tensors of one size lie one behind the other there.
        """
        self._has_zeros = False
        conflicts = self._n_conflicts(start, end, n_tensors)
        likeness = self.likeness(start, end, n_tensors)
        likeness[:, 0] += self._n_vanished(start, end, n_tensors)
        return conflicts, likeness

    def _n_conflicts(self, start: int, end: int, n_tensors: int) -> NDArray[np.int64]:
        lower, upper = self._intervals.bound(start, end)
        if not self._is_exact:
            return _count_each(lower > upper, n_tensors)
        taken = self._taken.read(start, end)
        # The others may have been quantized from these, rounded to BF16.
        slack = np.abs(taken) * np.float32(2.0**-8)
        is_outside = (taken + slack < lower) | (taken - slack > upper)
        return _count_each(is_outside, n_tensors)

    def _look_for_zeros(self, evidence: Evidence) -> None:
        """Whether an input has a scale of zero: such codes bound nothing."""
        self._has_zeros = self._has_zeros or not evidence.scale.all()
        self._largest_lost = evidence.largest_lost

    def _n_vanished(self, start: int, end: int, n_tensors: int) -> NDArray[np.int64]:
        """See the function of that name: also beside what is taken, whatever its type."""
        if not self._has_zeros:
            return np.zeros(n_tensors, np.int64)
        others = [each for each in self._confining if each is not self._taken]
        values = (each.read(start, end) for each in (self._taken, *others))
        return _n_lost(values, n_tensors, self._largest_lost)

    def likeness(self, start: int, end: int, n_tensors: int = 1) -> Likenesses:
        """How inputs without cells compare with what is taken of weights `start` to `end`."""
        likeness = np.zeros((n_tensors, N_LIKENESS))
        if not self._others:
            return likeness
        taken, largest_lost = exactly(self._taken.read(start, end), n_tensors), 0.0
        if self._own is not None:
            own = self._own.read([self._taken], start, end)
            errors = said_of(own, 0, n_tensors)
            taken, largest_lost = errors._replace(values=taken.values), own.largest_lost
        rows = Rows(self._row_lengths, start)
        for other, buffer in self._others:
            evidence = buffer.read([other], start, end)
            found = likeness_of(
                taken,
                said_of(evidence, 0, n_tensors),
                rows,
                is_typical=typical_error(other.type) < _LARGEST_ERROR,
                largest_lost=max(largest_lost, evidence.largest_lost),
            )
            likeness = worse(likeness, found)
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
        if not (confines[i] and (confines[0] or is_exact)) and isinstance(kinds[i], _SAID)
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


@kernel
def _look(
    lower_levels: F32Array,
    upper_levels: F32Array,
    interval_lower: F32Array,
    interval_upper: F32Array,
    scale: F32Array,
    n_tensors: int,
    proves: NDArray[np.bool_],
) -> tuple[bool, bool]:
    """Which scalar and interval inputs (K + I,) prove any bounds; whether all do.

    Of the former the lower and upper levels are given, of the latter the bounds. And whether
    `_are_some_zero` of the scales.
    """
    n = lower_levels.shape[0]
    for k in range(n):
        proves[k] = _is_finite_anywhere(lower_levels[k], upper_levels[k])
    for k in range(n, proves.size):
        proves[k] = _is_finite_anywhere(interval_lower[k - n], interval_upper[k - n])
    return bool(proves.all()), _are_some_zero(scale, n_tensors)


@inner
def _is_finite_anywhere(lower: F32Array, upper: F32Array) -> bool:
    """Whether any of some bounds, float32 (n,), are there."""
    i = 0
    while i < lower.size and not (np.isfinite(lower[i]) or np.isfinite(upper[i])):
        i += 1
    return i < lower.size

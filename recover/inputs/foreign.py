"""How far codes of other encoders than llama.cpp's are off (see `recover.inputs.provenance`).

Such codes confine the weights to no cells that are known: those of GPTQ, for instance, round
weights that were moved to make up for the errors of others. Where nobody says whether they were,
the cells of plain rounding are tried against another input: of plainly rounded weights none
contradicts it, of moved ones half a percent (beside Q2_K) to a tenth (beside Q8_0).

Each code is taken to be off by a normal error. In units of the squared scale its variance is 1/12
if the codes are rounded weights, and more if they are compensated, as GPTQ's are. Beside an input
whose error is known the difference of the two tells. Where that one is much coarser, its own error
hides the other; but its cells have edges, and the weights next to an edge tell how far the other
input goes astray: the larger its errors, the more of its values lie beyond (see `_Crossings`).
"""

from collections.abc import Callable
from typing import cast

import numpy as np

from recover.containers.huggingface.formats._levels import LevelMatrix
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.containers.model import Model, StoredTensor
from recover.evidence.buffer import EvidenceBuffer, Source
from recover.evidence.intervals import Intervals
from recover.inputs.provenance import is_foreign
from recover.inputs.samples import runs
from recover.quants import GROUP, F32Array, IntervalTensor, IntervalType, ScalarType, Stated

TYPICAL_NOISE = 1.45 / 12
"""Of compensated codes, where nothing tells more; in units of the squared scale."""

_N_RUNS, _MANY_RUNS = 16, 64
_FEWEST_TRIED = 8192  # weights; of moved ones at least 30 contradict
_MOST_CONFLICTS = 1e-4
_SMALLEST_NOISE, _LARGEST_NOISE = 1 / 12, 4 / 12
_LIMITS = 1 / 1.4, 4 / 1.4
# Relative deviations: of what is typical, and of the known error of another input.
_TYPICAL_DEVIATION, _KNOWN_DEVIATION = 0.25, 0.05
_SCALAR_DEVIATION, _STATED_DEVIATION = 0.01, 0.02  # the latter of all kinds of weights
# Of what crossed edges tell, but for what is left to chance. Errors are taken to be small beside
# cells: it grows with the square of their deviation, over the width of a cell.
_EDGE_DEVIATION, _PER_SQUARED_SHARE = 0.03, 3.0
_LARGEST_SHARE = 0.25
_NEAR_AN_EDGE = 2.0  # deviations
_MOST_RUNS = 256
_FEWEST_CROSSED = 2000


def measure_noise(tensor: StoredTensor, known: StoredTensor | None) -> float:
    """The mean square error of foreign codes, in units of the squared scale.

    Parameters
    ----------
    tensor : StoredTensor
        Of a scalar type.
    known : StoredTensor, optional
        The same weights from llama.cpp's encoder, whose errors are independent.

    Returns
    -------
    float
        `TYPICAL_NOISE` if nothing is known.
    """
    if known is None:
        return TYPICAL_NOISE

    def read(start: int, end: int) -> tuple[F32Array, float]:
        return tensor.read(start, end), _squared_scales(tensor, start, end)

    noise = _relative(*_compare(read, known), TYPICAL_NOISE)
    return float(np.clip(noise, _SMALLEST_NOISE, _LARGEST_NOISE))


def measure_ratio(tensor: IntervalTensor, known: StoredTensor, *, is_sure: bool = True) -> float:
    """How many times as large the errors of compensated codes are as they are stated to be.

    Parameters
    ----------
    tensor : IntervalTensor
        Which states what is typical of such codes.
    known : StoredTensor
        The same weights from an encoder whose errors are known and independent.
    is_sure : bool
        Whether they are known; if not, they are only typical themselves.

    Returns
    -------
    float
        Between that of rounded weights and four times as much, for codes that state 1.4 times it.
    """

    def read(start: int, end: int) -> tuple[F32Array, float]:
        return _stated_by(tensor, start, end)

    is_scalar = isinstance(known.type, ScalarType)
    deviation = _SCALAR_DEVIATION if is_scalar else _STATED_DEVIATION
    deviation = deviation if is_sure else _TYPICAL_DEVIATION
    ratio, doubt = _with_doubt(*_compare(read, known, _MANY_RUNS), 1.0, deviation)
    if is_sure and is_scalar:
        by_edges, doubt_of_edges = _told_by_edges(tensor, known)
        trust = doubt**2 / (doubt**2 + doubt_of_edges**2)
        ratio += trust * (by_edges - ratio)
    return float(np.clip(ratio, *_LIMITS))


class _Crossings:
    """How often, and how far, values lie beyond the edges of cells that hold the weights.

    Let e be the error of a value and p the density of weights at an edge. Of weights at all
    distances t from it on either side, values lie beyond by the sum of ``p E[max(e - t, 0)]``: that
    is ``p E[e^2]``, whatever the distribution of e, for one edge that is crossed in both directions
    (half of it each). The values themselves tell the density. So the ratio of the mean square error
    to the stated one, V, is

        r = sum of what lies beyond / sum of (V / 2 w) over values next to an edge

    of which those within w are counted. Densities have a cusp at edges, as encoders prefer the
    middles of cells; the counts within w and 2 w tell its height: with ``n(w) = 2 p w + c w^2``
    the first term is ``(4 n(w) - n(2 w)) / 2``.
    """

    def __init__(self) -> None:
        self.beyond = self.near = self.nearer = 0.0
        self.n_crossed = self.n_looked_at = 0
        self.shares = 0.0

    def add(self, value: F32Array, variance: F32Array, lower: F32Array, upper: F32Array) -> None:
        """Look at some weights: what is stated of them, and cells."""
        width = (upper - lower).astype(np.float64)
        spread = variance.astype(np.float64)
        known = (width > 0) & (width < np.inf) & (spread > 0) & (spread < np.inf)
        known &= np.isfinite(value)
        width, spread = width[known], spread[known]
        inside = np.minimum(value[known] - lower[known], upper[known] - value[known])
        inside = inside.astype(np.float64)
        deviation = np.sqrt(spread)
        reach = np.minimum(_NEAR_AN_EDGE * deviation, width / 4)
        off, per_count = np.abs(inside), spread / reach
        self.nearer += float(np.sum(per_count[off < reach]))
        self.near += float(np.sum(per_count[off < 2 * reach]))
        self.beyond -= float(np.sum(inside[inside < 0]))
        self.n_crossed += int(np.count_nonzero(inside < 0))
        self.n_looked_at += width.size
        self.shares += float(np.sum(deviation / width))

    @property
    def share(self) -> float:
        """The mean deviation of the errors, over the width of the cells; infinite if unknown."""
        return self.shares / self.n_looked_at if self.n_looked_at else np.inf

    def ratio(self) -> tuple[float, float]:
        """The ratio to the stated variances, and its deviation; infinite where nothing is told."""
        per_edge = (4 * self.nearer - self.near) / 2
        if not per_edge > 0 or not self.n_crossed or self.share > _LARGEST_SHARE:
            return 1.0, np.inf
        by_chance = 1.4 / self.n_crossed**0.5
        systematic = _EDGE_DEVIATION + _PER_SQUARED_SHARE * self.share**2
        return 4 * self.beyond / per_edge, float(np.hypot(by_chance, systematic))


def _told_by_edges(tensor: IntervalTensor, known: StoredTensor) -> tuple[float, float]:
    """As `measure_ratio`, by the cells of the other input alone; and the deviation of that."""
    intervals, crossings = Intervals(), _Crossings()
    intervals.look_at([known])
    few = runs(known.n_weights, _MANY_RUNS)
    for places in (few, [each for each in runs(known.n_weights, _MOST_RUNS) if each not in few]):
        for start, end in places:
            stated = Stated.of(end - start)
            tensor.intervals(start, end, stated)
            crossings.add(stated.value, stated.variance, *intervals.bound(start, end))
        if crossings.n_crossed >= _FEWEST_CROSSED or crossings.share > _LARGEST_SHARE:
            break
    return crossings.ratio()


def may_be_clipped(tensor: QuantizedTensor) -> bool:
    """Whether codes with cells may be of an encoder that clips the largest weights."""
    matrices = [run.matrix for run in tensor.runs]
    clipping = [each for each in matrices if isinstance(each, LevelMatrix)]
    return tensor.has_cells and any(each.beyond is not None for each in clipping)


def measure_beyond(tensor: IntervalTensor, known: StoredTensor) -> float:
    """How far the weights without a bound are off, beyond what is stated of them.

    An encoder whose scales are too small for the largest weights clips them. How far these are
    beyond the outermost levels nothing in its codes tells, but another input does.

    Parameters
    ----------
    tensor : IntervalTensor
        With bounds that are open where weights may have been clipped.
    known : StoredTensor
        The same weights from an encoder whose errors are known and independent.

    Returns
    -------
    float
        What is missing from the mean square error of these weights, over their mean squared value;
        0 if no more than what is not known of the other input's errors.
    """
    off, stated_squares, other, squares = 0.0, 0.0, 0.0, 0.0
    for start, end in runs(known.n_weights, _MANY_RUNS):
        stated = Stated.of(end - start)
        tensor.intervals(start, end, stated)
        is_open = np.isinf(stated.lower) | np.isinf(stated.upper)
        is_open &= np.isfinite(stated.variance) & np.isfinite(stated.value)
        said, errors = _each_said_by(known, start, end)
        value = stated.value[is_open].astype(np.float64)
        off += float(np.sum(np.square(value - said[is_open])))
        stated_squares += float(np.sum(stated.variance[is_open], dtype=np.float64))
        other += float(np.sum(errors[is_open], dtype=np.float64))
        squares += float(value @ value)
    if not squares:
        return 0.0
    missing = off - stated_squares - other * (1 + 2 * _KNOWN_DEVIATION)
    return max(0.0, missing) / squares


def _compare(
    read: Callable[[int, int], tuple[F32Array, float]], known: StoredTensor, n_runs: int = _N_RUNS
) -> tuple[float, float, float]:
    """Sums over some runs of weights, as `_relative` takes them.

    `read` gives an input's weights and what its errors are compared with, `known` is the other one.
    """
    own = difference = other = 0.0
    for start, end in runs(known.n_weights, n_runs):
        values, amount = read(start, end)
        said, squares = _said_by(known, start, end)
        off = values.astype(np.float64) - said
        off = off[np.isfinite(off)]
        own += amount
        difference += float(off @ off)
        other += squares
    return own, difference, other


def is_rounded_plainly(tried: IntervalTensor, known: StoredTensor) -> bool:
    """Whether the cells of plain rounding are those of codes of which nobody says how they came.

    Parameters
    ----------
    tried : IntervalTensor
        With these cells.
    known : StoredTensor
        The same weights from an encoder whose codes confine them.

    Returns
    -------
    bool
        False if there are too few weights to tell.
    """
    intervals, n_bounded, n_conflicts = Intervals(), 0, 0
    intervals.look_at([tried, known])
    for start, end in runs(known.n_weights, _N_RUNS):
        lower, upper = intervals.bound(start, end)
        n_bounded += int(np.count_nonzero(np.isfinite(lower) & np.isfinite(upper)))
        n_conflicts += int(np.count_nonzero(lower > upper))
    return n_bounded >= _FEWEST_TRIED and n_conflicts <= _MOST_CONFLICTS * n_bounded


def _relative(own: float, difference: float, other: float, typical: float) -> float:
    """As `_with_doubt`, without the deviation."""
    return _with_doubt(own, difference, other, typical)[0]


def _with_doubt(
    own: float,
    difference: float,
    other: float,
    typical: float,
    known_deviation: float = _KNOWN_DEVIATION,
) -> tuple[float, float]:
    """Squared errors of an input over something of it, from sums over its weights.

    Parameters
    ----------
    own : float
        The latter: squared scales, or the squared errors that are expected.
    difference : float
        Squared differences to another input.
    other : float
        The squared errors to expect of that one.
    typical : float
        The result where nothing is known; weighed in where the other one is coarse.
    known_deviation : float
        Of the squared errors of the other one, relative.

    Returns
    -------
    tuple of 2 floats
        These, and their relative deviation.
    """
    if own <= 0:
        return typical, _TYPICAL_DEVIATION
    measured = (difference - other) / own
    deviation = known_deviation * other / own / typical
    trust = _TYPICAL_DEVIATION**2 / (_TYPICAL_DEVIATION**2 + deviation**2)
    doubt = _TYPICAL_DEVIATION * deviation / np.hypot(_TYPICAL_DEVIATION, deviation)
    return trust * measured + (1 - trust) * typical, float(doubt)


def foreign_noise(model: Model, tensor: StoredTensor) -> float | None:
    """What is typical, without a look at other inputs; None of all but foreign codes."""
    return TYPICAL_NOISE if is_foreign(model, tensor) else None


def _said_by(known: StoredTensor, start: int, end: int) -> tuple[F32Array, float]:
    """Decoded weights, and the sum of the squared errors to expect of them."""
    if isinstance(known.type, IntervalType):
        return _stated_by(cast(IntervalTensor, known), start, end)
    assert isinstance(known.type, ScalarType)
    return known.read(start, end), _squared_scales(known, start, end) * known.type.noise


def _each_said_by(known: StoredTensor, start: int, end: int) -> tuple[F32Array, F32Array]:
    """Decoded weights, and the squared error to expect of each."""
    if isinstance(known.type, IntervalType):
        stated = Stated.of(end - start)
        cast(IntervalTensor, known).intervals(start, end, stated)
        return stated.value, stated.variance
    assert isinstance(known.type, ScalarType)
    evidence = EvidenceBuffer([Source(known.type)]).read([known], start, end)
    squares = np.repeat(np.square(evidence.scale[0]), GROUP)[: end - start]
    return known.read(start, end), squares * np.float32(known.type.noise)


def _stated_by(tensor: IntervalTensor, start: int, end: int) -> tuple[F32Array, float]:
    """The same of a tensor that states intervals."""
    stated = Stated.of(end - start)
    tensor.intervals(start, end, stated)
    known = stated.variance[np.isfinite(stated.variance)]
    return stated.value, float(np.sum(known, dtype=np.float64))


def _squared_scales(tensor: StoredTensor, start: int, end: int) -> float:
    """The squared scales of a range of weights, summed over the weights."""
    evidence = EvidenceBuffer([Source(tensor.type)]).read([tensor], start, end)
    scale = evidence.scale[0].astype(np.float64)
    return GROUP * float(scale @ scale)

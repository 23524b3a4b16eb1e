"""The middle of the intersection of all cells.

Cells at the ends of a grid are open, and few weights lie far out in them. Where another input
bounds them, they are taken to reach 0.8 steps beyond their value: the middle would be far off
otherwise.

Consistent reconstruction (Goyal, Vetterli, Thao, IEEE Trans. Inf. Theory 44(1), 1998): no other
point has a smaller worst-case error. Where the intersection is open on a side, the linear estimate
is moved into it; where it is empty, the finest input is taken alone. Next to inputs that
have no cells, of which the middle knows nothing, it is the linear estimate throughout, moved into
the intersection if there is one.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import any_lane
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import gather, load, load_bytes, splat, store, where
from recover.estimators._combine import combine, take_finest
from recover.estimators._expected import expect
from recover.estimators._request import Request, fill_deviation
from recover.estimators._variances import add_variance, group_variances
from recover.estimators.tally import CONFLICTS, VARIANCE
from recover.evidence.buffer import Evidence
from recover.evidence.cells import intersect_cells
from recover.quants import GROUP, F32Array, U8Array

_REACH = np.float32(0.8)

SUMMARY = "the middle of the intersection of all cells"
SEES_CONFLICTS = True


def estimate_each(
    evidence: Evidence, out: F32Array, tallies: NDArray[np.float64], request: Request
) -> None:
    """See `recover.estimators`."""
    variance = np.empty(out.size // GROUP, np.float32)
    if len(evidence.interval_values):
        sums = np.zeros_like(tallies)
        _estimate(evidence, out, variance, sums, request)
        tallies[:, CONFLICTS] += sums[:, CONFLICTS]
        expect(evidence, out, variance, tallies, request)
    else:
        _estimate(evidence, out, variance, tallies, request)


def _estimate(
    evidence: Evidence,
    out: F32Array,
    variance: F32Array,
    tallies: NDArray[np.float64],
    request: Request,
) -> None:
    """As `estimate_each`, with errors by how wide the cells are; fills `variance` (n / 16,)."""
    combine(evidence, out, variance, tallies)
    fill_deviation(request, variance)
    lower, upper = np.empty_like(out), np.empty_like(out)
    intersect_cells(evidence, lower, upper)
    close_ends(evidence, lower, upper)
    if _some_have_no_cells(evidence):
        fits = lower <= upper
        np.clip(out, lower, upper, out=out, where=fits)
        add_variance(variance, tallies, VARIANCE)
        tallies[:, CONFLICTS] += np.count_nonzero(~fits.reshape(len(tallies), -1), axis=1)
        return
    if _move_into_cells(lower, upper, variance, _relative_variances(evidence), out, tallies):
        first, own = np.empty_like(out), np.empty_like(variance)
        take_finest(evidence, first)
        group_variances(evidence, evidence.finest, own)
        _resolve_conflicts(lower, upper, own, first, out, tallies)


def close_ends(evidence: Evidence, lower: F32Array, upper: F32Array) -> None:
    """Narrow closed intersections (n,) where an input has a cell that is open on one side.

    Such a cell is taken to end `_REACH` steps beyond its value; a step is twice as far as its edge
    is. Where that would leave nothing of an intersection, it stays as it is.
    """
    n_groups = evidence.scale.shape[1]
    for k in range(len(evidence.codes)):
        tables = evidence.levels[k], evidence.lower_levels[k], evidence.upper_levels[k]
        scale, offset = evidence.scale[k, :n_groups], evidence.offset[k, :n_groups]
        _close_codes(evidence.codes[k], scale, offset, *tables, lower, upper)
    for k in range(len(evidence.interval_values)):
        stated = evidence.interval_values, evidence.interval_lower, evidence.interval_upper
        value, low, high = (each[k] for each in stated)
        variance, per_noise = evidence.interval_variance[k], 1 / evidence.interval_noise[k]
        _close_intervals(value, low, high, variance, np.float32(per_noise), lower, upper)


@inner
def _close(value: Any, reach: Any, is_open: Any, lower: Any, upper: Any) -> Any:
    """Bounds (lower, upper) with soft ends; `is_open` says which sides are."""
    low = max(lower, value - reach) if is_open[0] else lower
    high = min(upper, value + reach) if is_open[1] else upper
    if upper - lower < np.inf and low < high:
        return low, high
    return lower, upper


@kernel
def _close_codes(
    codes: U8Array,
    scale: F32Array,
    offset: F32Array,
    levels: F32Array,
    lower_levels: F32Array,
    upper_levels: F32Array,
    lower: F32Array,
    upper: F32Array,
) -> None:
    """See `close_ends`; a step of a scalar input is ``2 |s (edge - level)|``."""
    for g in range(scale.size):
        if not np.isfinite(offset[g]) or scale[g] == 0:
            continue
        for i in range(16 * g, 16 * g + 16):
            ends = lower_levels[codes[i]] == -np.inf, upper_levels[codes[i]] == np.inf
            if ends[0] != ends[1]:
                is_open = ends if scale[g] > 0 else (ends[1], ends[0])
                value = scale[g] * levels[codes[i]] + offset[g]
                edge = upper_levels[codes[i]] if ends[0] else lower_levels[codes[i]]
                reach = _REACH * abs(np.float32(2) * scale[g] * (edge - levels[codes[i]]))
                lower[i], upper[i] = _close(value, reach, is_open, lower[i], upper[i])


@kernel
def _close_intervals(
    value: F32Array,
    own_lower: F32Array,
    own_upper: F32Array,
    variance: F32Array,
    per_noise: np.float32,
    lower: F32Array,
    upper: F32Array,
) -> None:
    """See `close_ends`; a step of an interval input is ``sqrt(variance / noise)``."""
    for i in range(value.size):
        step = np.sqrt(variance[i] * per_noise)
        is_open = own_lower[i] == -np.inf, own_upper[i] == np.inf
        if is_open[0] != is_open[1]:
            lower[i], upper[i] = _close(value[i], _REACH * step, is_open, lower[i], upper[i])


def _some_have_no_cells(evidence: Evidence) -> bool:
    open_ended = np.isneginf(evidence.lower_levels).all(axis=1)
    bounds = zip(evidence.interval_lower, evidence.interval_upper, strict=True)
    unbounded = (np.isneginf(low).all() and np.isposinf(high).all() for low, high in bounds)
    return evidence.values.shape[0] > 0 or bool(open_ended.any()) or any(unbounded)


def _relative_variances(evidence: Evidence) -> tuple[U8Array, F32Array]:
    """Expected mean square error over squared width of an interval: codes (n,), and by code (256,).

    Errors are not uniform in a cell, since the search for the scale draws them to its middle;
    within an intersection they are taken to be distributed as in the finest input's own cells.
    Where these are open, the error is taken to be uniform. The steps of an interval input are its
    cells.
    """
    if evidence.finest >= len(evidence.codes):
        noise = evidence.interval_noise[evidence.finest - len(evidence.codes)]
        return np.zeros(evidence.codes.shape[1], np.uint8), np.full(256, noise, np.float32)
    width = evidence.upper_levels[0] - evidence.lower_levels[0]
    closed = np.isfinite(width) & (width > 0)
    relative = np.full(256, 1 / 12, np.float32)
    np.divide(evidence.noise[0], width * width, out=relative, where=closed)
    return evidence.codes[0], relative


@kernel
def _move_into_cells(
    lower: F32Array,
    upper: F32Array,
    variance: F32Array,
    cells: tuple[U8Array, F32Array],
    out: F32Array,
    tallies: NDArray[np.float64],
) -> bool:
    """Replace linear estimates by midpoints, ``(low + high) / 2``; whether there are any conflicts.

    The variance to expect is the squared width of the interval, times the noise of the finest input
    over the squared width of its cell; where an end is open, that of the linear estimate (n / 16,).
    Variances and conflicts of tensors of one size are added to their tallies.
    """
    codes, relative_variance = cells
    lanes = np.empty(16, np.float32)
    n_groups, some_contradict = variance.size // tallies.shape[0], False
    for tensor in range(tallies.shape[0]):
        n_conflicts = 0
        expected = splat(np.float32(0))
        for g in range(tensor * n_groups, (tensor + 1) * n_groups):
            low, high = load(lower, 16 * g), load(upper, 16 * g)
            linear = load(out, 16 * g)
            width = high - low
            closed = width < np.float32(np.inf)
            clipped = where(linear < low, low, where(linear > high, high, linear))
            middle = (low + high) * np.float32(0.5)
            store(out, 16 * g, where(closed, middle, clipped))
            relative = gather(relative_variance, load_bytes(codes, 16 * g))
            square = width * width * relative
            expected = expected + where(closed, square, splat(variance[g]))
            if any_lane(width < np.float32(0)):
                for i in range(16 * g, 16 * g + 16):
                    n_conflicts += lower[i] > upper[i]
        store(lanes, 0, expected)
        tallies[tensor, VARIANCE] += lanes.sum()
        tallies[tensor, CONFLICTS] += n_conflicts
        some_contradict = some_contradict or n_conflicts > 0
    return some_contradict


@kernel
def _resolve_conflicts(
    lower: F32Array,
    upper: F32Array,
    variance: F32Array,
    first: F32Array,
    out: F32Array,
    tallies: NDArray[np.float64],
) -> None:
    """Take the first input where the inputs contradict each other, and add the variance of that."""
    n = out.size // tallies.shape[0]
    for each in range(tallies.shape[0]):
        added = 0.0
        for i in range(each * n, (each + 1) * n):
            if lower[i] > upper[i] and np.isfinite(first[i]):
                out[i] = first[i]
                added += variance[i // 16]
        tallies[each, VARIANCE] += added

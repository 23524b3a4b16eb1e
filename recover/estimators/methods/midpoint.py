"""The middle of the intersection of all cells.

Consistent reconstruction (Goyal, Vetterli, Thao, IEEE Trans. Inf. Theory 44(1), 1998): no other
point has a smaller worst-case error. Where the intersection is open on a side, the linear estimate
is moved into it; where it is empty, the finest input is taken alone. Next to inputs that
have no cells, of which the middle knows nothing, it is the linear estimate throughout, moved into
the intersection if there is one.
"""

import numpy as np

from recover._compiled.jit import kernel
from recover._compiled.lanes import any_lane, gather, load, load_bytes, splat, store, where
from recover.estimators._combine import combine, group_variances, sum_variance, take_finest
from recover.estimators._request import Request, fill_deviation
from recover.estimators.tally import Tally
from recover.evidence.buffer import Evidence
from recover.evidence.cells import intersect_cells
from recover.quants import GROUP, F32Array, U8Array

SUMMARY = "the middle of the intersection of all cells"
SEES_CONFLICTS = True


def estimate(evidence: Evidence, out: F32Array, tally: Tally, request: Request) -> None:
    """See `recover.estimators`."""
    variance = np.empty(out.size // GROUP, np.float32)
    combine(evidence, out, variance, tally.array)
    fill_deviation(request, variance)
    lower, upper = np.empty_like(out), np.empty_like(out)
    intersect_cells(evidence, lower, upper)
    if _some_have_no_cells(evidence):
        fits = lower <= upper
        np.clip(out, lower, upper, out=out, where=fits)
        tally.variance += sum_variance(variance)
        tally.n_conflicts += out.size - np.count_nonzero(fits)
        return
    expected, n_conflicts = _move_into_cells(
        lower, upper, variance, *_relative_variances(evidence), out
    )
    if n_conflicts:
        first = np.empty_like(out)
        take_finest(evidence, first)
        group_variances(evidence, evidence.finest, variance)
        expected += _resolve_conflicts(lower, upper, variance, first, out)
    tally.variance += expected
    tally.n_conflicts += n_conflicts


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
    codes: U8Array,
    relative_variance: F32Array,
    out: F32Array,
) -> tuple[float, int]:
    """Replace linear estimates by midpoints; the variance to expect, summed, and the conflicts."""
    n_conflicts = 0
    expected = splat(np.float32(0))
    for g in range(variance.size):
        low, high = load(lower, 16 * g), load(upper, 16 * g)
        linear = load(out, 16 * g)
        width = high - low
        closed = width < np.float32(np.inf)
        clipped = where(linear < low, low, where(linear > high, high, linear))
        store(out, 16 * g, where(closed, (low + high) * np.float32(0.5), clipped))
        relative = gather(relative_variance, load_bytes(codes, 16 * g))
        expected = expected + where(closed, width * width * relative, variance[g])
        if any_lane(width < np.float32(0)):
            for i in range(16 * g, 16 * g + 16):
                n_conflicts += lower[i] > upper[i]
    lanes = np.empty(16, np.float32)
    store(lanes, 0, expected)
    return lanes.sum(), n_conflicts


@kernel
def _resolve_conflicts(
    lower: F32Array, upper: F32Array, variance: F32Array, first: F32Array, out: F32Array
) -> float:
    """Take the first input where the inputs contradict each other; the variance this adds."""
    added = 0.0
    for i in range(out.size):
        if lower[i] > upper[i] and np.isfinite(first[i]):
            out[i] = first[i]
            added += variance[i // 16]
    return added

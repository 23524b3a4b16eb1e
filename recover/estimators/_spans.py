"""What the inputs that state intervals add to what is known of a superblock: see `Spans`.

Values, bounds and steps differ from weight to weight. Where no scalar input can be used, these
inputs also give what the kernels reckon from: a unit, a center and the size of the weights.
"""

from typing import Any

import numpy as np

from recover._compiled.across import add_up, any_lane
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import fused, larger, load, smaller, splat, sqrt, store, where
from recover.estimators._product_tables import CENTER_UNIT, CURVATURE_UNIT, Scalars, Spans
from recover.estimators._superblock import OUTLIER_ERROR, Superblock, center_value, first_value
from recover.quants import F32Array

_ZERO = np.float32(0)
_ONE = np.float32(1)
_FAR = np.float32(np.inf)
_HALF = np.float32(0.5)
_LEAST_SHARE = np.float32(0.02)
"""Of the variance of weights between bounds, over that of uniform ones."""


@bare_inlined
def has_scalar(scalars: Scalars, block: Superblock, i: int) -> bool:
    """Whether a scalar input can be used in group `i`."""
    found = False
    for k in range(scalars.noise.size):
        found = found or block.inverse[16 * k + i] != _ZERO
    return found


@bare_inlined
def _is_usable(value: Any, variance: Any) -> Any:
    """Whether something is known of weights."""
    return (abs(value) < _FAR) & (variance > _ZERO) & (variance < _FAR)


@bare_inner
def begin_with_spans(
    spans: Spans, scalars: Scalars, block: Superblock, start: int, noise: Any
) -> Any:
    """Begin with the groups in which no scalar input can be used.

    Returns the sums of their squares, and `noise` (16 lanes) with what is typical of their errors.
    """
    total, n = splat(_ZERO), spans.values.size // spans.noise.size
    store(block.each, 0, noise)
    for i in range(16):
        is_open = not has_scalar(scalars, block, i)
        for j in range(spans.noise.size):
            at = j * n + 16 * (start + i)
            value, variance = load(spans.values, at), load(spans.variance, at)
            error = add_up(variance) / np.float32(16)
            unit = np.sqrt(error / spans.noise[j])
            usable = _ONE / unit < _FAR and not any_lane(~_is_usable(value, variance))
            if is_open and usable:
                is_open = False
                block.unit[i], block.per_unit[i], block.scale[i] = unit, _ONE / unit, unit
                block.each[i] = error
                store(block.center, 16 * i, value * (CENTER_UNIT / unit))
                total = fused(value, value, total)
    return total, load(block.each, 0)


@bare_inner
def accumulate_spans(spans: Spans, block: Superblock, start: int) -> None:
    """Add what the interval inputs say of a superblock.

    As a scalar input with the step as the scale: ``log g(u) = c u + d u^2`` with ``u = (x - value)
    / step`` and ``step = sqrt(variance / noise)``. Bounds that are sure to hold come first. What is
    only likely narrows them where it leaves something. The density of outliers (see
    `Superblock.limit`) is a narrow normal one.
    """
    n = spans.values.size // spans.noise.size
    for j in range(1, spans.noise.size):
        for i in range(16):
            at = j * n + 16 * (start + i)
            _confine(block, 16 * i, load(spans.lower, at), load(spans.upper, at))
    for j in range(spans.noise.size):
        per_noise = _ONE / spans.noise[j]
        close = -CURVATURE_UNIT * per_noise / OUTLIER_ERROR
        for i in range(16):
            at = j * n + 16 * (start + i)
            value, variance = load(spans.values, at), load(spans.variance, at)
            step = sqrt(variance * per_noise)
            ratio = splat(block.unit[i]) / step
            usable = _is_usable(value, variance) & (abs(ratio) < _FAR)
            gradient, curvature, below, above = _density_of(spans, j, at)
            below, above, peak = fused(below, step, value), fused(above, step, value), value
            lower, upper = load(spans.lower, at), load(spans.upper, at)
            if j == 0:
                _confine(block, 16 * i, lower, upper)
            if spans.fitted[j] > _ZERO:
                if spans.peaked[j]:
                    fitted = _fit_peak(value, lower, upper, variance)
                else:
                    peak, fitted = _fit(value, lower, upper, variance)
                curvature = fused(fitted, spans.fitted[j] * (step * step), curvature)
            elif spans.fitted[j] < _ZERO:
                middle, half = _core(value, lower, upper, variance)
                below, above = larger(below, middle - half), smaller(above, middle + half)
            look_within(block, 16 * i, where(usable, below, -_FAR), where(usable, above, _FAR))
            center = center_value(block, i)
            outlier = center * center > block.limit[i]
            gradient, curvature = where(outlier, _ZERO, gradient), where(outlier, close, curvature)
            peak = where(outlier, value, peak)
            gradient = fused(curvature, (center - peak) / step, gradient) * (ratio * CENTER_UNIT)
            gradient = where(usable, gradient, _ZERO)
            curvature = where(usable, curvature * ratio * ratio, _ZERO)
            store(block.gradient, 16 * i, load(block.gradient, 16 * i) + gradient)
            store(block.curvature, 16 * i, load(block.curvature, 16 * i) + curvature)


@bare_inlined
def _core(value: Any, lower: Any, upper: Any, variance: Any) -> Any:
    """The middle of two bounds, and the reach of a uniform density around it.

    Its mean square distance from the value is the `variance`. The reach is infinite where a bound
    is missing, or the bounds tell as much as the variance.
    """
    half, middle = (upper - lower) * _HALF, (upper + lower) * _HALF
    off = middle - value
    square = np.float32(3) * (variance - off * off)
    narrow = (square > _ZERO) & (square < half * half) & (half < _FAR)
    return where(narrow, middle, value), where(narrow, sqrt(square), splat(_FAR))


@bare_inlined
def _fit(value: Any, lower: Any, upper: Any, variance: Any) -> Any:
    """The middle of two bounds, and the curvature of a normal density there.

    As `_core`, with a normal density between the bounds.
    """
    half = (upper - lower) * _HALF
    middle, reach = _core(value, lower, upper, variance)
    curvature = _curvature(reach * reach, half * half)
    return middle, where(reach < _FAR, curvature, _ZERO)


@bare_inlined
def _fit_peak(value: Any, lower: Any, upper: Any, variance: Any) -> Any:
    """As `_fit`, of a density with its peak at the value, wherever that lies between the bounds.

    If it were uniform the mean square distance would be a third of ``half**2 + 3 off**2``.
    """
    half, off = (upper - lower) * _HALF, (upper + lower) * _HALF - value
    whole, square = fused(off * off, np.float32(3), half * half), np.float32(3) * variance
    narrow = (square < whole) & (whole < _FAR)
    return where(narrow, _curvature(square, whole), _ZERO)


@bare_inlined
def _curvature(square: Any, whole: Any) -> Any:
    """That of a normal density cut at h, in `CURVATURE_UNIT`.

    Let v be its variance over that of a uniform one, ``square / whole`` with ``whole = h**2``: it
    is ``-(1 - v) (3 + 4.5 v) / v / h**2``, within 3%.
    """
    share = larger(square / whole, splat(_LEAST_SHARE))
    curvature = (share - _ONE) * fused(share, np.float32(4.5), splat(np.float32(3)))
    return curvature * CURVATURE_UNIT / (share * whole)


@bare_inlined
def _density_of(spans: Spans, j: int, at: int) -> Any:
    """What `Spans.densities` has of a group: derivatives and reaches."""
    no_lower, no_upper = load(spans.lower, at) == -_FAR, load(spans.upper, at) == _FAR
    return (
        _choose(spans.densities, 16 * j, no_lower, no_upper),
        _choose(spans.densities, 16 * j + 1, no_lower, no_upper),
        _choose(spans.densities, 16 * j + 2, no_lower, no_upper),
        _choose(spans.densities, 16 * j + 3, no_lower, no_upper),
    )


@bare_inlined
def _choose(table: F32Array, at: int, no_lower: Any, no_upper: Any) -> Any:
    """The numbers of one column, by which bounds there are."""
    chosen = where(no_lower, splat(table[at + 4]), splat(table[at]))
    chosen = where(no_upper, splat(table[at + 8]), chosen)
    return where(no_lower & no_upper, splat(table[at + 12]), chosen)


@bare_inlined
def _confine(block: Superblock, at: int, below: Any, above: Any) -> None:
    """Narrow the bounds of a group; NaN says nothing."""
    low, high = load(block.low, at), load(block.high, at)
    store(block.low, at, where(below > low, below, low))
    store(block.high, at, where(above < high, above, high))


@bare_inlined
def look_within(block: Superblock, at: int, below: Any, above: Any) -> None:
    """Narrow the bounds of a group by what is likely, where that leaves something."""
    low, high = load(block.low, at), load(block.high, at)
    meets = ~(below > high) & ~(above < low)
    store(block.low, at, where(meets & (below > low), below, low))
    store(block.high, at, where(meets & (above < high), above, high))


@bare_inlined
def prove_spans(spans: Spans, at: int, low: Any, high: Any) -> Any:
    """Intersect bounds of the group that begins `at` with those that are stated."""
    for j in range(spans.noise.size):
        place = j * (spans.values.size // spans.noise.size) + at
        proven = load(spans.lower, place)
        low = where(proven > low, proven, low)
        proven = load(spans.upper, place)
        high = where(proven < high, proven, high)
    return low, high


@bare_inlined
def finest_value(scalars: Scalars, spans: Spans, g: int, n: int) -> Any:
    """What the finest input that is not broken says of a group."""
    value = first_value(scalars, g, n)
    for j in range(spans.noise.size - 1 if spans.lead else -1, -1, -1):
        said = load(spans.values, j * n + 16 * g)
        value = where(abs(said) < _FAR, said, value)
    return value


@bare_inlined
def add_errors(
    spans: Spans, row: int, at: int, estimate: Any, error: Any, errors: F32Array
) -> None:
    """Add to sums of square errors (16 each, from `row` on) those of the interval inputs.

    ``(estimate - value)^2 + error`` each.
    """
    n = spans.values.size // spans.noise.size
    for j in range(spans.noise.size):
        off = estimate - load(spans.values, j * n + at)
        place = 16 * (row + j)
        known = where(abs(off) < _FAR, off * off + error, _ZERO)
        store(errors, place, load(errors, place) + known)

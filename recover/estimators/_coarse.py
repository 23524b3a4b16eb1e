"""Sub-blocks with a small integer scale: what their codes say is less sharp.

The scale of a sub-block is an integer l times the scale of the superblock, up to
`ScalarType.scale_steps`. The encoder rounds it before it chooses the codes, so that the scale that
its search had found is off by up to 1 / (2 l). With levels from -L to L, in steps at the ends, the
largest are off by up to ``r / 2``, ``r = L / l``, evenly. Where l is small, beside sub-blocks with
outliers, weights are clipped that lie far beyond the end codes: the places that an end code stands
for, with a variance of about 1 / 6, get one of ``r^2 / 12`` more, and reach ``sqrt(1 + r^2 / 2)``
times as far from its inner edge. And the places in the cells that the search had made more likely
are moved evenly over ``z r / 2`` on both sides, z from -1 to 1: of a wave as long as a cell about
``exp(-2 pi^2 (z r)^2 / 12)`` is left, in the mean about ``1 / (1 + pi^2 r^2 / 18)``. The densities
were drawn where l has its usual size; both factors are 1 there.

The scale of the superblock is a float16. Where it is only n units of 2^-24 it was rounded by up to
``1 / (2 n)``, and the square of ``L / n`` is added to that of r. How far end codes reach it changes
only by what is beyond 9: scales that are a little off are as often too large as too small.
"""

from typing import Any

import numpy as np

from recover._compiled.across import any_lane, largest_lane
from recover._compiled.doubles import from_bits
from recover._compiled.jit import bare_inlined
from recover._compiled.lanes import (
    bits,
    fused,
    larger,
    load,
    smaller,
    splat,
    spread,
    sqrt,
    store,
    where,
)
from recover.estimators._product_tables import (
    COARSE,
    CURVATURE,
    FAR_END,
    FAR_OFF,
    GRADIENT,
    MINIMA,
    N_COLUMNS,
    NEAR,
    NEAR_END,
    PER_USUAL,
    SHIFT,
    STEPS,
    USUAL_SHIFT,
    WIDE_MINIMA,
    Scalars,
)
from recover.estimators._rounded_scales import UNIT
from recover.quants import F32Array

_ZERO, _HALF, _ONE, _THREE = np.float32(0), np.float32(0.5), np.float32(1), np.float32(3)
_SHIFT = np.float32(SHIFT)
_UNIT, _TINY = np.float32(UNIT), np.float32(1e-30)
_FAR_ROUNDED = np.float32(9)

LOW_REACH, HIGH_REACH, LOW_GRADIENT, HIGH_GRADIENT = range(0, 4 * 16, 16)
LOW_CURVATURE, HIGH_CURVATURE, SHARPNESS = range(4 * 16, 7 * 16, 16)
LOW_CODE, HIGH_CODE = range(7 * 16, 9 * 16, 16)
N_ENDS = 9 * 16
"""Of a scalar input, for each group: how far its end codes reach, derivatives of their densities,
what is left of those of interior codes, and the end codes, as integers. The low one is that of the
smallest weights: the highest code where the scale is negative."""


@bare_inlined
def step_of_minima(scalars: Scalars, k: int, minima: Any) -> np.float32:
    """What minima of a superblock (16,) are multiples of: the largest has the largest integer."""
    row = N_COLUMNS * k
    steps = max(scalars.rows[row + STEPS], _ONE)
    return largest_lane(minima) * scalars.rows[row + MINIMA] / steps


@bare_inlined
def describe_ends(
    scalars: Scalars,
    k: int,
    scale: Any,
    offset: Any,
    inverse: Any,
    lowest: np.float32,
    highest: np.float32,
    ends: F32Array,
) -> None:
    """Fill `ends` (K * 9 * 16,) for input `k`, of whose groups the scales and inverses are given.

    The reaches are counted from `lowest` and `highest`.
    """
    rows, row, at = scalars.rows, N_COLUMNS * k, N_ENDS * k
    coarse, inner_low, inner_high = rows[row + COARSE], rows[row + FAR_OFF], rows[row + NEAR]
    usable = where(inverse == _ZERO, splat(_ZERO), abs(scale))
    # Rounded to l = 1 were many that are less: no more is assumed of these than of l = 2.
    steps = rows[row + STEPS]
    limit = splat(steps * _HALF)
    largest = largest_lane(usable)
    r = coarse * smaller(abs(inverse) * largest, limit)
    rounded = coarse * min(steps * steps * _UNIT / max(largest, _TINY), steps * _HALF)
    square = r * r + rounded * rounded
    far = max(rounded * rounded - _FAR_ROUNDED, _ZERO)
    minima = where(inverse == _ZERO, splat(_ZERO), abs(offset))
    p = smaller(abs(inverse) * step_of_minima(scalars, k, minima), coarse * limit)
    more = larger(p * p - rows[row + WIDE_MINIMA], splat(_ZERO))
    stretch = sqrt((_ONE + _HALF * (r * r + far + more)) * rows[row + PER_USUAL])
    narrow = splat(_ONE) / stretch
    sharp = splat(rows[row + USUAL_SHIFT]) / (_ONE + _SHIFT * (square + _THREE * more))
    store(ends, at + SHARPNESS, sharp)
    reach = (rows[row + NEAR_END] - inner_low) * stretch + inner_low
    store(ends, at + LOW_REACH, lowest + reach)
    reach = (rows[row + FAR_END] - inner_high) * stretch + inner_high
    store(ends, at + HIGH_REACH, highest + reach)
    # Of log g(u) = c w + d w^2 with w = (u - e) / F + e for the inner edge e.
    low, high = rows[row + CURVATURE + 3], rows[row + CURVATURE + 4]
    shift = splat(_ONE) - narrow
    store(ends, at + LOW_CURVATURE, low * narrow * narrow)
    store(ends, at + HIGH_CURVATURE, high * narrow * narrow)
    gradient = fused(shift, splat(low * inner_low), splat(rows[row + GRADIENT + 2]))
    store(ends, at + LOW_GRADIENT, gradient * narrow)
    gradient = fused(shift, splat(high * inner_high), splat(rows[row + GRADIENT + 3]))
    store(ends, at + HIGH_GRADIENT, gradient * narrow)
    none = bits(splat(_ZERO))
    store(ends, at + LOW_CODE, from_bits(none + scalars.ends[2 * k]))
    store(ends, at + HIGH_CODE, from_bits(none + scalars.ends[2 * k + 1]))
    _turn_round(ends, at, scale < _ZERO)


@bare_inlined
def _turn_round(ends: F32Array, at: int, negative: Any) -> None:
    """Exchange the ends of groups with a negative scale."""
    if any_lane(negative):
        exchange(ends, at + LOW_REACH, at + HIGH_REACH, negative)
        exchange(ends, at + LOW_GRADIENT, at + HIGH_GRADIENT, negative)
        exchange(ends, at + LOW_CURVATURE, at + HIGH_CURVATURE, negative)
        exchange(ends, at + LOW_CODE, at + HIGH_CODE, negative)


@bare_inlined
def has_end(ends: F32Array, at: int, codes: Any) -> Any:
    """Which codes of a group are the low end code, and which the high one."""
    return codes == bits(spread(ends, at + LOW_CODE)), codes == bits(spread(ends, at + HIGH_CODE))


@bare_inlined
def exchange(values: F32Array, at: int, other: int, mask: Any) -> None:
    """Exchange what is at two places (16,) where the mask says so."""
    one, two = load(values, at), load(values, other)
    store(values, at, where(mask, two, one))
    store(values, other, where(mask, one, two))

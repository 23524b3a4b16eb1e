"""Sub-blocks whose integer scale is 0: their weights are small beside the superblock's scale.

The value of such a weight is the offset, whatever its code. How far weights are from that was
measured type by type (`recover.quants.base.ScalarType.lost_spread`): their density is normal. Of
some types it is proven how far they are at most. The offset of types with minima was rounded as
well, by more than most of these weights: they are asked only where no input has a scale.

Such an offset o is the lowest weight, or 0. The scale that was found is at most d / 2, so that the
others are at most n d / 2 above it, with n steps between the end codes. Where 0 is less than n d /
4 from o the weights may lie on both sides of it, and their density is around 0. Otherwise they are
of one sign, and it is around ``o + n d / 4``.
"""

import math
from typing import Any

import numpy as np

from recover._compiled.across import any_lane
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import larger, load, smaller, splat, store, where
from recover.estimators._coarse import step_of_minima
from recover.estimators._product_tables import (
    CENTER_UNIT,
    CURVATURE_UNIT,
    MINIMA,
    N_COLUMNS,
    Scalars,
)
from recover.estimators._spans import has_scalar, look_within
from recover.estimators._superblock import Superblock, center_value

_ZERO, _ONE = np.float32(0), np.float32(1)
_FAR = np.float32(np.inf)
_BESIDE_MINIMA, _QUARTER = np.float32(0.4), np.float32(0.25)
_DEVIATIONS = np.float32(8)  # how far the density reaches


@bare_inlined
def prove_lost(scalars: Scalars, k: int, g: int, low: Any, high: Any) -> Any:
    """Intersect bounds of a group with what the scale 0 of input `k` proves; `g` as in `scale`."""
    size, offset = -scalars.scale_error[g], scalars.offset[g]
    if size > _ZERO and scalars.lost[3 * k + 1] < _FAR:
        reach = size * scalars.lost[3 * k + 1] + scalars.offset_error[g]
        low, high = larger(low, splat(offset - reach)), smaller(high, splat(offset + reach))
    return low, high


@bare_inlined
def _variance_of_offsets(scalars: Scalars, k: int, first: int) -> np.float32:
    """Of what rounding to multiples of dmin took off them."""
    offsets = abs(load(scalars.offset, first))
    dmin = step_of_minima(scalars, k, where(offsets < _FAR, offsets, splat(_ZERO)))
    return dmin * dmin * np.float32(1 / 12)


@bare_inlined
def _beside_minimum(offset: np.float32, reach: np.float32) -> np.float32:
    """Where the middle of weights is of which the lowest is `offset` and the others are near it.

    It is 0 if that is possible: they are at most twice the `reach` above.
    """
    return min(offset + reach, _ZERO) if offset < _ZERO else max(offset - reach, _ZERO)


@bare_inner
def accumulate_lost(scalars: Scalars, block: Superblock, start: int) -> None:
    """Add what scales of 0 say of a superblock: ``log g(x) = -(x - o)^2 / (2 (spread d)^2)``."""
    n_groups = scalars.codes.size // scalars.noise.size // 16
    for k in range(scalars.noise.size):
        first, spread = k * n_groups + start, scalars.lost[3 * k]
        if not (spread > _ZERO and any_lane(load(scalars.scale_error, first) < _ZERO)):
            continue
        rounded = _variance_of_offsets(scalars, k, first)
        minima = scalars.rows[N_COLUMNS * k + MINIMA]
        for i in range(16):
            offset, size = scalars.offset[first + i], -scalars.scale_error[first + i] * spread
            center = offset
            if minima > _ZERO and size > _ZERO:
                n_steps = np.float32(scalars.ends[2 * k + 1] - scalars.ends[2 * k])
                center = _beside_minimum(offset, n_steps * size / spread * _QUARTER)
                below = offset - center
                square = (below * below + rounded) * _QUARTER
                if center != _ZERO:
                    square += rounded
                size *= _BESIDE_MINIMA
                size = np.float32(math.sqrt(size * size + square))
            ratio = block.unit[i] / size if size > _ZERO else _FAR
            counts = scalars.lost[3 * k + 2] > _ZERO or not has_scalar(scalars, block, i)
            if not (counts and abs(ratio) < _FAR and abs(offset) < _FAR):
                continue
            low, high = load(block.low, 16 * i), load(block.high, 16 * i)
            low, high = prove_lost(scalars, k, first + i, low, high)
            store(block.low, 16 * i, low)
            store(block.high, 16 * i, high)
            reach = _DEVIATIONS * size
            look_within(block, 16 * i, splat(center - reach), splat(center + reach))
            slope = CURVATURE_UNIT * CENTER_UNIT * ratio / size
            gradient = (center_value(block, i) - center) * slope
            curvature = splat(CURVATURE_UNIT * ratio * ratio)
            store(block.gradient, 16 * i, load(block.gradient, 16 * i) - gradient)
            store(block.curvature, 16 * i, load(block.curvature, 16 * i) - curvature)

"""Superblocks in which some weights are much larger than the others."""

import numpy as np

from recover._jit import bare_inlined, bare_kernel
from recover.estimators._product_tables import BEND_UNIT, CENTER_UNIT, Scalars
from recover.estimators._superblock import OUTLIER, Superblock, hear_any, replace_first
from recover.quants._lanes import add_up, any_lane, fused, largest_lane, load, splat, store, where

_ZERO = np.float32(0)
_ONE = np.float32(1)
_WITHOUT_LARGEST = np.float32(1.28)  # the mean square of a normal group over that of 15 of 16


@bare_inlined
def may_have_outliers(scalars: Scalars, block: Superblock, prior: np.float32) -> bool:
    """Whether scales are large for the weights of the superblock, see `begin_again`."""
    found = splat(_ZERO)
    for k in range(scalars.noise.size):
        scale = load(block.scale, 16 * k)
        usable = load(block.inverse, 16 * k) != _ZERO
        found = where(usable & (scale * scale * prior > scalars.suspicious[k]), splat(_ONE), found)
    return any_lane(found != _ZERO)


@bare_kernel
def _typical_square(block: Superblock, n_groups: int) -> np.float32:
    """Mean square of weights that are no outliers.

    From the median of the groups without their largest weights; of those that are not 0, if there
    are any.
    """
    n, means = 0, block.each
    for i in range(n_groups):
        center = load(block.center, 16 * i) * (block.unit[i] / CENTER_UNIT)
        square = center * center
        mean = (add_up(square) - largest_lane(square)) / np.float32(15)
        if mean > _ZERO:
            place = n
            while place > 0 and means[place - 1] > mean:
                means[place] = means[place - 1]
                place -= 1
            means[place] = mean
            n += 1
    return _WITHOUT_LARGEST * means[n // 2] if n > 0 else _ZERO


@bare_kernel
def begin_again(
    scalars: Scalars, block: Superblock, start: int, n_groups: int, prior: np.float32
) -> None:
    """Take the scalar inputs into account in a superblock that may have outliers.

    The prior would draw outliers away from where the encoder, which fits the scale to them, puts
    them; they have none, and a normal density around each decoded value. The prior of the others
    is as wide as in a typical group.
    """
    unit = block.unit
    width = _typical_square(block, n_groups)
    limit, narrow = OUTLIER * width, _ONE / width
    if width == _ZERO:  # everything else is lost in the noise
        limit = -_ONE
    for k in range(scalars.noise.size):
        hear_any(scalars, k, block, start, k == 0, limit)
        if k == 0:
            replace_first(scalars, block, start)
    for i in range(n_groups):
        center = load(block.center, 16 * i)
        size = center * (unit[i] / CENTER_UNIT)
        more = where(size * size > limit, splat(prior), splat(prior - narrow))
        more = more * (unit[i] * unit[i] * BEND_UNIT)  # `_density` adds the prior of all
        store(block.slope, 16 * i, fused(center, more, load(block.slope, 16 * i)))
        store(block.bend, 16 * i, load(block.bend, 16 * i) + more)

"""The posterior's means where no input has atoms: most superblocks of most models.

There are three short loops: what each needs fits into sixteen registers, and the next groups are
begun while a group waits for its last result. One loop for all of it takes half as long again.
"""

import numpy as np

from recover._compiled.across import any_lane
from recover._compiled.jit import bare_inlined
from recover._compiled.lanes import fused, load, splat, spread, store, where
from recover.estimators._product_tables import H
from recover.estimators._rule import (
    NARROW_HILL,
    STEEP,
    density_factors,
    density_from,
    exp,
    least_width,
    moments_from,
)
from recover.estimators._superblock import Superblock
from recover.quants import F32Array

_ZERO, _ONE = np.float32(0), np.float32(1)
# Places in `Superblock.each` of factors of each group, and in `Superblock.kept`.
_BELIEF, _TO_ACROSS, _TO_CENTER, _UNIT = range(0, 64, 16)
_MIDDLE, _ACROSS, _RIGHT, _LEFT = range(0, 1024, 256)


@bare_inlined
def estimate_means(block: Superblock, prior: np.float32, start: int, out: F32Array) -> bool:
    """Estimates of a superblock: ``m + w M_1 / M_0``; whether all of them are good.

    Conditions come one after the other: masks are taken apart and put together to be combined.
    """
    factors, kept, sound, least = block.each, block.kept, splat(_ONE), least_width(prior)
    unit, per_unit = load(block.unit, 0), load(block.per_unit, 0)
    belief, to_across, to_center = density_factors(unit, per_unit, prior)
    store(factors, _BELIEF, belief)
    store(factors, _TO_ACROSS, to_across)
    store(factors, _TO_CENTER, to_center)
    store(factors, _UNIT, unit * np.float32(H))
    for i in range(16):
        belief, to_across = spread(factors, _BELIEF + i), spread(factors, _TO_ACROSS + i)
        to_center = spread(factors, _TO_CENTER + i)
        middle, width, across, odd, even = density_from(block, i, (belief, to_across, to_center))
        # Where next to nothing is left, rounding would lead out of the cells.
        sound = where(width > least, sound, _ZERO)
        sound = where(even > NARROW_HILL, sound, _ZERO)
        store(kept, _MIDDLE + 16 * i, middle)
        store(kept, _ACROSS + 16 * i, across)
        store(kept, _RIGHT + 16 * i, even + odd)
        store(kept, _LEFT + 16 * i, even - odd)
    for at in range(_RIGHT, _LEFT + 256, 16):
        store(kept, at, exp(load(kept, at)))
    for i in range(16):
        right, left = load(kept, _RIGHT + 16 * i), load(kept, _LEFT + 16 * i)
        m0, m1, _ = moments_from(right, left)
        sound = where(m0 < STEEP, sound, _ZERO)
        offset = load(kept, _ACROSS + 16 * i) * m1
        per_mass = spread(factors, _UNIT + i) / m0
        store(out, 16 * (start + i), fused(offset, per_mass, load(kept, _MIDDLE + 16 * i)))
    return not any_lane(sound == _ZERO)

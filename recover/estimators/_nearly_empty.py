"""Superblocks in which few weights are not 0, or far larger than all others.

The scales of most sub-blocks are lost beside them: their integers are 0. There is nothing to tell
a spike at 0 by, and no sub-block of the usual size to tell outliers by. So the others, whose cells
hold 0, are taken for as small as those of which the scale is lost.
"""

import numpy as np

from recover._compiled.across import add_up
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import load, splat, store, where
from recover.estimators._few import expect_less_of_few
from recover.estimators._lost import accumulate_lost
from recover.estimators._outliers import take_own_prior
from recover.estimators._product_tables import CENTER_UNIT, Scalars
from recover.estimators._proven import find_possible_zeros
from recover.estimators._superblock import Superblock
from recover.estimators._zeros import FEW, forget_ends

_ZERO, _ONE = np.float32(0), np.float32(1)
_FAR = np.float32(np.inf)
_STEPS = np.float32(1.5)
_OF_LARGEST = np.float32(1 / 64)


@bare_inlined
def _n_large(block: Superblock, n_groups: int) -> np.float32:
    """How many weights cannot be 0, or are far from it by the first input, which may prove none."""
    n = splat(_ZERO)
    for i in range(n_groups):
        far = where(abs(load(block.center, 16 * i)) > _STEPS * CENTER_UNIT, _ONE, splat(_ZERO))
        n = n + where(load(block.may_be_zero, 16 * i) == _ZERO, splat(_ONE), far)
    return add_up(n)


@bare_inner
def _lost_square(scalars: Scalars, block: Superblock, start: int, n_groups: int) -> np.float32:
    """How large the weights of groups are at most whose scales are all 0; 0 if there is none."""
    size, found, largest = _ZERO, False, _ZERO
    n = scalars.codes.size // scalars.noise.size // 16
    for i in range(n_groups):
        is_lost, least = True, _FAR
        for k in range(scalars.noise.size):
            is_lost = is_lost and scalars.scale[k * n + start + i] == _ZERO
            own = -scalars.scale_error[k * n + start + i] * scalars.lost[3 * k]
            least = own if _ZERO < own < least else least
        if is_lost:
            found = True
            size = max(size, least) if least < _FAR else size
        elif block.inverse[i] != _ZERO:
            largest = max(largest, abs(block.scale[i]))
    size = max(size, largest * _OF_LARGEST)
    return size * size if found else _ZERO


@bare_inner
def take_for_empty(
    scalars: Scalars, block: Superblock, start: int, n_groups: int, prior: np.float32
) -> bool:
    """Take all but a few weights of a superblock for next to 0; whether it is such a superblock."""
    small = _lost_square(scalars, block, start, n_groups)
    if not (small > _ZERO and _ONE / small < _FAR):
        return False
    find_possible_zeros(scalars, None, block, start)
    if _n_large(block, n_groups) > FEW:
        return False
    forget_ends(scalars, block, start)
    expect_less_of_few(scalars, block, start, n_groups)
    accumulate_lost(scalars, block, start)
    store(block.precision, 0, splat(_ONE / small))
    for i in range(n_groups):
        take_own_prior(block, i, prior, _ZERO, load(block.may_be_zero, 16 * i) == _ZERO)
    return True

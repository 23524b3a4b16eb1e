"""What the inputs that are not scalar add to what is known of a superblock: see `Others`.

Together they say where a weight is with a normal error, which is as large as is typical of their
types and as the scalar inputs show in the superblock at hand.
"""

from typing import Any

import numpy as np

from recover._compiled.across import add_up, largest_lane
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import fused, larger, load, smaller, splat, store, where
from recover.estimators._product_tables import CENTER_UNIT, CURVATURE_UNIT, Others
from recover.estimators._superblock import OUTLIER, Superblock, center_value
from recover.quants import F32Array

_ZERO = np.float32(0)
_ONE = np.float32(1)
_FAR = np.float32(np.inf)
_DEVIATIONS = np.float32(4)
# Of the variance of weights around what a vector type says, see `_trust`.
_VARIES, _SHARED, _LEAST_SPREAD = np.float32(0.04), np.float32(0.02), np.float32(0.1)
# In a block of 32 with an outlier: the variance, over what is typical of weights as large.
_BESIDE_OUTLIER = np.float32(1.5)


@bare_inner
def accumulate_others(
    others: Others, block: Superblock, start: int, n_groups: int, prior: np.float32, noise: Any
) -> None:
    """Take the inputs that are not scalar into account.

    `noise` (16 lanes) are the typical square errors of what the scalar inputs say in each group, by
    which the others are seen. Few vectors fit an outlier: a vector type is farther off it and the
    weights that share 32 with it.
    """
    typical = others.variance[start]
    beside, noises = block.each[:16], block.each[16:32]
    store(block.each, 16, noise)
    _find_outliers(block, n_groups, prior, beside)
    variance = typical
    if prior > _ZERO and typical > _ZERO:
        total, error, n_seen = splat(_ZERO), _ZERO, 0
        for i in range(n_groups):
            if beside[i] == _ZERO:
                off = center_value(block, i) - load(others.mean, 16 * (start + i))
                total, error, n_seen = fused(off, off, total), error + noises[i], n_seen + 1
        if n_seen > 0:
            error /= np.float32(n_seen)
            seen = add_up(total) / np.float32(16 * n_seen) - error
            variance += _trust(error / typical) * (max(seen, _LEAST_SPREAD * typical) - typical)
    for i in range(n_groups):
        own = typical * beside[i] if beside[i] > _ZERO else variance
        if own > _ZERO and own < min(_FAR, _ONE / prior):
            precision = others.tempering * (_ONE / own - prior)
            center = load(others.mean, 16 * (start + i)) * (others.tempering / own / precision)
            if precision > _ZERO:
                _add_normal(block, i, center, precision)


@bare_inlined
def _find_outliers(block: Superblock, n_groups: int, prior: np.float32, beside: F32Array) -> None:
    """Fill `beside` (16,): the variance, over what is typical, of groups that share 32 with one.

    ``1.5 (mean square of the 32) / sigma^2`` where the largest square is over ``40 sigma^2``; 0 for
    other groups.
    """
    for i in range(0, n_groups, 2):
        squares = largest = splat(_ZERO)
        for j in range(i, min(i + 2, n_groups)):
            value = center_value(block, j)
            squares = fused(value, value, squares)
            largest = larger(largest, value * value)
        mean = add_up(squares) / np.float32(32)
        outlying = largest_lane(largest) * prior > OUTLIER
        beside[i] = beside[i + 1] = _BESIDE_OUTLIER * mean * prior if outlying else _ZERO


@bare_inlined
def _add_normal(block: Superblock, i: int, mean: Any, precision: np.float32) -> None:
    """Add a normal density of precision P around `mean` to those of group `i`.

    ``log p(x) += -P (x - mean)^2 / 2``, cut four deviations from the mean: the gradient at the
    center m grows by ``P (mean - m)``, the curvature by ``-P``. One that the bounds exclude says
    nothing.
    """
    at, unit = 16 * i, block.unit[i]
    reach = _DEVIATIONS * np.sqrt(_ONE / precision)
    low, high = load(block.low, at), load(block.high, at)
    below, above = mean - reach, mean + reach
    sound = (below < high) & (above > low)
    store(block.low, at, where(sound, larger(below, low), low))
    store(block.high, at, where(sound, smaller(above, high), high))
    curvature = where(sound, splat(CURVATURE_UNIT * unit * unit * precision), splat(_ZERO))
    off = mean * (CENTER_UNIT * block.per_unit[i]) - load(block.center, at)
    store(block.gradient, at, fused(off, curvature, load(block.gradient, at)))
    store(block.curvature, at, load(block.curvature, at) - curvature)


@bare_inlined
def _trust(ratio: np.float32) -> np.float32:
    """How far a superblock's own variance counts against that of the type.

    ``V / (V + 2 (1 + r)^2 / 256 + S r^2)`` with V = 0.04, S = 0.02 and the `ratio` r.

    `ratio` is the variance of the scalar input it is seen by over the typical variance. Three
    things are weighed: how much the variance of a type varies between superblocks, how well 256
    weights tell it, and the part of the errors that inputs share.
    """
    one = np.float32(1) + ratio
    return _VARIES / (_VARIES + np.float32(2 / 256) * one * one + _SHARED * ratio * ratio)

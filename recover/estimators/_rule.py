"""The rule by which the posterior integrates, for a group of sixteen weights at once.

The logarithm of the density is a quadratic polynomial in the place ``t`` (-1 to 1) in the
intersection of the cells.
"""

from typing import Any

import numpy as np

from recover._compiled.across import any_lane
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import fused, larger, load, splat, sqrt, store, where
from recover.estimators._product_tables import CENTER_UNIT, CURVATURE_UNIT, H
from recover.estimators._superblock import Superblock

# A rule with nodes at 0, +-h and +-2h: the density at the outer nodes follows from that at the
# inner ones, as its logarithm is quadratic. h, the weights of the inner and outer nodes (that of
# the middle is 1) and the curve of `exp` are those with the least error in mean and variance for
# densities exp(s t + b t**2 / 2) from -1 to 1 as merges of trained weights have them: s to +-15, b
# from -21 to 0.
_WEIGHTS = (1.0995, 0.8463)
_CURVE = np.float32(0.4523)
# The kernels count in units of the inner nodes' weight.
_MIDDLE = np.float32(1 / _WEIGHTS[0])
_OUTER = np.float32(_WEIGHTS[1] / _WEIGHTS[0])
_OUTER_FIRST, _OUTER_SECOND = np.float32(2) * _OUTER, np.float32(4) * _OUTER
ALL = (1 + 2 * sum(_WEIGHTS)) / _WEIGHTS[0]
END = np.float32(1 / H)
_ZERO = np.float32(0)
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_FAR = np.float32(np.inf)
STEEP, NARROW_HILL = np.float32(100), np.float32(-0.24)
_NARROW = np.float32(2.0**-32)  # squared half width over the mean square of the weights


@bare_inlined
def exp(y: Any) -> Any:
    """About ``exp(8 y)`` for moderate y: ``(1 + y + 0.4523 y^2)^8``, y >= -1."""
    y = larger(y, splat(-_ONE))
    y = fused(y, fused(y, _CURVE, splat(_ONE)), splat(_ONE))
    y = y * y
    y = y * y
    return y * y


@bare_inlined
def moments(odd: Any, even: Any) -> Any:
    """The integrals of a density over 1, t / h and its square; `odd` and `even` as in `density`.

    ``M_j = sum over i of a_i (t_i / h)^j p(t_i) / p(0)`` over the nodes -2h, -h, 0, h and 2h. With
    ``R = p(h) / p(0)`` and ``L = p(-h) / p(0)`` the outer values are ``R^3 L`` and ``L^3 R``. They
    are in a unit of their own: a flat density has `ALL`.
    """
    return moments_from(exp(even + odd), exp(even - odd))


@bare_inlined
def moments_from(right: Any, left: Any) -> Any:
    """See `moments`; given R and L."""
    product = right * left
    right2, left2 = right * right * product, left * left * product
    both, both2 = right + left, right2 + left2
    m0 = fused(both2, _OUTER, both + _MIDDLE)
    m1 = fused(right2 - left2, _OUTER_FIRST, right - left)
    return m0, m1, fused(both2, _OUTER_SECOND, both)


@bare_inlined
def mode(odd: Any, even: Any) -> Any:
    """Where the density is largest, over h: ``-S / (B h)``, or an end (see docs/posterior.md)."""
    end = where(odd < _ZERO, splat(-END), splat(END))
    top = odd / even * -_HALF
    return where((even < _ZERO) & (abs(top) < END), top, end)


@bare_inlined
def density(block: Superblock, i: int, prior: np.float32) -> Any:
    """Middle and width of what the bounds of group `i` leave, and the log density there.

    The latter as half the width w in units, and the odd and the even part of an eighth of its
    logarithm at h, over that in the middle: ``S h / 8`` and ``B h^2 / 16`` with ``S = w G`` and
    ``B = w^2 C``. G and C are the derivatives at the middle, the prior's share among them.
    """
    return density_from(block, i, density_factors(block.unit[i], block.per_unit[i], prior))


@bare_inlined
def density_factors(unit: Any, per_unit: Any, prior: np.float32) -> Any:
    """Of units: the curvature of the prior, and what takes widths and sums of bounds to units."""
    belief = -prior * unit * unit * CURVATURE_UNIT
    return belief, _HALF * per_unit, _HALF * per_unit * CENTER_UNIT


@bare_inlined
def density_from(block: Superblock, i: int, factors: tuple[Any, ...]) -> Any:
    """See `density`; given `density_factors` of the group."""
    at, (belief, to_across, to_center) = 16 * i, factors
    low, high, center = load(block.low, at), load(block.high, at), load(block.center, at)
    gradient = fused(center, belief, load(block.gradient, at))
    curvature = load(block.curvature, at) + belief
    total, width = low + high, high - low
    across = width * to_across
    off = total * to_center - center
    odd, even = fused(curvature, off, gradient) * across, curvature * across * across
    return total * _HALF, width, across, odd, even


@bare_inlined
def least_width(prior: np.float32) -> np.float32:
    """From which the estimates of a superblock are good: ``2 sigma 2^-16``."""
    return np.float32(2) * np.sqrt(_NARROW / prior)


@bare_inlined
def is_mild(total: Any, even: Any) -> Any:
    """Whether the rule is accurate, see `_WEIGHTS`: neither a steep edge nor a narrow hill."""
    return (total < STEEP) & (even > NARROW_HILL)


@bare_inner
def sharpen(block: Superblock, prior: np.float32) -> None:
    """Where a density is too steep for the rule, bounds within which it is above exp(-8).

    They lie ``r = 16 / (f + sqrt(f^2 + 16 b))`` from its maximum at t: ``f = |S + B t|``, ``b =
    max(-B, 0)``.
    """
    for i in range(16):
        middle, width, _, odd, even = density(block, i, prior)
        total, _, _ = moments(odd, even)
        steep = ~is_mild(total, even) & (width < _FAR)
        if not any_lane(steep):
            continue
        curvature = even * np.float32(16 / H**2)
        top = mode(odd, even) * np.float32(H)
        fall = abs(fused(curvature, top, odd * np.float32(8 / H)))
        curvature = where(curvature < _ZERO, -curvature, splat(_ZERO))
        reach = splat(np.float32(16)) / (fall + sqrt(fused(fall, fall, curvature * np.float32(16))))
        steep = steep & (reach > _ZERO)
        half, low, high = width * _HALF, load(block.low, 16 * i), load(block.high, 16 * i)
        near, far = fused(half, top - reach, middle), fused(half, top + reach, middle)
        store(block.low, 16 * i, where(steep & (near > low), near, low))
        store(block.high, 16 * i, where(steep & (far < high), far, high))

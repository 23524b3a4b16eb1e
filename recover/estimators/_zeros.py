"""Superblocks of which many weights are exactly 0: pruned ones, and rows with dead columns.

The prior of such a superblock has a spike at 0: ``share * delta(x) + (1 - share) N(0, W)``. The
share is the most likely one. A superblock has a spike only if that explains its codes far better
than none does, so that weights which are merely often small have none.
"""

import math
from typing import Any

import numpy as np

from recover._compiled.across import add_up, largest_lane
from recover._compiled.doubles import from_bits, n_true, nearest_f32, to_f64
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import bits, fused, load, splat, store, to_f32, where
from recover.estimators._product_tables import H
from recover.estimators._rule import ALL, END, density, exp, is_mild, moments
from recover.estimators._superblock import Superblock, center_value

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_FAR = np.float32(np.inf)
_FEWEST = np.float32(24)  # weights that may be 0
_MORE = np.float32(1.4)  # than lie beside, so many times
_MORE_IF_UNEVEN = np.float32(3)  # as a block with an outlier has cells that hold all other weights
_NORMAL_AT_0 = np.float32(1 / math.sqrt(2 * math.pi))
_N_STEPS = 6
_LEAST_GAIN = 36.0  # of the log likelihood of a superblock


@bare_inlined
def is_common(n_zero: Any, n_near: Any, uneven: bool) -> bool:
    """Whether far more weights may be 0 than lie beside (see `near_zero`): numbers by lane.

    `uneven` says whether there may be outliers.
    """
    n = add_up(n_zero)
    return n >= _FEWEST and n >= (_MORE_IF_UNEVEN if uneven else _MORE) * add_up(n_near)


@bare_inlined
def near_zero(low: Any, high: Any) -> Any:
    """By lane 1 for weights that may be 0, and 1 for those less than two widths of cells beside.

    Where the density of the weights is smooth, there are three times as many of the latter.
    """
    zero, one = splat(_ZERO), splat(_ONE)
    width = high - low
    may_be = ~(low > zero) & ~(high < zero) & (width < _FAR)
    near = ~may_be & (abs(low + high) < width * np.float32(4)) & (width < _FAR)
    return where(may_be, one, zero), where(near, one, zero)


@bare_inlined
def zero_atom(block: Superblock, middle: Any, width: Any) -> Any:
    """Place over h of the spike in a group's cells, and its mass over the density in the middle.

    The mass is ``share / (1 - share) sqrt(2 pi W)`` over half the width, in units of the rule.
    """
    place = middle / (width * -(_HALF * np.float32(H)))
    mass = splat(block.zeros[0]) / width
    inside = (abs(place) < END) & (mass < _FAR)
    return where(inside, place, splat(_ZERO)), where(inside, mass, splat(_ZERO))


@bare_inlined
def _may_have_spike(block: Superblock, n_groups: int, uneven: bool) -> bool:
    """Whether it is worth a look; most superblocks have too few weights that may be 0."""
    n_close = 0
    for i in range(n_groups):
        low, high = load(block.low, 16 * i), load(block.high, 16 * i)
        n_close += n_true(~(low > _ZERO) & ~(high < _ZERO))
    if n_close < _FEWEST:
        return False
    n_zero = n_near = splat(_ZERO)
    for i in range(n_groups):
        may_be, near = near_zero(load(block.low, 16 * i), load(block.high, 16 * i))
        n_zero, n_near = n_zero + may_be, n_near + near
    if not is_common(n_zero, n_near, uneven):
        return False
    total = largest = splat(_ZERO)
    for i in range(n_groups):
        center = center_value(block, i)
        square = center * center
        total, largest = total + square, where(square > largest, square, largest)
    # Beside an outlier, cells are too wide to tell zeros from small weights.
    return not add_up(total) < np.float32(2) * largest_lane(largest)


@bare_inlined
def _set_share(block: Superblock, share: np.float32, prior: np.float32) -> None:
    """See `zero_atom`; `prior` is 1 / W."""
    odds = share / (_ONE - share)
    block.zeros[0] = odds * np.float32(ALL) / (_NORMAL_AT_0 * np.sqrt(prior))


@bare_inner
def _log_likelihood(
    block: Superblock, share: np.float32, prior: np.float32, n_groups: int
) -> np.float64:
    """Of a superblock's codes, but for what is the same for any share and prior.

    Logarithms take long: each lane has one, of the product of what lies there in all groups.
    """
    total = np.float64(n_groups * 16 * (math.log(_ONE - share) + 0.5 * math.log(prior)))
    product, exponents = to_f64(splat(_ONE)), bits(splat(_ZERO))
    for i in range(n_groups):
        middle, width, _, odd, even = density(block, i, prior)
        m0, _, _ = moments(odd, even)
        place, mass = zero_atom(block, middle, width)
        both = fused(mass, exp(place * fused(even, place, odd)), m0)
        good = is_mild(m0, even) & (width < _FAR)
        fraction, exponent = _split(where(good, both, splat(_ONE)))
        product, exponents = product * to_f64(fraction), exponents + exponent
        square = where(good, middle * middle, splat(_ZERO))
        total -= 0.5 * np.float64(prior) * np.float64(add_up(square))
    total += math.log(2) * np.float64(add_up(to_f32(exponents)))
    store(block.each, 0, nearest_f32(product))
    for j in range(16):
        total += math.log(np.float64(block.each[j]))
    return total


@bare_inlined
def _split(values: Any) -> Any:
    """Fractions from 1 to 2, and exponents of 2 as integers; of positive normal numbers."""
    words = bits(values)
    return from_bits((words & 0x7FFFFF) | 0x3F800000), (words >> 23) - 127


@bare_inner
def _more_likely(
    block: Superblock, share: np.float32, prior: np.float32, n_groups: int
) -> np.float32:
    """A step of expectation maximization: the mean probability of weights to be 0."""
    total = splat(_ZERO)
    for i in range(n_groups):
        middle, width, _, odd, even = density(block, i, prior)
        m0, _, _ = moments(odd, even)
        place, mass = zero_atom(block, middle, width)
        mass = mass * exp(place * fused(even, place, odd))
        part = mass / (m0 + mass)
        total = total + where((part > _ZERO) & is_mild(m0, even), part, splat(_ZERO))
    return add_up(total) / np.float32(16 * n_groups)


@bare_inner
def find_zeros(block: Superblock, prior: np.float32, n_groups: int, uneven: bool) -> np.float32:
    """Whether, and how likely, weights of a superblock are 0: fills `Superblock.zeros`.

    `uneven` says whether there may be outliers.
    Returns the precision of the prior of the others.
    """
    if not (prior > _ZERO and _may_have_spike(block, n_groups, uneven)):
        return prior
    before = _log_likelihood(block, _ZERO, prior, n_groups)
    share, others = _HALF, prior * _HALF
    for _ in range(_N_STEPS):
        _set_share(block, share, others)
        share = min(
            max(_more_likely(block, share, others, n_groups), np.float32(1e-3)), np.float32(0.995)
        )
        others = prior * (_ONE - share)
    _set_share(block, share, others)
    if _log_likelihood(block, share, others, n_groups) - before < _LEAST_GAIN:
        block.zeros[0] = _ZERO
        others = prior
    return others

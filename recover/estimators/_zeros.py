"""Superblocks of which many weights are exactly 0: pruned ones, and rows with dead columns.

The prior of such a superblock has a spike at 0: ``share * delta(x) + (1 - share) N(0, W)``. The
share is the most likely one. A superblock has a spike only if that explains its codes far better
than none does, so that weights which are merely often small have none.
"""

import math
from typing import Any

import numpy as np

from recover._compiled.across import add_up, largest_lane, sum_lanes
from recover._compiled.doubles import from_bits, n_true, nearest_f32, to_f64
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import (
    bits,
    fused,
    larger,
    load,
    load_bytes,
    smaller,
    splat,
    store,
    to_f32,
    where,
)
from recover.estimators._accumulate import add_to_group, density_of_ends
from recover.estimators._product_tables import H, Scalars, Spans
from recover.estimators._proven import find_possible_zeros
from recover.estimators._rule import ALL, density, exp, moments, sharpen
from recover.estimators._superblock import Superblock, center_value, keep, median_of, restore

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_FAR = np.float32(np.inf)
FEWEST = np.float32(24)  # weights that may be 0
FEW = np.float32(16)  # weights that cannot be 0: too few of a superblock to tell a spike by
MORE = np.float32(1.4)  # than lie beside, so many times
_MORE_IF_UNEVEN = np.float32(3)  # as a block with an outlier has cells that hold all other weights
_TIMES_USUAL = np.float32(4)  # the width of cells beside outliers, which tell no zeros
_NORMAL_AT_0 = np.float32(1 / math.sqrt(2 * math.pi))
_N_STEPS = 6
_LEAST_GAIN = 36.0  # of the log likelihood of a superblock


@bare_inlined
def is_common(n_zero: Any, n_near: Any, uneven: bool) -> bool:
    """Whether far more weights may be 0 than lie beside (see `near_zero`): numbers by lane.

    `uneven` says whether there may be outliers.
    """
    n = add_up(n_zero)
    return n >= FEWEST and n >= (_MORE_IF_UNEVEN if uneven else MORE) * add_up(n_near)


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
def zero_mass(block: Superblock, i: int, middle: Any, width: Any, odd: Any, even: Any) -> Any:
    """The mass of the spike in group `i`, in units of the rule: see `density` for the others.

    It is ``share / (1 - share) sqrt(2 pi W)`` over half the width, times the density at 0. That may
    lie beyond the bounds, which `sharpen` has narrowed, if no input proves it wrong.
    """
    place = middle / (width * -(_HALF * np.float32(H)))
    at_zero = exp(place * fused(even, place, odd) * np.float32(1 / 4))  # which is 0 from -1 on
    at_zero = at_zero * at_zero
    mass = splat(block.zeros[0]) / width * (at_zero * at_zero)
    there = (load(block.may_be_zero, 16 * i) > _ZERO) & (mass > _ZERO) & (mass < _FAR)
    return where(there, mass, splat(_ZERO))


@bare_inner
def _usual_width(block: Superblock, n_groups: int) -> np.float32:
    """The median over groups of the least width of their cells that is not infinite."""
    n, widths = 0, block.kept
    for i in range(n_groups):
        width = -largest_lane(load(block.low, 16 * i) - load(block.high, 16 * i))
        if _ZERO < width < _FAR:
            widths[n] = width
            n += 1
    return median_of(widths, n)


@bare_inlined
def _may_have_spike(block: Superblock, n_groups: int, uneven: bool) -> bool:
    """Whether it is worth a look; most superblocks have too few weights that may be 0."""
    n_close = splat(_ZERO)  # masks are not combined, which takes long
    for i in range(n_groups):
        may_be = where(load(block.low, 16 * i) > _ZERO, _ZERO, splat(_ONE))
        n_close = n_close + where(load(block.high, 16 * i) < _ZERO, _ZERO, may_be)
    if sum_lanes(n_close) < FEWEST:
        return False
    total = largest = splat(_ZERO)
    for i in range(n_groups):
        center = center_value(block, i)
        square = center * center
        total, largest = total + square, where(square > largest, square, largest)
    # Beside an outlier, cells are too wide to tell zeros from small weights.
    widest, rest = _FAR, add_up(total) - largest_lane(largest)
    if rest < largest_lane(largest):
        widest = np.sqrt(rest / np.float32(16 * n_groups))
    if uneven:
        widest = min(widest, _TIMES_USUAL * _usual_width(block, n_groups))
    n_zero = n_near = splat(_ZERO)
    for i in range(n_groups):
        low, high = load(block.low, 16 * i), load(block.high, 16 * i)
        may_be, near = near_zero(low, high)
        narrow = high - low < widest
        n_zero = n_zero + where(narrow, may_be, splat(_ZERO))
        n_near = n_near + where(narrow, near, splat(_ZERO))
    return is_common(n_zero, n_near, uneven)


@bare_inner
def forget_ends(scalars: Scalars, block: Superblock, start: int) -> None:
    """Of weights that may be 0, an end code says no more than that they are in its cell.

    Its density was drawn from weights which the scale was fitted to. Zeros have no say in that, and
    lie anywhere beyond the last level.
    """
    n = scalars.codes.size // scalars.noise.size
    for i in range(16):
        may_be = load(block.may_be_zero, 16 * i) > _ZERO
        for k in range(scalars.noise.size):
            if block.inverse[16 * k + i] != _ZERO:
                codes = load_bytes(scalars.codes, k * n + 16 * (start + i))
                gradient, curvature = density_of_ends(k, block, i, codes)
                gradient = where(may_be, -gradient, splat(_ZERO))
                curvature = where(may_be, -curvature, splat(_ZERO))
                add_to_group(scalars, k, block, i, codes, gradient, curvature)
        low, high = load(block.low, 16 * i), load(block.high, 16 * i)
        store(block.low, 16 * i, where(may_be, smaller(low, splat(_ZERO)), low))
        store(block.high, 16 * i, where(may_be, larger(high, splat(_ZERO)), high))


@bare_inlined
def _set_share(block: Superblock, share: np.float32, prior: np.float32) -> None:
    """See `zero_mass`; `prior` is 1 / W."""
    odds = share / (_ONE - share)
    block.zeros[0] = odds * np.float32(ALL) / (_NORMAL_AT_0 * np.sqrt(prior))


@bare_inner
def _log_likelihood(
    block: Superblock, share: np.float32, prior: np.float32, n_groups: int
) -> np.float64:
    """Of a superblock's codes, but for what is the same for any share and prior.

    Logarithms take long: each lane has one, of the product of what lies there in all groups.
    """
    total, each = 0.0, math.log(_ONE - share) + 0.5 * math.log(prior)
    product, exponents = to_f64(splat(_ONE)), bits(splat(_ZERO))
    for i in range(n_groups):
        middle, width, _, odd, even = density(block, i, prior)
        m0, _, _ = moments(odd, even)
        both = zero_mass(block, i, middle, width, odd, even) + m0
        known = (width > _ZERO) & (width < _FAR) & (both < _FAR)
        fraction, exponent = _split(where(known, both, splat(_ONE)))
        product, exponents = product * to_f64(fraction), exponents + exponent
        square = where(known, middle * middle, splat(_ZERO))
        total += n_true(known) * each
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
def _more_likely(block: Superblock, prior: np.float32, n_groups: int) -> np.float32:
    """A step of expectation maximization: the mean probability of weights to be 0."""
    total, n = splat(_ZERO), 0
    for i in range(n_groups):
        middle, width, _, odd, even = density(block, i, prior)
        m0, _, _ = moments(odd, even)
        mass = zero_mass(block, i, middle, width, odd, even)
        known = (width > _ZERO) & (width < _FAR) & (m0 < _FAR)
        total = total + where(known, mass / (m0 + mass), splat(_ZERO))
        n += n_true(known)
    return add_up(total) / np.float32(max(n, 1))


@bare_inlined
def _n_known(block: Superblock, n_groups: int) -> int:
    """Weights with both bounds."""
    n = 0
    for i in range(n_groups):
        n += n_true(abs(load(block.high, 16 * i) - load(block.low, 16 * i)) < _FAR)
    return n


@bare_inner
def find_zeros(
    scalars: Scalars,
    spans: Spans | None,
    block: Superblock,
    start: int,
    prior: np.float32,
    n_groups: int,
    uneven: bool,
) -> np.float32:
    """Whether, and how likely, weights of a superblock are 0: fills `Superblock.zeros`.

    `uneven` says whether there may be outliers. Sub-blocks of which nothing is known yet do not
    count: their weights are mostly 0.
    Returns the precision of the prior of the others.
    """
    if not (prior > _ZERO and _may_have_spike(block, n_groups, uneven)):
        return prior
    keep(block)
    find_possible_zeros(scalars, spans, block, start)
    forget_ends(scalars, block, start)
    sharpen(block, _ZERO)
    known = prior * np.float32(_n_known(block, n_groups) / (16 * n_groups))
    before = _log_likelihood(block, _ZERO, known, n_groups)
    share, others = _HALF, known * _HALF
    for _ in range(_N_STEPS):
        _set_share(block, share, others)
        share = min(max(_more_likely(block, others, n_groups), np.float32(1e-3)), np.float32(0.995))
        others = known * (_ONE - share)
    _set_share(block, share, others)
    if _log_likelihood(block, share, others, n_groups) - before < _LEAST_GAIN:
        block.zeros[0] = _ZERO
        others = prior
        restore(block)
    return others

"""How large the weights beside an outlier are: as those of other sub-blocks of the superblock.

Beside an outlier, steps are so wide that codes say little of the other weights of the sub-block.
The prior decides, and its variance W is the mean over the sub-blocks j that are known well, each as
likely as it makes the codes at hand:

    W = (sum over j of P_j W_j) / (sum over j of P_j)
    P_j = product over the weights of the mass of N(0, W_j) between their bounds

A mean square W_j of 16 weights is off by chance, by a variance of about 0.14 of its logarithm. So
the logarithms are drawn to their mean by what that is of their variance (James and Stein,
"Estimation with quadratic loss", Berkeley Symposium 1, 1961). Where weights are of one sign, the
prior has a mean (see `recover.estimators._one_sided`).
"""

import math
from typing import Any

import numpy as np

from recover._compiled.across import add_up, largest_lane
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import fused, larger, load, smaller, splat, store, where
from recover.estimators._one_sided import MEANS, drawn_mean, share_of_means, square_of_mean
from recover.estimators._product_tables import Scalars
from recover.estimators._superblock import Superblock, squares

_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_FAR = np.float32(np.inf)
_WITHOUT_LARGEST = np.float32(1.28 / 15)  # on the sum of the squares of 15 of 16
_BEYOND_NOISE = np.float32(5)
_BY_CHANCE = 0.14  # variance of the logarithm of a mean square of 16 normal weights
_OF_MEANS = 64  # the place of the share of means, in `Superblock.each`
_LEAST_MASS = np.float32(1e-3)
_FEWEST = 6  # sub-blocks that tell the share of means
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.27: off by 5e-4 at most.
_ERF = tuple(np.float32(c) for c in (0.278393, 0.230389, 0.000972, 0.078108))


@bare_inlined
def without_largest(values: Any) -> np.float32:
    """The mean square of a normal group, from all but its largest weight: 1.28 times theirs."""
    return (add_up(values) - largest_lane(values)) * _WITHOUT_LARGEST


@bare_inlined
def _erf(z: Any) -> Any:
    """The error function of numbers that are not negative."""
    a, b, c, d = _ERF
    p = fused(z, fused(z, fused(z, fused(z, d, splat(c)), splat(b)), splat(a)), splat(_ONE))
    p = p * p
    return splat(_ONE) - splat(_ONE) / (p * p)


@bare_inlined
def _erf_of_any(z: Any) -> Any:
    size = _erf(smaller(abs(z), splat(np.float32(8))))
    return where(z < _ZERO, -size, size)


@bare_inlined
def _mass(block: Superblock, i: int, size: np.float32) -> Any:
    """The mass of a normal density of that mean square between the bounds of weights."""
    per = np.float32(math.sqrt(0.5 / size))
    low, high = load(block.low, 16 * i), load(block.high, 16 * i)
    mass = (_erf_of_any(high * per) - _erf_of_any(low * per)) * _HALF
    return larger(mass, splat(_LEAST_MASS))


@bare_inner
def _log_of_all(block: Superblock, each: Any) -> np.float64:
    """The logarithm of a product over the weights of a group."""
    store(block.each, 32, each)
    product = 1.0
    for j in range(32, 48):
        product *= np.float64(block.each[j])
    return np.float64(math.log(product))


@bare_inlined
def _step(scalars: Scalars) -> np.float32:
    """The mean distance of neighbouring levels of the first input."""
    low, high = scalars.ends[0], scalars.ends[1]
    return (scalars.levels[high] - scalars.levels[low]) / np.float32(high - low)


@bare_inner
def _known_sizes(
    scalars: Scalars, block: Superblock, start: int, n_groups: int, typical: np.float32
) -> int:
    """Put the logarithms of the W_j into the scratch memory, drawn to their mean; how many.

    The share of means is told by groups whose steps are not wide: others have one code for all.
    """
    n, total, square, noise = 0, 0.0, 0.0, scalars.noise[0]
    n_narrow, all_squares, of_means, uneven = 0, _ZERO, _ZERO, _ZERO
    step = _step(scalars)
    for i in range(n_groups):
        own, scale = without_largest(squares(block, i)), scalars.scale[start + i]
        lost = -scalars.scale_error[start + i] * scalars.lost[0]
        if scale == _ZERO and lost < _FAR:
            own = max(own, lost * lost)
        if own > _BEYOND_NOISE * noise * scale * scale and own < _FAR:
            log = math.log(np.float64(own))
            block.each[n] = np.float32(log)
            n, total, square = n + 1, total + log, square + log * log
            if not scale * scale * (step * step) > typical:
                n_narrow, all_squares, uneven = n_narrow + 1, all_squares + own, uneven + own * own
                of_means += square_of_mean(scalars, block, start, i)
    if n > 0:
        block.each[_OF_MEANS] = _ZERO
        if n_narrow >= _FEWEST:
            n_alike = all_squares * all_squares / uneven
            block.each[_OF_MEANS] = share_of_means(of_means / all_squares, n_alike)
        mean = total / n
        variance = square / n - mean * mean
        share = max(0.0, 1 - _BY_CHANCE / variance) if variance > 0 else 0.0
        for j in range(n):
            drawn = mean + share * (np.float64(block.each[j]) - mean) + _BY_CHANCE / 2 * (1 - share)
            block.each[j] = np.float32(math.exp(drawn))
    return n


@bare_inner
def _size_beside(block: Superblock, i: int, n: int) -> np.float32:
    """W of a group, see above; outliers do not count."""
    largest = -np.inf
    counts = ~(squares(block, i) > block.limit[i])
    for j in range(n):
        log = _log_of_all(block, where(counts, _mass(block, i, block.each[j]), splat(_ONE)))
        block.each[16 + j], largest = np.float32(log), max(largest, log)
    total, weights = 0.0, 0.0
    for j in range(n):
        chance = math.exp(np.float64(block.each[16 + j]) - largest)
        total += chance * np.float64(block.each[j])
        weights += chance
    return np.float32(total / weights)


@bare_inner
def narrow_wide_ones(
    scalars: Scalars, block: Superblock, start: int, n_groups: int, typical: np.float32
) -> None:
    """Set `Superblock.precision` of groups whose steps are wide beside a `typical` mean square.

    The means of their priors are in `Superblock.each`, from `MEANS` on.
    """
    n, step = -1, _step(scalars)
    store(block.each, MEANS, splat(_ZERO))
    for i in range(n_groups):
        scale = block.scale[i]
        width = scale * step
        if not (width * width > typical and block.precision[i] == _ONE / typical):
            continue
        if n < 0:
            n = _known_sizes(scalars, block, start, n_groups, typical)
        if n == 0:
            break
        if not scale * scale > typical and block.each[_OF_MEANS] == _ZERO:
            continue
        size = _size_beside(block, i, n)
        mean, size = drawn_mean(scalars, block, start, i, size, block.each[_OF_MEANS])
        block.each[MEANS + i] = mean
        block.precision[i] = _ONE / size

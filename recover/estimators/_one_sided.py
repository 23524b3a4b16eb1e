"""Sub-blocks beside an outlier whose other weights are of one sign, as in smooth filters.

All of these have one code, which says little of each: steps are wide. But where scale and minimum
are fitted by least squares, the mean m of what is decoded is that of the weights but for what is
rounded, the scale to a multiple of d and the minimum to one of dmin: with the mean level y, the
variance of m is

    V = ((y d)^2 + dmin^2) / 12 + s^2 N / 16

without the rounding of a scale or minimum that is the largest of the superblock, as the others are
counted in steps of that.

Of the variance W of the weights a share is that of the means of sub-blocks, 1/16 where weights are
independent; what those sub-blocks have beyond that whose steps are not wide tells it. T, the
variance of the mean, is that or, where m is too far from 0 for chance, what m has:

    T = max(share W, m^2 - 9 (V + W / 16))

In smooth weights a sign tells where the mean is. The levels of a type without minima differ on both
sides of 0 (IQ4_XS has none at 0), and its encoder takes the sign of the scale that fits the others
best: what is decoded of them has their sign. Where that is 0, or types have minima, it is the sign
of the outlier, which goes with the mean as any weight does, with a correlation r of the root of the
share. So where T is told by the share, the mean is expected to be

    b = sign r (2 share W / pi)^0.5         r = 1 for the sign of the mean itself

(the mean of a normal number given the sign of another), and T is less by its square. The mean of
the prior is then ``b + (m - b) T / (T + V)`` (the best linear prediction, as that of James and
Stein, see `recover.estimators._sizes`), and what is left of T in its variance ``V T / (T + V)``. In
types without minima V is infinite. Q2_K is asked for m only where weights are smooth: absolute
errors are fitted there, in which zeros have no weight.
"""

import math
from typing import Any

import numpy as np

from recover._compiled.across import add_up, largest_lane
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import load_bytes, splat, where
from recover.estimators._product_tables import MINIMA, N_COLUMNS, STEPS, Scalars
from recover.estimators._proven import FEWEST_STEPS
from recover.estimators._superblock import Superblock, center_value, level_of, squares, steps_of

_ZERO, _ONE = np.float32(0), np.float32(1)
_FAR = np.float32(np.inf)
_SIXTEENTH = np.float32(1 / 16)
_EVENLY = np.float32(1 / 12)  # the variance of a place in a step
_BEYOND_CHANCE = np.float32(9)  # the square of a mean, over its variance
_LEAST_SHARE = np.float32(4 * math.sqrt(2) / 16)  # four standard errors, of one sub-block
_MOST = np.float32(0.9)  # share: weights of a sub-block differ
_ALMOST = np.float32(0.99)  # of the largest, which is not rounded to an integer
_OF_SIGN = np.float32(2 / math.pi)  # the squared mean of a half-normal, over its mean square

MEANS = 48
"""Where in `Superblock.each` the means of the groups' priors are (16,)."""


@bare_inlined
def _no_outliers(block: Superblock, i: int) -> Any:
    """By lane 1 for weights of a group that are no outliers, and 0 for these."""
    return where(squares(block, i) > block.limit[i], splat(_ZERO), splat(_ONE))


@bare_inner
def _mean(scalars: Scalars, block: Superblock, start: int, i: int, is_smooth: bool) -> Any:
    """M and V of a group, by the input that knows them best; V is infinite if none does."""
    mean, variance = _ZERO, _FAR
    counts = _no_outliers(block, i)
    n, n_counted = scalars.codes.size // scalars.noise.size, add_up(counts)
    for k in range(scalars.noise.size):
        at, n_steps = 16 * k + i, scalars.ends[2 * k + 1] - scalars.ends[2 * k]
        if not (scalars.extremes[4 * k] < 0 and (n_steps >= FEWEST_STEPS or is_smooth)):
            continue
        if block.inverse[at] == _ZERO or block.offset[at] == _ZERO or n_counted == _ZERO:
            continue
        d, dmin = steps_of(scalars, k, block)
        codes = load_bytes(scalars.codes, k * n + 16 * (start + i))
        level = add_up(level_of(scalars, k, codes) * counts) / n_counted
        scale, offset = block.scale[at], block.offset[at]
        almost = _ALMOST * scalars.rows[N_COLUMNS * k + STEPS]
        off = level * d if abs(scale) < almost * d else _ZERO
        off_minima = dmin if abs(offset) < almost * dmin else _ZERO
        own = (off * off + off_minima * off_minima) * _EVENLY
        own += scale * scale * scalars.noise[k] * _SIXTEENTH
        if dmin > _ZERO and own < variance:
            mean, variance = level * scale + offset, own
    return mean, variance


@bare_inlined
def square_of_mean(scalars: Scalars, block: Superblock, start: int, i: int) -> np.float32:
    """The square of the mean of a group, but for the error of that."""
    mean, variance = _mean(scalars, block, start, i, False)
    if not variance < _FAR:
        counts = _no_outliers(block, i)
        mean, variance = add_up(center_value(block, i) * counts) / max(add_up(counts), _ONE), _ZERO
    return mean * mean - variance


@bare_inlined
def share_of_means(ratio: np.float32, n: np.float32) -> np.float32:
    """What squares of means of as many as n equal groups are of all squares, beyond chance."""
    share = (ratio - _SIXTEENTH) / (_ONE - _SIXTEENTH)
    return min(share, _MOST) if share > _LEAST_SHARE / np.sqrt(n) else _ZERO


@bare_inlined
def _expected_mean(
    scalars: Scalars, block: Superblock, i: int, size: np.float32, share: np.float32
) -> np.float32:
    """The mean of a group by a sign: of what is decoded without a minimum, or of its outlier."""
    center, counts = center_value(block, i), _no_outliers(block, i)
    told, known = add_up(center * counts) / max(add_up(counts), _ONE), np.sqrt(share)
    # Beside uneven levels, weights far smaller than the least had no say in the scale's sign.
    had_say = told != _ZERO and (scalars.simple[0] or told * told < size)
    if scalars.rows[MINIMA] > _ZERO or not had_say:
        square = squares(block, i)
        largest = largest_lane(square)
        told, known = add_up(where(square == largest, center, splat(_ZERO))), share
        if not largest > block.limit[i]:
            return _ZERO
    return known * np.sqrt(_OF_SIGN * size) * (_ONE if told > _ZERO else -_ONE)


@bare_inner
def drawn_mean(
    scalars: Scalars, block: Superblock, start: int, i: int, size: np.float32, share: np.float32
) -> Any:
    """Mean and variance of the prior of a group whose weights have the mean square `size`."""
    mean, variance = _mean(scalars, block, start, i, bool(share > _ZERO))
    of_means, expected = share * size, _ZERO
    known = of_means
    if variance < _FAR:
        known = max(of_means, mean * mean - _BEYOND_CHANCE * (variance + size * _SIXTEENTH))
    if known == of_means:
        expected = _expected_mean(scalars, block, i, size, share)
        known -= expected * expected
    if not variance < _FAR:
        return expected, size - expected * expected
    if not known > _ZERO:
        return _ZERO, size
    drawn = known / (known + variance)
    return expected + (mean - expected) * drawn, size - of_means + variance * drawn

"""Superblocks of which many weights have an end code, as those beside each other are alike.

The densities were drawn from sub-blocks in which few weights have an end code, and these lie beyond
the last level. In smooth filters, and where weights were pruned by size, half of a sub-block may
have it, and its scale was fitted to them: they cannot all be beyond. A superblock is one of these
where more than 0.23 of the codes that are not of level 0 are the lowest code, which the largest
weight of a sub-block has. Of normal weights 0.09 are, in the superblocks of llama-29m at most 0.16,
in smooth filters 0.35. Where three weights of a sub-block or more have the same end code, their
densities become those by which `linear` weighs decoded values v, with N the noise of the type:

    log g(u) = -u^2 / (2 N),    u = (x - v) / s

Where all but a few weights are 0, that is too wide. A scale s is found there by least squares, with
weights w that grow with the size, and rounded to a multiple of d. With the levels y and w = abs(y)

    sum a (x - v) = 0,    a = w y / sum w y^2,    with the variance R = d^2 / 12 + s^2 N / 4 sum a^2

as the true w are not known. The densities are tilted for that, p_i(x) exp(t a_i x), which are those
nearest to them with other means (Csiszar, "I-divergence geometry of probability distributions", The
Annals of Probability 3(1), 1975). As all weights are alike, so are the errors of their means; with
deviations e_i, the sum of them has the variance D, and t makes it

    sum a (mean of x - v)  ->  R / (R + D) of that,     D = (sum abs(a) e)^2

by Newton's method. Only types of few levels and without minima (Q3_K) are looked at, and only where
they are the finest input: few weights have an end code of others.
"""

from typing import Any

import numpy as np

from recover._compiled.across import add_up, any_lane, largest_lane, sum_lanes
from recover._compiled.doubles import n_true
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import fused, load, load_bytes, splat, sqrt, store, where
from recover.estimators._one_sided import MEANS
from recover.estimators._outliers import is_apart, take_own_prior
from recover.estimators._product_tables import (
    CENTER_UNIT,
    CURVATURE_UNIT,
    LEVEL,
    MINIMA,
    H,
    Scalars,
)
from recover.estimators._proven import FEWEST_STEPS
from recover.estimators._rule import density, moments
from recover.estimators._superblock import (
    OUTLIER_ERROR,
    Superblock,
    center_value,
    level_of,
    steps_of,
    value_of,
)
from recover.estimators._zeros import zero_mass

_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_FAR = np.float32(np.inf)
_EVENLY = np.float32(1 / 12)  # the variance of a place in a step
_MANY = np.float32(0.23)  # of the codes that are not of level 0
_FEWEST = 3  # of one sub-block
_N_STEPS = 4  # of Newton's method


@bare_inlined
def may_be_alike(scalars: Scalars) -> bool:
    """Whether many weights may have an end code of the first input."""
    has_few = scalars.ends[1] - scalars.ends[0] < FEWEST_STEPS and scalars.extremes[0] < 0
    return scalars.simple[0] and has_few and not scalars.rows[MINIMA] > _ZERO


@bare_inlined
def _n_at_end(scalars: Scalars, start: int, i: int) -> int:
    """How many weights of group `i` have the commoner end code."""
    codes = load_bytes(scalars.codes, 16 * (start + i))
    return max(n_true(codes == scalars.ends[0]), n_true(codes == scalars.ends[1]))


@bare_inlined
def _are_many(scalars: Scalars, block: Superblock, start: int) -> bool:
    """Whether many weights of a superblock have the lowest code."""
    n_lowest = n_others = splat(_ZERO)
    lowest, zero = scalars.ends[0], -int(scalars.rows[LEVEL])
    all_usable = not any_lane(load(block.inverse, 0) == _ZERO)
    for i in range(16):
        if all_usable or block.inverse[i] != _ZERO:
            codes = load_bytes(scalars.codes, 16 * (start + i))
            n_lowest = where(codes == lowest, n_lowest + _ONE, n_lowest)
            n_others = where(codes == zero, n_others, n_others + _ONE)
    return sum_lanes(n_lowest) > _MANY * sum_lanes(n_others)


@bare_inner
def make_alike(
    scalars: Scalars,
    block: Superblock,
    start: int,
    prior: np.float32,
    is_sparse: bool,
    is_uneven: bool,
) -> None:
    """Change the densities of a superblock of which many weights have an end code, see above.

    Everything else is known of it. `is_sparse` says whether all but a few are 0, `is_uneven`
    whether groups have priors of their own.
    """
    if not _are_many(scalars, block, start):
        return
    d, _ = steps_of(scalars, 0, block)
    for i in range(16):
        if block.inverse[i] != _ZERO and _n_at_end(scalars, start, i) >= _FEWEST:
            if is_sparse:
                _tilt(scalars, block, start, i, prior, d)
            else:
                _take_decoded(scalars, block, start, i)
                if is_uneven:
                    take_own_prior(block, i, prior, block.each[MEANS + i], is_apart(block, i))


@bare_inner
def _take_decoded(scalars: Scalars, block: Superblock, start: int, i: int) -> None:
    """Exchange the densities of group `i` for normal ones around the decoded values."""
    n, center = scalars.codes.size // scalars.noise.size, center_value(block, i)
    gradient = curvature = splat(_ZERO)
    for k in range(scalars.noise.size):
        inverse = block.inverse[16 * k + i]
        if inverse != _ZERO:
            precision = inverse * inverse / scalars.noise[k] * block.unit[i] * CURVATURE_UNIT
            off = center - value_of(scalars, k, k * n + 16 * (start + i))
            gradient = gradient - off * (precision * CENTER_UNIT)
            curvature = curvature - splat(precision * block.unit[i])
    store(block.gradient, 16 * i, gradient)
    store(block.curvature, 16 * i, curvature)


@bare_inlined
def _means(block: Superblock, i: int, prior: np.float32) -> Any:
    """Means and variances of the densities of a group."""
    middle, width, _, odd, even = density(block, i, prior)
    m0, m1, m2 = moments(odd, even)
    mean, unit = m1 / m0, width * (_HALF * np.float32(H))
    variance, center = unit * unit * (m2 / m0 - mean * mean), fused(unit, mean, middle)
    if block.zeros[0] > _ZERO:
        others = m0 / (m0 + zero_mass(block, i, middle, width, odd, even))
        variance = others * fused(center * center, splat(_ONE) - others, variance)
        center = others * center
    return center, variance


@bare_inner
def _tilt(
    scalars: Scalars, block: Superblock, start: int, i: int, prior: np.float32, d: np.float32
) -> None:
    """Tilt the densities of group `i` towards what the fit of its scale says."""
    level, scale = level_of(scalars, 0, load_bytes(scalars.codes, 16 * (start + i))), block.scale[i]
    pull = abs(level) * level
    each = pull / add_up(pull * level)
    rounded = scale * scale * scalars.noise[0] * OUTLIER_ERROR * add_up(each * each)
    rounded += d * d * _EVENLY
    target, nothing = _ZERO, splat(_ZERO)
    for step in range(_N_STEPS):
        mean, variance = _means(block, i, prior)
        counts = (each != _ZERO) & (variance > _ZERO) & (variance < _FAR)
        off = add_up(where(counts, each * (mean - center_value(block, i)), nothing))
        spread = where(counts, abs(each) * sqrt(variance), nothing)
        if step == 0:
            alike = add_up(spread)
            target = off * (rounded / (alike * alike + rounded))
        most = _ONE / largest_lane(spread)  # no mean moves by more than a deviation
        tilt = max(min((target - off) / add_up(spread * spread), most), -most)
        if not abs(tilt) < _FAR:
            break
        per_unit = tilt * block.unit[i] * (CURVATURE_UNIT * CENTER_UNIT)
        store(block.gradient, 16 * i, fused(each, splat(per_unit), load(block.gradient, 16 * i)))

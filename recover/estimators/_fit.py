"""Sub-blocks of which most weights have one end code: what the fit of the scale says of them.

The density of an end code was drawn from sub-blocks in which few weights have one, and these are
beyond the last level. In smooth filters, and where weights were pruned by size, half of a sub-block
may have it; as its scale s was fitted to them by least squares, they cannot all be beyond. With the
levels y of the codes, and weights w of the fit which grow with the size, the scale that was found is

    sum w y x / sum w y^2 = sum a x,        a = w y / sum w y^2,  w = |y|

and it was rounded to a multiple of d then. So what the weights x are off what is decoded, v, is 0 on
the whole:

    sum a (x - v) = 0,  with the variance  R = d^2 / 12 + s^2 N sum a^2

with the mean square error N of a weight, as the weights of the fit are not known. Densities p_i are
tilted for that, p_i(x) exp(t a_i x) (the distribution nearest to theirs with such a mean: Csiszar,
"I-divergence geometry of probability distributions", The Annals of Probability 3(1), 1975), by the
t with

    sum a (mean of x - v) + R t = 0

found by Newton's method. Types of few levels and without minima alone are looked at (Q3_K), where
they are the finest input: of others few weights have an end code.
"""

from typing import Any

import numpy as np

from recover._compiled.across import add_up, largest_lane
from recover._compiled.doubles import n_true
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import fused, load, load_bytes, splat, sqrt, store, where
from recover.estimators._one_sided import MEANS
from recover.estimators._outliers import take_own_prior
from recover.estimators._product_tables import (
    CENTER_UNIT,
    CURVATURE_UNIT,
    MINIMA,
    H,
    Scalars,
)
from recover.estimators._proven import FEWEST_STEPS
from recover.estimators._rule import density, moments
from recover.estimators._superblock import Superblock, center_value, level_of, steps_of, value_of
from recover.estimators._zeros import zero_mass

_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_FAR = np.float32(np.inf)
_EVENLY = np.float32(1 / 12)  # the variance of a place in a step
_UNKNOWN = np.float32(1 / 4)
_MANY = np.float32(0.27)  # of the weights that are not of level 0
_FEWEST = 3  # of one sub-block
_N_STEPS = 4  # of Newton's method


@bare_inlined
def may_be_clipped(scalars: Scalars) -> bool:
    """Whether many weights of a sub-block may have an end code of the first input."""
    has_few = scalars.ends[1] - scalars.ends[0] < FEWEST_STEPS
    return scalars.simple[0] and has_few and scalars.extremes[0] < 0 and not scalars.rows[MINIMA] > _ZERO


@bare_inlined
def _means(block: Superblock, i: int, prior: np.float32) -> Any:
    """Means and variances of the densities of a group."""
    middle, width, _, odd, even = density(block, i, prior)
    m0, m1, m2 = moments(odd, even)
    mean, unit = m1 / m0, width * (_HALF * np.float32(H))
    variance = unit * unit * (m2 / m0 - mean * mean)
    center = fused(unit, mean, middle)
    if block.zeros[0] > _ZERO:
        others = m0 / (m0 + zero_mass(block, i, middle, width, odd, even))
        variance = others * fused(center * center, splat(_ONE) - others, variance)
        center = others * center
    return center, variance


@bare_inner
def _tilt(
    scalars: Scalars, block: Superblock, start: int, i: int, prior: np.float32, d: np.float32
) -> None:
    """See above; of group `i`."""
    level, scale = level_of(scalars, 0, load_bytes(scalars.codes, 16 * (start + i))), block.scale[i]
    pull = abs(level) * level
    each = pull / add_up(pull * level)
    square = each * each
    rounded = d * d * _EVENLY + scale * scale * scalars.noise[0] * (_UNKNOWN * add_up(square))
    per_unit = block.unit[i] * (CURVATURE_UNIT * CENTER_UNIT)
    target, nothing = _ZERO, splat(_ZERO)
    for step in range(_N_STEPS):
        mean, variance = _means(block, i, prior)
        counts = (each != _ZERO) & (variance > _ZERO) & (variance < _FAR)
        off = add_up(where(counts, each * (mean - center_value(block, i)), nothing))
        spread = add_up(where(counts, square * variance, nothing))
        if step == 0:
            alike = add_up(where(counts, abs(each) * sqrt(variance), nothing))
            known = alike * alike
            target = off * (rounded / (known + rounded))
        tilt = (target - off) / spread
        most = _ONE / largest_lane(where(counts, abs(each) * sqrt(variance), nothing))
        tilt = max(min(tilt, most), -most)
        if not abs(tilt) < _FAR:
            break
        gradient = load(block.gradient, 16 * i)
        store(block.gradient, 16 * i, fused(each, splat(tilt * per_unit), gradient))


@bare_inner
def _forget(scalars: Scalars, block: Superblock, start: int, i: int) -> None:
    at, n = 16 * i, scalars.codes.size // scalars.noise.size
    keep = splat(_ZERO)
    if block.zeros[0] > _ZERO:
        keep = load(block.may_be_zero, at)
    gradient, curvature = load(block.gradient, at), load(block.curvature, at)
    store(block.gradient, at, splat(_ZERO))
    store(block.curvature, at, splat(_ZERO))
    for k in range(scalars.noise.size):
        if block.inverse[16 * k + i] != _ZERO:
            ratio = block.unit[i] * block.inverse[16 * k + i]
            off = center_value(block, i) - value_of(scalars, k, k * n + 16 * (start + i))
            slope = CURVATURE_UNIT * CENTER_UNIT * ratio * block.inverse[16 * k + i] / scalars.noise[k]
            store(block.gradient, at, load(block.gradient, at) - off * slope)
            store(block.curvature, at, load(block.curvature, at) - splat(CURVATURE_UNIT * ratio * ratio / scalars.noise[k]))
    store(block.gradient, at, where(keep > _ZERO, gradient, load(block.gradient, at)))
    store(block.curvature, at, where(keep > _ZERO, curvature, load(block.curvature, at)))


@bare_inlined
def _n_clipped(scalars: Scalars, start: int, i: int) -> Any:
    """How many weights of group `i` have the end code that more have; how many are not of level 0."""
    codes = load_bytes(scalars.codes, 16 * (start + i))
    n_low, n_high = n_true(codes == scalars.ends[0]), n_true(codes == scalars.ends[1])
    return max(n_low, n_high), n_true(level_of(scalars, 0, codes) != _ZERO)


@bare_inner
def hold_to_fit(
    scalars: Scalars, block: Superblock, start: int, prior: np.float32, is_sparse: bool, is_uneven: bool
) -> None:
    """Tilt the densities of a superblock of which many weights have an end code of the first input.

    Everything else is known of it.
    """
    n_clipped = n_all = 0
    for i in range(16):
        if block.inverse[i] != _ZERO:
            clipped, not_zero = _n_clipped(scalars, start, i)
            n_clipped, n_all = n_clipped + clipped, n_all + not_zero
    if not np.float32(n_clipped) > _MANY * np.float32(n_all):
        return
    d, _ = steps_of(scalars, 0, block)
    for i in range(16):
        clipped, _ = _n_clipped(scalars, start, i)
        if block.inverse[i] != _ZERO and clipped >= _FEWEST:
            if is_sparse:
                _tilt(scalars, block, start, i, prior, d)
            else:
                _forget(scalars, block, start, i)
                if is_uneven:
                    take_own_prior(block, i, prior, block.each[MEANS + i], splat(_ZERO) != splat(_ZERO))

"""Sub-blocks of which few weights are not 0: what is decoded is nearer to these.

An encoder fits the scale of a sub-block to its weights; the larger a weight the more. Zeros have no
say in that. So a weight that is most of its sub-block is next to what is decoded. With the leverage
h of a weight, its share of the squares of the sub-block, (1 - h)^2 is left of the mean square error
N of others (of the leverage of fits see Hoaglin and Welsch, "The hat matrix in regression and
ANOVA", The American Statistician 32(1), 1978). Measured on pruned weights, by 1 - h:

    1 - h     0.25          0.45          0.65          0.85         0.97
    E / N     0.04 to 0.44  0.12 to 0.53  0.39 to 0.85  0.65 to 1.4  0.82 to 1.15

of six types, plain and with importance matrices. The scale is rounded then, to the integer l times
one of the superblock, and minima to multiples of dmin. That moves the level v = s y + o by up to
y / (2 l) and dmin / (2 s) steps, evenly. So the mean square error is, in units of the squared
scale,

    E = 1.25 N (1 - h)^2 + (y / l)^2 / 12 + (dmin / s)^2 / 12

The densities were drawn where all weights count. Those of weights that are not 0 become those of
this error, where it is less, by a normal density around what is decoded:

    log g(u)  ->  log g(u) - u^2 (1 / E - 1 / N) / 2        u = (x - v) / s

Of end codes, which the largest weights have, the precision of g stands in for 1 / N where it is
more.
"""

from typing import Any

import numpy as np

from recover._compiled.across import add_up, largest_lane
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import larger, load, load_bytes, splat, where
from recover.estimators._accumulate import add_to_group, density_of_ends
from recover.estimators._coarse import step_of_minima
from recover.estimators._product_tables import CURVATURE_UNIT, N_COLUMNS, STEPS, Scalars
from recover.estimators._superblock import Superblock, level_of, value_of

_ZERO, _ONE = np.float32(0), np.float32(1)
_EVENLY = np.float32(1 / 12)  # the variance of a place in a step
_LEAST = np.float32(2.0**-12)  # of N
_OF_OTHERS = np.float32(1.25)


@bare_inlined
def _not_zero(block: Superblock, i: int) -> Any:
    """Which weights of a group cannot be 0."""
    return load(block.may_be_zero, 16 * i) == _ZERO


@bare_inlined
def _squares(scalars: Scalars, k: int, block: Superblock, start: int, i: int) -> Any:
    """Of what input `k` says of the weights of a group that cannot be 0."""
    n = scalars.codes.size // scalars.noise.size
    value = value_of(scalars, k, k * n + 16 * (start + i))
    return where(_not_zero(block, i), value * value, splat(_ZERO))


@bare_inlined
def _part_left(
    scalars: Scalars, k: int, block: Superblock, start: int, i: int, n_groups: int
) -> Any:
    """``1.25 (1 - h)^2`` of the weights of a group.

    Groups beside each other with the same scale and offset are one sub-block.
    """
    squares, at, other = _squares(scalars, k, block, start, i), 16 * k + i, i ^ 1
    total, beside = add_up(squares), 16 * k + other
    same = block.scale[at] == block.scale[beside] and block.offset[at] == block.offset[beside]
    if same and other < n_groups:
        total += add_up(_squares(scalars, k, block, start, other))
    left = splat(_ONE) - squares / larger(splat(total), squares)
    return where(squares > _ZERO, left * left * _OF_OTHERS, splat(_ONE))


@bare_inner
def expect_less_of_few(scalars: Scalars, block: Superblock, start: int, n_groups: int) -> None:
    """Narrow the densities of a superblock of which many weights are 0, see above."""
    n = scalars.codes.size // scalars.noise.size
    for k in range(scalars.noise.size):
        if scalars.extremes[4 * k] >= 0:  # no fit: the largest weight is next to a level
            continue
        noise, steps, d = scalars.noise[k], scalars.rows[N_COLUMNS * k + STEPS], _ZERO
        usable = load(block.inverse, 16 * k) != _ZERO
        if steps > _ZERO:
            scales = where(usable, abs(load(block.scale, 16 * k)), splat(_ZERO))
            d = largest_lane(scales) / steps
        minima = where(usable, abs(load(block.offset, 16 * k)), splat(_ZERO))
        dmin = step_of_minima(scalars, k, minima)
        for i in range(n_groups):
            inverse = block.inverse[16 * k + i]
            if inverse == _ZERO:
                continue
            left = _part_left(scalars, k, block, start, i, n_groups)
            codes = load_bytes(scalars.codes, k * n + 16 * (start + i))
            level = level_of(scalars, k, codes)
            off, off_minima = level * (d * inverse), splat(dmin * inverse)
            error = (off * off + off_minima * off_minima) * _EVENLY
            error = error + left * noise
            error = larger(error, splat(noise * _LEAST))
            _, known = density_of_ends(k, block, i, codes)
            more = larger(-known, splat(CURVATURE_UNIT / noise)) - splat(CURVATURE_UNIT) / error
            more = where(_not_zero(block, i) & (more < _ZERO), more, splat(_ZERO))
            add_to_group(scalars, k, block, i, codes, splat(_ZERO), more)

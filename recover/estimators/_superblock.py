"""What is known of the weights of one superblock, gathered from one input after the other.

The logarithms of the densities are quadratic, so their sum is one quadratic polynomial in the
weight, whatever the number of inputs. Sixteen weights, a group, are worked on at once.
"""

import threading
from typing import Any, NamedTuple

import numpy as np

from recover._compiled.across import add_up
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import (
    fused,
    gather,
    larger,
    load,
    load_bytes,
    smaller,
    splat,
    store,
    to_f32,
    where,
)
from recover._compiled.memory import aligned
from recover.estimators._coarse import (
    HIGH_CURVATURE,
    HIGH_GRADIENT,
    HIGH_REACH,
    LOW_CURVATURE,
    LOW_GRADIENT,
    LOW_REACH,
    N_ENDS,
    SHARPNESS,
    describe_ends,
)
from recover.estimators._product_tables import (
    CENTER_UNIT,
    CURVATURE,
    CURVATURE_UNIT,
    FAR_OFF,
    GRADIENT,
    LEVEL,
    N_COLUMNS,
    NEAR,
    Scalars,
)
from recover.quants import F32Array

_ZERO = np.float32(0)
_ONE = np.float32(1)
_FAR = np.float32(np.inf)
OUTLIER = np.float32(40)
"""The square of a weight over the mean square of its superblock."""
OUTLIER_ERROR = np.float32(1 / 4)  # its square error over that of others


@bare_inlined
def is_finite(scalars: Scalars, at: int) -> bool:
    """Whether the group at this place of `Scalars.scale` is not broken."""
    return np.isfinite(scalars.scale[at]) and np.isfinite(scalars.offset[at])


@bare_inlined
def level_of(scalars: Scalars, k: int, q: Any) -> Any:
    """What codes of input `k` stand for: ``level[q]``, or ``q + level[0]``."""
    if scalars.simple[k]:
        level = to_f32(q) + scalars.rows[N_COLUMNS * k + LEVEL]
    else:
        level = gather(scalars.levels, q + 256 * k)
    return level


@bare_inlined
def value_of(scalars: Scalars, k: int, at: int) -> Any:
    """What input `k` says of the group whose codes begin at `at`: ``v = s level[q] + o``."""
    level = level_of(scalars, k, load_bytes(scalars.codes, at))
    return level * scalars.scale[at // 16] + scalars.offset[at // 16]


@bare_inlined
def first_value(scalars: Scalars, g: int, n: int) -> Any:
    """What the first scalar input that is not broken says."""
    first = 0
    for k in range(scalars.noise.size):
        if is_finite(scalars, k * n // 16 + g):
            first = k
            break
    return value_of(scalars, first, first * n + 16 * g)


class Superblock(NamedTuple):
    """What is known of the (up to 16) groups of one superblock, in scratch memory.

    Attributes
    ----------
    scale, offset, inverse : float32 (K * 16,)
        Those of each input and group, and one over the scale; the latter is 0 where the input
        cannot be used.
    unit, per_unit : float32 (16,)
        Scale of the first usable input, and one over it; 1 if there is none.
    center : float32 (256,)
        What the first usable input says, or 0, in units and `CENTER_UNIT`.
    low, high : float32 (256,)
        Bounds of the weights.
    gradient, curvature : float32 (256,)
        Derivatives of the log density at `center`: the first, which has no share of the prior, and
        the second.
    limit : float32 (16,)
        Squares of weights beyond which they are taken for outliers.
    fixed_low, fixed_high : float32 (256,)
        Bounds of the weights that are known but for rounding; infinite for the others.
    odds : float32 (K * 16,)
        Of each input, each of two pairs of extreme codes and each block of 32: the odds of a weight
        with such a code to be the one that is extreme.
    zeros : float32 (16,)
        The first says how likely weights are exactly 0 (see `recover.estimators._zeros`).
    each : float32 (7 * 16,)
        Of the scalar input at hand, for each group: what level 0 says and the bounds of that, the
        level of weights that are 0, what takes centers to levels and derivatives to units.
    ends : float32 (7 * 16,)
        See `recover.estimators._coarse`.
    """

    scale: F32Array
    offset: F32Array
    inverse: F32Array
    unit: F32Array
    per_unit: F32Array
    center: F32Array
    low: F32Array
    high: F32Array
    gradient: F32Array
    curvature: F32Array
    limit: F32Array
    fixed_low: F32Array
    fixed_high: F32Array
    odds: F32Array
    zeros: F32Array
    each: F32Array
    ends: F32Array


@bare_inlined
def center_value(block: Superblock, i: int) -> Any:
    """What the first usable scalar input says of group `i`, or 0."""
    return load(block.center, 16 * i) * (block.unit[i] / CENTER_UNIT)


_ZERO_SAYS, _ZERO_FROM, _ZERO_TO, _ZERO_AT, _PER_UNIT, _TIMES, _SQUARE = range(0, 7 * 16, 16)


class _Memory(threading.local):
    """Of each thread, by the number of scalar inputs."""

    def __init__(self) -> None:
        self.blocks: dict[int, Superblock] = {}


_memory = _Memory()


def new_superblock(n_scalars: int) -> Superblock:
    """Scratch memory of this thread, as if it were new."""
    block = _memory.blocks.get(n_scalars)
    if block is None:
        sizes = *[16 * n_scalars] * 3, 16, 16, *[256] * 5, 16, 256, 256, 16 * n_scalars, 16, 7 * 16
        block = Superblock(*(aligned(n, np.float32) for n in (*sizes, N_ENDS)))
        _memory.blocks[n_scalars] = block
    block.limit[:], block.fixed_low[:], block.fixed_high[:] = _FAR, -_FAR, _FAR
    return block


@bare_inlined
def open_superblock(scalars: Scalars, block: Superblock, start: int) -> Any:
    """Begin with a superblock: scales and units; the square errors of its first usable inputs."""
    noise = splat(_ZERO)
    unit = per_unit = splat(_ONE)
    n_groups = scalars.codes.size // scalars.noise.size // 16
    for k in range(scalars.noise.size - 1, -1, -1):
        scale = load(scalars.scale, k * n_groups + start)
        offset = load(scalars.offset, k * n_groups + start)
        inverse = splat(_ONE) / scale
        usable = (abs(inverse) < _FAR) & (abs(inverse) > _ZERO) & (abs(offset) < _FAR)
        store(block.scale, 16 * k, scale)
        store(block.offset, 16 * k, offset)
        store(block.inverse, 16 * k, where(usable, inverse, splat(_ZERO)))
        unit, per_unit = where(usable, scale, unit), where(usable, inverse, per_unit)
        noise = where(usable, scale * scale * scalars.noise[k], noise)
    store(block.unit, 0, unit)
    store(block.per_unit, 0, per_unit)
    return noise


@bare_inner
def replace_first(scalars: Scalars, block: Superblock, start: int) -> np.float32:
    """Begin with the groups whose first input cannot be used; the sum of their squares."""
    total = splat(_ZERO)
    n = scalars.codes.size // scalars.noise.size
    for i in range(16):
        if block.inverse[i] != _ZERO:
            continue
        at, center = 16 * i, splat(_ZERO)
        for k in range(1, scalars.noise.size):
            if block.inverse[16 * k + i] != _ZERO:
                center = value_of(scalars, k, k * n + 16 * start + at)
                break
        total = fused(center, center, total)
        store(block.center, at, center * (CENTER_UNIT * block.per_unit[i]))
        store(block.low, at, splat(-_FAR))
        store(block.high, at, splat(_FAR))
        store(block.gradient, at, splat(_ZERO))
        store(block.curvature, at, splat(_ZERO))
    return add_up(total)


@bare_inlined
def _prepare(scalars: Scalars, k: int, block: Superblock, simple: bool) -> None:
    """Fill in `Superblock.each` for input `k`; whether it is taken for simple."""
    each, scale, offset = block.each, load(block.scale, 16 * k), load(block.offset, 16 * k)
    inverse = load(block.inverse, 16 * k)
    ratio = load(block.unit, 0) * inverse
    row = N_COLUMNS * k
    near, far, level = scalars.rows[row + NEAR], scalars.rows[row + FAR_OFF], _ZERO
    if simple:
        level = scalars.rows[row + LEVEL]
    zero = fused(scale, level, offset)
    store(each, _ZERO_SAYS, zero)
    store(each, _ZERO_FROM, zero + scale * near if simple else zero)
    store(each, _ZERO_TO, zero + scale * far if simple else zero)
    store(each, _ZERO_AT, zero * -inverse)
    store(each, _PER_UNIT, ratio * (_ONE / CENTER_UNIT))
    store(each, _TIMES, ratio * CENTER_UNIT)
    store(each, _SQUARE, ratio * ratio)
    describe_ends(scalars, k, scale, inverse, block.ends)


@bare_inlined
def _confine(
    block: Superblock, at: int, below: Any, above: Any, scale: np.float32, first: bool
) -> None:
    """Bounds for a group that begins `at`."""
    if scale < _ZERO:
        below, above = above, below
    if not first:
        below = larger(load(block.low, at), below)
        above = smaller(load(block.high, at), above)
    store(block.low, at, below)
    store(block.high, at, above)


@bare_inlined
def _add_density(
    block: Superblock, i: int, level: Any, gradient: Any, curvature: Any, first: bool
) -> Any:
    """Add a density to those of group `i`, given where the input at hand says `level`.

    With the place p of the center in levels of the input, its scale s, and the unit U: the gradient
    grows by ``(gradient + curvature (p - level)) U / s``, the curvature by ``curvature (U / s)^2``.
    Returns what the first input says.
    """
    at, each = 16 * i, block.each
    center = splat(_ZERO)
    if first:
        center = fused(level, block.scale[i], splat(each[_ZERO_SAYS + i]))
        store(block.center, at, center * (CENTER_UNIT * block.per_unit[i]))
        gradient = gradient * CENTER_UNIT
    else:
        place = fused(load(block.center, at), each[_PER_UNIT + i], splat(each[_ZERO_AT + i]))
        gradient = fused(curvature, place - level, gradient)
        gradient = fused(gradient, each[_TIMES + i], load(block.gradient, at))
        curvature = fused(curvature, each[_SQUARE + i], load(block.curvature, at))
    store(block.gradient, at, gradient)
    store(block.curvature, at, curvature)
    return center


@bare_inlined
def _of_ends(
    block: Superblock, i: int, lowest: Any, highest: Any, gradient: Any, curvature: Any
) -> Any:
    """Derivatives for the codes of group `i`, given those of interior ones."""
    ends = block.ends
    gradient, curvature = gradient * ends[SHARPNESS + i], curvature * ends[SHARPNESS + i]
    gradient = where(highest, splat(ends[HIGH_GRADIENT + i]), gradient)
    gradient = where(lowest, splat(ends[LOW_GRADIENT + i]), gradient)
    curvature = where(highest, splat(ends[HIGH_CURVATURE + i]), curvature)
    curvature = where(lowest, splat(ends[LOW_CURVATURE + i]), curvature)
    return gradient, curvature


@bare_inlined
def _accumulate_simple(
    scalars: Scalars, k: int, block: Superblock, start: int, first: bool, varies: bool
) -> Any:
    """See `accumulate`; for levels that are consecutive integers and count from that of code 0."""
    rows, row = scalars.rows, N_COLUMNS * k
    lowest_code, highest_code = scalars.ends[2 * k], scalars.ends[2 * k + 1]
    # The end codes reach as far as codes beyond them would.
    before = np.float32(lowest_code) - rows[row + NEAR]
    beyond = np.float32(highest_code) - rows[row + FAR_OFF]
    c0, c1 = rows[row + GRADIENT], rows[row + GRADIENT + 1]
    d0, d1, d2 = rows[row + CURVATURE], rows[row + CURVATURE + 1], rows[row + CURVATURE + 2]
    at, total = k * (scalars.codes.size // scalars.noise.size) + 16 * start, splat(_ZERO)
    for i in range(16):
        if block.inverse[16 * k + i] == _ZERO:
            continue
        scale = block.scale[16 * k + i]
        code = load_bytes(scalars.codes, at + 16 * i)
        lowest, highest, q = code == lowest_code, code == highest_code, to_f32(code)
        below = where(lowest, splat(before + block.ends[LOW_REACH + i]), q)
        above = where(highest, splat(beyond + block.ends[HIGH_REACH + i]), q)
        below = fused(below, scale, splat(block.each[_ZERO_FROM + i]))
        above = fused(above, scale, splat(block.each[_ZERO_TO + i]))
        _confine(block, 16 * i, below, above, scale, first)
        gradient, curvature = fused(q, c1, splat(c0)), splat(d0)
        if varies:
            curvature = fused(q, fused(q, d2, splat(d1)), curvature)
        gradient, curvature = _of_ends(block, i, lowest, highest, gradient, curvature)
        center = _add_density(block, i, q, gradient, curvature, first)
        total = fused(center, center, total)
    return total


@bare_inner
def accumulate_any(scalars: Scalars, k: int, block: Superblock, start: int, first: bool) -> Any:
    """As `accumulate`, for any levels, from tables.

    The density of outliers (see `Superblock.limit`) is a narrow normal one.
    """
    rows, row = scalars.rows, N_COLUMNS * k
    _prepare(scalars, k, block, False)
    close = -CURVATURE_UNIT / (OUTLIER_ERROR * scalars.noise[k])
    lowest_code, highest_code = scalars.ends[2 * k], scalars.ends[2 * k + 1]
    at, total = k * (scalars.codes.size // scalars.noise.size) + 16 * start, splat(_ZERO)
    for i in range(16):
        if block.inverse[16 * k + i] == _ZERO:
            continue
        scale, zero = block.scale[16 * k + i], block.each[_ZERO_SAYS + i]
        code = load_bytes(scalars.codes, at + 16 * i)
        lowest, highest, q = code == lowest_code, code == highest_code, to_f32(code)
        level = gather(scalars.levels, code + 256 * k)
        below, above = gather(scalars.near, code + 256 * k), gather(scalars.far, code + 256 * k)
        below = where(lowest, splat(block.ends[LOW_REACH + i]), below)
        above = where(highest, splat(block.ends[HIGH_REACH + i]), above)
        below = fused(level + below, scale, splat(zero))
        above = fused(level + above, scale, splat(zero))
        _confine(block, 16 * i, below, above, scale, first)
        gradient = fused(q, rows[row + GRADIENT + 1], splat(rows[row + GRADIENT]))
        curvature = fused(q, rows[row + CURVATURE + 2], splat(rows[row + CURVATURE + 1]))
        curvature = fused(q, curvature, splat(rows[row + CURVATURE]))
        gradient, curvature = _of_ends(block, i, lowest, highest, gradient, curvature)
        size = load(block.center, 16 * i) * (block.unit[i] * (_ONE / CENTER_UNIT))
        outlier = size * size > block.limit[i]
        gradient, curvature = where(outlier, _ZERO, gradient), where(outlier, close, curvature)
        center = _add_density(block, i, level, gradient, curvature, first)
        total = fused(center, center, total)
    return total


@bare_inner
def _accumulate_varying(
    scalars: Scalars, k: int, block: Superblock, start: int, first: bool
) -> Any:
    """See `_accumulate_simple`."""
    return _accumulate_simple(scalars, k, block, start, first, True)


@bare_inlined
def accumulate(scalars: Scalars, k: int, block: Superblock, start: int, first: bool) -> Any:
    """Add what scalar input `k` says of a superblock; if it is the first, begin with that.

    ``log g(u) = c u + d u^2`` with ``u = (x - v) / s`` on ``near <= u <= far``, in units of
    `CURVATURE_UNIT`: c and d of interior codes are ``c0 + c1 q`` and ``d0 + d1 q + d2 q^2``.
    Returns sums of squares of what the first input says.
    """
    if not scalars.simple[k]:
        return accumulate_any(scalars, k, block, start, k == 0)
    _prepare(scalars, k, block, True)
    if scalars.varies[k]:
        total = _accumulate_varying(scalars, k, block, start, k == 0)
    else:
        total = _accumulate_simple(scalars, k, block, start, first, False)
    return total

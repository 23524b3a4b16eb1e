"""What the scalar inputs say of a superblock: each adds its log density, and narrows the bounds.

A superblock is gone through once for each input: what that needs fits into sixteen registers, but
for numbers of the groups, which are read from tables whenever they are needed. Numbers of several
inputs at once would not fit.
"""

from typing import Any

import numpy as np

from recover._compiled.across import add_up, any_lane
from recover._compiled.jit import bare_inlined, bare_inner
from recover._compiled.lanes import (
    fused,
    gather,
    larger,
    load,
    load_bytes,
    smaller,
    splat,
    spread,
    store,
    to_f32,
    where,
)
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
    exchange,
    has_end,
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
from recover.estimators._superblock import N_EACH, OUTLIER_ERROR, Superblock, replace_first

_ZERO = np.float32(0)
_ONE = np.float32(1)
_FAR = np.float32(np.inf)
# What is called with a literal is compiled once more.
_FIRST: Any = np.int64(0)
_ZERO_SAYS, _ZERO_FROM, _ZERO_TO, _SCALE, _INTERIOR = range(0, 5 * 16, 16)
_ZERO_AT, _PER_UNIT, _TIMES, _SQUARE = range(5 * 16, N_EACH, 16)


@bare_inlined
def _prepare(scalars: Scalars, k: int, block: Superblock, simple: bool) -> None:
    """Fill in `Superblock.each` and `Superblock.ends` for input `k`, which is taken for simple."""
    scale, offset = load(block.scale, 16 * k), load(block.offset, 16 * k)
    inverse = load(block.inverse, 16 * k)
    ratio = load(block.unit, 0) * inverse
    each, at, row = block.each, N_EACH * k, N_COLUMNS * k
    near, far, level = scalars.rows[row + NEAR], scalars.rows[row + FAR_OFF], _ZERO
    if simple:
        level = scalars.rows[row + LEVEL]
    zero = fused(scale, level, offset)
    store(each, at + _ZERO_SAYS, zero)
    store(each, at + _ZERO_FROM, zero + scale * near if simple else zero)
    store(each, at + _ZERO_TO, zero + scale * far if simple else zero)
    store(each, at + _SCALE, scale)
    store(each, at + _ZERO_AT, zero * -inverse)
    store(each, at + _PER_UNIT, ratio * (_ONE / CENTER_UNIT))
    store(each, at + _TIMES, ratio * CENTER_UNIT)
    store(each, at + _SQUARE, ratio * ratio)
    # The end codes reach as far as codes beyond them would.
    before = np.float32(scalars.ends[2 * k]) - near if simple else _ZERO
    beyond = np.float32(scalars.ends[2 * k + 1]) - far if simple else _ZERO
    describe_ends(scalars, k, scale, offset, inverse, before, beyond, block.ends)
    negative, unusable = scale < _ZERO, inverse == _ZERO
    if any_lane(negative):
        exchange(each, at + _ZERO_FROM, at + _ZERO_TO, negative)
    sharp = load(block.ends, N_ENDS * k + SHARPNESS)
    store(each, at + _INTERIOR, scalars.rows[row + CURVATURE] * sharp)
    if any_lane(unusable):
        _say_nothing(block, k, unusable)


@bare_inlined
def _say_nothing(block: Superblock, k: int, mask: Any) -> None:
    """Let input `k` say nothing of some groups."""
    for at in range(N_EACH * k, N_EACH * (k + 1), 16):
        store(block.each, at, where(mask, _ZERO, load(block.each, at)))
    for at in range(N_ENDS * k, N_ENDS * (k + 1), 16):
        store(block.ends, at, where(mask, _ZERO, load(block.ends, at)))
    at = N_EACH * k
    store(block.each, at + _ZERO_FROM, where(mask, -_FAR, load(block.each, at + _ZERO_FROM)))
    store(block.each, at + _ZERO_TO, where(mask, _FAR, load(block.each, at + _ZERO_TO)))


@bare_inlined
def _confine(block: Superblock, at: int, below: Any, above: Any, first: bool) -> None:
    """Bounds for a group that begins `at`."""
    if not first:
        below = larger(load(block.low, at), below)
        above = smaller(load(block.high, at), above)
    store(block.low, at, below)
    store(block.high, at, above)


@bare_inlined
def _center_of(block: Superblock, i: int, level: Any) -> Any:
    """What the first input says of group `i`, given its level."""
    return fused(level, spread(block.each, _SCALE + i), spread(block.each, _ZERO_SAYS + i))


@bare_inlined
def _in_units(block: Superblock, i: int, center: Any) -> Any:
    """A center of group `i` in units and `CENTER_UNIT`."""
    return center * (CENTER_UNIT * block.per_unit[i])


@bare_inlined
def _joined(
    block: Superblock, k: int, i: int, center: Any, says: tuple[Any, ...], known: tuple[Any, ...]
) -> Any:
    """Derivatives that are `known` of group `i` and those of input `k`, which says its level first.

    With the place p of the center in levels of the input, its scale s, and the unit U: the gradient
    grows by ``(gradient + curvature (p - level)) U / s``, the curvature by ``curvature (U / s)^2``.
    """
    each, at = block.each, N_EACH * k + i
    level, gradient, curvature = says
    place = fused(center, spread(each, at + _PER_UNIT), spread(each, at + _ZERO_AT))
    gradient = fused(curvature, place - level, gradient)
    gradient = fused(gradient, spread(each, at + _TIMES), known[0])
    return gradient, fused(curvature, spread(each, at + _SQUARE), known[1])


@bare_inlined
def _add_density(
    block: Superblock, k: int, i: int, level: Any, gradient: Any, curvature: Any, first: bool
) -> Any:
    """Add a density to those of group `i`, given where input `k` says `level`: see `_joined`.

    Returns what the first input says.
    """
    at = 16 * i
    center = splat(_ZERO)
    if first:
        center = _center_of(block, i, level)
        store(block.center, at, _in_units(block, i, center))
        gradient = gradient * CENTER_UNIT
    else:
        known = load(block.gradient, at), load(block.curvature, at)
        says = level, gradient, curvature
        gradient, curvature = _joined(block, k, i, load(block.center, at), says, known)
    store(block.gradient, at, gradient)
    store(block.curvature, at, curvature)
    return center


@bare_inlined
def _of_ends(block: Superblock, at: int, which: Any, gradient: Any, curvature: Any) -> Any:
    """Derivatives for the codes of a group, given those of interior ones.

    `at` is the place of the group in `Superblock.ends`.
    """
    ends, (lowest, highest) = block.ends, which
    gradient = where(highest, spread(ends, at + HIGH_GRADIENT), gradient)
    gradient = where(lowest, spread(ends, at + LOW_GRADIENT), gradient)
    curvature = where(highest, spread(ends, at + HIGH_CURVATURE), curvature)
    curvature = where(lowest, spread(ends, at + LOW_CURVATURE), curvature)
    return gradient, curvature


@bare_inlined
def add_to_group(
    scalars: Scalars, k: int, block: Superblock, i: int, codes: Any, gradient: Any, curvature: Any
) -> None:
    """Add a density around what input `k` says to those of group `i`: see `_joined`."""
    at, level = 16 * i, to_f32(codes)
    if not scalars.simple[k]:
        level = gather(scalars.levels, codes + 256 * k)
    known, says = (
        (load(block.gradient, at), load(block.curvature, at)),
        (level, gradient, curvature),
    )
    gradient, curvature = _joined(block, k, i, load(block.center, at), says, known)
    store(block.gradient, at, gradient)
    store(block.curvature, at, curvature)


@bare_inlined
def density_of_ends(k: int, block: Superblock, i: int, codes: Any) -> Any:
    """The derivatives that input `k` adds to those weights of group `i` that have an end code."""
    at = N_ENDS * k + i
    return _of_ends(block, at, has_end(block.ends, at, codes), splat(_ZERO), splat(_ZERO))


@bare_inlined
def _codes_at(scalars: Scalars, k: int, start: int) -> int:
    """The place of the codes of input `k` in a superblock."""
    return k * (scalars.codes.size // scalars.noise.size) + 16 * start


@bare_inlined
def _bounds(block: Superblock, k: int, i: int, which: Any, q: Any) -> Any:
    """Bounds of group `i` by input `k`, whose levels are consecutive integers."""
    each, ends, (lowest, highest) = N_EACH * k + i, N_ENDS * k + i, which
    below = where(lowest, spread(block.ends, ends + LOW_REACH), q)
    above = where(highest, spread(block.ends, ends + HIGH_REACH), q)
    scale = spread(block.each, each + _SCALE)
    below = fused(below, scale, spread(block.each, each + _ZERO_FROM))
    return below, fused(above, scale, spread(block.each, each + _ZERO_TO))


@bare_inlined
def _accumulate_simple(
    scalars: Scalars, k: int, block: Superblock, start: int, first: bool, varies: bool
) -> Any:
    """See `_accumulate`; for levels that are consecutive integers, and count from that of code 0.

    d of interior codes is ``d0 + d1 q + d2 q^2`` if it varies.
    """
    rows, row = scalars.rows, N_COLUMNS * k
    c0, c1 = rows[row + GRADIENT], rows[row + GRADIENT + 1]
    d0, d1, d2 = rows[row + CURVATURE], rows[row + CURVATURE + 1], rows[row + CURVATURE + 2]
    at, total = _codes_at(scalars, k, start), splat(_ZERO)
    for i in range(16):
        codes = load_bytes(scalars.codes, at + 16 * i)
        q = to_f32(codes)
        which = has_end(block.ends, N_ENDS * k + i, codes)
        below, above = _bounds(block, k, i, which, q)
        _confine(block, 16 * i, below, above, first)
        sharp = spread(block.ends, N_ENDS * k + SHARPNESS + i)
        gradient = fused(q, c1, splat(c0)) * sharp
        curvature = spread(block.each, N_EACH * k + _INTERIOR + i)
        if varies:
            curvature = fused(q, fused(q, d2, splat(d1)), splat(d0)) * sharp
        gradient, curvature = _of_ends(block, N_ENDS * k + i, which, gradient, curvature)
        center = _add_density(block, k, i, q, gradient, curvature, first)
        total = fused(center, center, total)
    return total


@bare_inner
def accumulate_any(scalars: Scalars, k: int, block: Superblock, start: int, first: bool) -> Any:
    """As `_accumulate`, for any levels, from tables.

    The density of outliers (see `Superblock.limit`) is a narrow normal one.
    """
    rows, row = scalars.rows, N_COLUMNS * k
    _prepare(scalars, k, block, False)
    close = -CURVATURE_UNIT / (OUTLIER_ERROR * scalars.noise[k])
    at, total = _codes_at(scalars, k, start), splat(_ZERO)
    for i in range(16):
        if block.inverse[16 * k + i] == _ZERO:
            continue
        scale, zero, ends = block.scale[16 * k + i], block.each[N_EACH * k + i], N_ENDS * k + i
        code = load_bytes(scalars.codes, at + 16 * i)
        q, level = to_f32(code), gather(scalars.levels, code + 256 * k)
        below, above = gather(scalars.near, code + 256 * k), gather(scalars.far, code + 256 * k)
        if scale < _ZERO:
            below, above = above, below
        lowest, highest = which = has_end(block.ends, ends, code)
        below = where(lowest, spread(block.ends, ends + LOW_REACH), below)
        above = where(highest, spread(block.ends, ends + HIGH_REACH), above)
        below = fused(level + below, scale, splat(zero))
        above = fused(level + above, scale, splat(zero))
        _confine(block, 16 * i, below, above, first)
        gradient = fused(q, rows[row + GRADIENT + 1], splat(rows[row + GRADIENT]))
        curvature = fused(q, rows[row + CURVATURE + 2], splat(rows[row + CURVATURE + 1]))
        curvature = fused(q, curvature, splat(rows[row + CURVATURE]))
        sharp = block.ends[ends + SHARPNESS]
        gradient, curvature = _of_ends(block, ends, which, gradient * sharp, curvature * sharp)
        size = load(block.center, 16 * i) * (block.unit[i] * (_ONE / CENTER_UNIT))
        outlier = size * size > block.limit[i]
        gradient, curvature = where(outlier, _ZERO, gradient), where(outlier, close, curvature)
        center = _add_density(block, k, i, level, gradient, curvature, first)
        total = fused(center, center, total)
    return total


@bare_inner
def _accumulate_varying(
    scalars: Scalars, k: int, block: Superblock, start: int, first: bool
) -> Any:
    """See `_accumulate_simple`."""
    return _accumulate_simple(scalars, k, block, start, first, True)


@bare_inlined
def _accumulate(scalars: Scalars, k: int, block: Superblock, start: int, first: bool) -> Any:
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


@bare_inlined
def accumulate_all(scalars: Scalars, block: Superblock, start: int) -> np.float32:
    """Begin with what the scalar inputs say of a superblock.

    Returns the sum of the squares of what the first usable one says.
    """
    total = add_up(_accumulate(scalars, _FIRST, block, start, True))
    if any_lane(load(block.inverse, 0) == _ZERO):
        total += replace_first(scalars, block, start)
    for k in range(1, scalars.noise.size):
        _accumulate(scalars, k, block, start, False)
    return total

"""Kernels of the posterior: the product of the densities of all inputs, integrated.

The logarithms of the densities are quadratic, so their sum is one quadratic polynomial in the place
``t`` (-1 to 1) in the intersection of the cells, whatever the number of inputs.

Sixteen weights, a group, are worked on at once. A superblock of 16 groups is gone through once for
every input, which adds its density to what the earlier ones said, and once for the estimates: so
what the loops need fits into the registers. There is no call in them, their lengths are known and
arrays are flat, for LLVM's sake: each makes them up to twice as fast.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._jit import bare_inlined, bare_kernel
from recover.estimators._product_tables import (
    ATOMS,
    BEND,
    BEND_UNIT,
    FAR_END,
    FAR_OFF,
    LEVEL,
    N_COLUMNS,
    NEAR,
    NEAR_END,
    SLOPE,
    Asks,
    H,
    Others,
    Scalars,
)
from recover.quants import F32Array
from recover.quants._lanes import (
    add_up,
    any_lane,
    first_lane,
    fused,
    gather,
    larger,
    largest_lane,
    load,
    load_bytes,
    mask_bits,
    smaller,
    splat,
    sqrt,
    store,
    to_f32,
    where,
)

# A rule with nodes at 0, +-h and +-2h: the density at the outer nodes follows from that at the
# inner ones, as its logarithm is quadratic. h, the weights of the inner and outer nodes (that of
# the middle is 1) and the curve of `_exp` are those with the least error in mean and variance for
# densities exp(s t + b t**2 / 2) from -1 to 1 as merges of trained weights have them: s to +-15, b
# from -21 to 0.
_WEIGHTS = (1.0995, 0.8463)
_CURVE = np.float32(0.4523)
# The kernels count in units of the inner nodes' weight.
_MIDDLE = np.float32(1 / _WEIGHTS[0])
_OUTER = np.float32(_WEIGHTS[1] / _WEIGHTS[0])
_OUTER_FIRST, _OUTER_SECOND = np.float32(2) * _OUTER, np.float32(4) * _OUTER
_ALL = (1 + 2 * sum(_WEIGHTS)) / _WEIGHTS[0]
# Second derivatives of a log density are kept in one of these units, places at which the first one
# is taken in the other and the first one in their product: so they lead to an eighth of what the
# log density differs by at the inner nodes, which is what `_exp` wants.
_CENTER_UNIT = np.float32(2 / H)
_ZERO = np.float32(0)
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_DEVIATIONS = np.float32(4)
_FAR = np.float32(np.inf)
_NEARLY = np.float32(0.01)
_JUST_INSIDE = np.float32(1.001)
_END = np.float32(1 / H)
_STEEP, _NARROW_HILL = np.float32(100), np.float32(-0.24)
_NARROW = np.float32(2.0**-32)  # squared half width over the mean square of the weights
_OUTLIER = np.float32(40)  # the square of a weight over the mean square of its superblock
_WITHOUT_LARGEST = np.float32(1.28)  # the mean square of a normal group over that of 15 of 16
_OUTLIER_ERROR = np.float32(1 / 4)  # its square error over that of others
# Of the spread of weights around what a vector type says, see `_trust`.
_VARIES, _SHARED, _LEAST_SPREAD = np.float32(0.04), np.float32(0.02), np.float32(0.1)
_N_SAMPLED = 125  # superblocks of a tile from which the errors to expect are told


@bare_inlined
def _exp(y: Any) -> Any:
    """About ``exp(8 y)`` for moderate y."""
    y = larger(y, splat(-_ONE))
    y = fused(y, fused(y, _CURVE, splat(_ONE)), splat(_ONE))
    y = y * y
    y = y * y
    return y * y


@bare_inlined
def _is_finite(scalars: Scalars, at: int) -> bool:
    return np.isfinite(scalars.scale[at]) and np.isfinite(scalars.offset[at])


@bare_inlined
def _level(scalars: Scalars, k: int, q: Any) -> Any:
    if scalars.simple[k]:
        level = to_f32(q) + scalars.rows[N_COLUMNS * k + LEVEL]
    else:
        level = gather(scalars.levels, q + 256 * k)
    return level


@bare_inlined
def _value(scalars: Scalars, k: int, at: int) -> Any:
    """What input `k` says of the group whose codes begin at `at`."""
    level = _level(scalars, k, load_bytes(scalars.codes, at))
    return level * scalars.scale[at // 16] + scalars.offset[at // 16]


@bare_inlined
def _prove(low: Any, high: Any, scalars: Scalars, k: int, at: int) -> Any:
    """Intersect bounds with the cells of input `k`, as `recover.cells` does."""
    q = load_bytes(scalars.codes, at)
    below = gather(scalars.lower_levels, q + 256 * k)
    above = gather(scalars.upper_levels, q + 256 * k)
    s, o = scalars.scale[at // 16], scalars.offset[at // 16]
    if s < _ZERO:
        below, above = above, below
    error, slack = scalars.scale_error[at // 16], scalars.offset_error[at // 16]
    proven = below * s + o - (abs(below) * error + slack)
    low = where(proven > low, proven, low)  # not NaN, which infinite levels may give
    proven = above * s + o + (abs(above) * error + slack)
    return low, where(proven < high, proven, high)


@bare_inlined
def _moments(odd: Any, even: Any) -> Any:
    """The integrals of a density over 1, t / h and its square; `odd` and `even` as in `_density`.

    They are in a unit of their own: a flat density has `_ALL`.
    """
    right, left = _exp(even + odd), _exp(even - odd)
    product = right * left
    right2, left2 = right * right * product, left * left * product
    both, both2 = right + left, right2 + left2
    m0 = fused(both2, _OUTER, both + _MIDDLE)
    m1 = fused(right2 - left2, _OUTER_FIRST, right - left)
    return m0, m1, fused(both2, _OUTER_SECOND, both)


@bare_inlined
def _mode(odd: Any, even: Any) -> Any:
    """Where the density is largest, over h."""
    end = where(odd < _ZERO, splat(-_END), splat(_END))
    top = odd / even * -_HALF
    return where((even < _ZERO) & (abs(top) < _END), top, end)


@bare_inlined
def _has_extreme(q: Any, scalars: Scalars, pair: int) -> Any:
    """Which codes are of a pair of `Scalars.extremes`."""
    return (q == scalars.extremes[pair]) | (q == scalars.extremes[pair + 1])


@bare_inlined
def _first(scalars: Scalars, g: int, n: int) -> Any:
    """What the first scalar input that is not broken says."""
    for k in range(scalars.noise.size):
        if _is_finite(scalars, k * n // 16 + g):
            return _value(scalars, k, k * n + 16 * g)
    return _value(scalars, 0, 16 * g)


class _Superblock(NamedTuple):
    """What is known of the (up to 16) groups of one superblock, in scratch memory.

    Attributes
    ----------
    scale, offset, inverse : float32 (K * 16,)
        Those of each input and group, and one over the scale; the latter is 0 where the input
        cannot be used.
    unit, per_unit : float32 (16,)
        Scale of the first usable input, and one over it; 1 if there is none.
    center : float32 (256,)
        What the first usable input says, or 0, in units and `_CENTER_UNIT`.
    low, high : float32 (256,)
        Bounds of the weights.
    slope, bend : float32 (256,)
        Derivatives of the log density at `center`: the first, which has no share of the prior, and
        the second.
    pinned_low, pinned_high : float32 (256,)
        Bounds of the weights that are known but for rounding; infinite for the others.
    odds : float32 (K * 16,)
        Of each input, each of two pairs of extreme codes and each block of 32: the odds of a weight
        with such a code to be the one that is extreme.
    each : float32 (7 * 16,)
        Of the scalar input at hand, for each group: what level 0 says and the bounds of that, the
        level of weights that are 0, what takes centers to levels and derivatives to units.
    """

    scale: F32Array
    offset: F32Array
    inverse: F32Array
    unit: F32Array
    per_unit: F32Array
    center: F32Array
    low: F32Array
    high: F32Array
    slope: F32Array
    bend: F32Array
    pinned_low: F32Array
    pinned_high: F32Array
    odds: F32Array
    each: F32Array


_ZERO_SAYS, _ZERO_FROM, _ZERO_TO, _ZERO_AT, _PER_UNIT, _TIMES, _SQUARE = range(0, 7 * 16, 16)


def _new_superblock(n_scalars: int) -> _Superblock:
    """Scratch memory."""
    sizes = *[16 * n_scalars] * 3, 16, 16, *[256] * 7, 16 * n_scalars, 7 * 16
    block = _Superblock(*(np.empty(n, np.float32) for n in sizes))
    block.pinned_low[:], block.pinned_high[:] = -_FAR, _FAR
    return block


@bare_inlined
def _open(scalars: Scalars, block: _Superblock, start: int) -> Any:
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


@bare_kernel
def _replace_first(scalars: Scalars, block: _Superblock, start: int) -> np.float32:
    """Begin with the groups whose first input cannot be used; the sum of their squares."""
    total = splat(_ZERO)
    n = scalars.codes.size // scalars.noise.size
    for i in range(16):
        if block.inverse[i] != _ZERO:
            continue
        at, center = 16 * i, splat(_ZERO)
        for k in range(1, scalars.noise.size):
            if block.inverse[16 * k + i] != _ZERO:
                center = _value(scalars, k, k * n + 16 * start + at)
                break
        total = fused(center, center, total)
        store(block.center, at, center * (_CENTER_UNIT * block.per_unit[i]))
        store(block.low, at, splat(-_FAR))
        store(block.high, at, splat(_FAR))
        store(block.slope, at, splat(_ZERO))
        store(block.bend, at, splat(_ZERO))
    return add_up(total)


@bare_inlined
def _prepare(scalars: Scalars, k: int, block: _Superblock, simple: bool) -> None:
    """Fill in `_Superblock.each` for input `k`; whether it is taken for simple."""
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
    store(each, _PER_UNIT, ratio * (_ONE / _CENTER_UNIT))
    store(each, _TIMES, ratio * _CENTER_UNIT)
    store(each, _SQUARE, ratio * ratio)


@bare_inlined
def _confine(
    block: _Superblock, at: int, below: Any, above: Any, scale: np.float32, first: bool
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
def _add_density(block: _Superblock, i: int, level: Any, slope: Any, bend: Any, first: bool) -> Any:
    """Add a density to those of group `i`, given where the input at hand says `level`.

    Returns what the first input says.
    """
    at, each = 16 * i, block.each
    center = splat(_ZERO)
    if first:
        center = fused(level, block.scale[i], splat(each[_ZERO_SAYS + i]))
        store(block.center, at, center * (_CENTER_UNIT * block.per_unit[i]))
        slope = slope * _CENTER_UNIT
    else:
        place = fused(load(block.center, at), each[_PER_UNIT + i], splat(each[_ZERO_AT + i]))
        slope = fused(bend, place - level, slope)
        slope = fused(slope, each[_TIMES + i], load(block.slope, at))
        bend = fused(bend, each[_SQUARE + i], load(block.bend, at))
    store(block.slope, at, slope)
    store(block.bend, at, bend)
    return center


@bare_inlined
def _hear_simple(
    scalars: Scalars, k: int, block: _Superblock, start: int, first: bool, varies: bool
) -> Any:
    """See `_hear`; for levels that are consecutive integers and count from that of code 0."""
    rows, row = scalars.rows, N_COLUMNS * k
    lowest_code, highest_code = scalars.ends[2 * k], scalars.ends[2 * k + 1]
    # The end codes reach as far as codes beyond them would.
    before = np.float32(lowest_code) + (rows[row + NEAR_END] - rows[row + NEAR])
    beyond = np.float32(highest_code) + (rows[row + FAR_END] - rows[row + FAR_OFF])
    c0, c1 = rows[row + SLOPE], rows[row + SLOPE + 1]
    c_lowest, c_highest = rows[row + SLOPE + 2], rows[row + SLOPE + 3]
    d0, d1, d2 = rows[row + BEND], rows[row + BEND + 1], rows[row + BEND + 2]
    d_lowest, d_highest = rows[row + BEND + 3], rows[row + BEND + 4]
    at, total = k * (scalars.codes.size // scalars.noise.size) + 16 * start, splat(_ZERO)
    for i in range(16):
        if block.inverse[16 * k + i] == _ZERO:
            continue
        scale = block.scale[16 * k + i]
        code = load_bytes(scalars.codes, at + 16 * i)
        lowest, highest, q = code == lowest_code, code == highest_code, to_f32(code)
        below = fused(where(lowest, splat(before), q), scale, splat(block.each[_ZERO_FROM + i]))
        above = fused(where(highest, splat(beyond), q), scale, splat(block.each[_ZERO_TO + i]))
        _confine(block, 16 * i, below, above, scale, first)
        slope, bend = fused(q, c1, splat(c0)), splat(d0)
        if varies:
            bend = fused(q, fused(q, d2, splat(d1)), bend)
        slope = where(lowest, c_lowest, where(highest, c_highest, slope))
        bend = where(lowest, d_lowest, where(highest, d_highest, bend))
        center = _add_density(block, i, q, slope, bend, first)
        total = fused(center, center, total)
    return total


@bare_kernel
def _hear_any(
    scalars: Scalars, k: int, block: _Superblock, start: int, first: bool, limit: np.float32
) -> Any:
    """See `_hear`; for any levels, from tables.

    Of weights whose squares are beyond `limit` the density is the normal one of the type's typical
    errors, see `_begin_again`.
    """
    rows, row = scalars.rows, N_COLUMNS * k
    _prepare(scalars, k, block, False)
    close = -BEND_UNIT / (_OUTLIER_ERROR * scalars.noise[k])
    lowest_code, highest_code = scalars.ends[2 * k], scalars.ends[2 * k + 1]
    at, total = k * (scalars.codes.size // scalars.noise.size) + 16 * start, splat(_ZERO)
    for i in range(16):
        if block.inverse[16 * k + i] == _ZERO:
            continue
        scale, zero = block.scale[16 * k + i], block.each[_ZERO_SAYS + i]
        code = load_bytes(scalars.codes, at + 16 * i)
        lowest, highest, q = code == lowest_code, code == highest_code, to_f32(code)
        level = gather(scalars.levels, code + 256 * k)
        below = fused(level + gather(scalars.near, code + 256 * k), scale, splat(zero))
        above = fused(level + gather(scalars.far, code + 256 * k), scale, splat(zero))
        _confine(block, 16 * i, below, above, scale, first)
        slope = fused(q, rows[row + SLOPE + 1], splat(rows[row + SLOPE]))
        slope = where(highest, rows[row + SLOPE + 3], slope)
        slope = where(lowest, rows[row + SLOPE + 2], slope)
        bend = fused(q, rows[row + BEND + 2], splat(rows[row + BEND + 1]))
        bend = fused(q, bend, splat(rows[row + BEND]))
        bend = where(highest, rows[row + BEND + 4], bend)
        bend = where(lowest, rows[row + BEND + 3], bend)
        size = load(block.center, 16 * i) * (block.unit[i] * (_ONE / _CENTER_UNIT))
        outlier = size * size > limit
        slope, bend = where(outlier, _ZERO, slope), where(outlier, close, bend)
        center = _add_density(block, i, level, slope, bend, first)
        total = fused(center, center, total)
    return total


@bare_kernel
def _hear_varying(scalars: Scalars, k: int, block: _Superblock, start: int, first: bool) -> Any:
    """See `_hear_simple`."""
    return _hear_simple(scalars, k, block, start, first, True)


@bare_inlined
def _hear(scalars: Scalars, k: int, block: _Superblock, start: int, first: bool) -> Any:
    """Add what scalar input `k` says of a superblock; if it is the first, begin with that.

    Returns sums of squares of what the first input says.
    """
    if not scalars.simple[k]:
        return _hear_any(scalars, k, block, start, k == 0, _FAR)
    _prepare(scalars, k, block, True)
    if scalars.varies[k]:
        total = _hear_varying(scalars, k, block, start, k == 0)
    else:
        total = _hear_simple(scalars, k, block, start, first, False)
    return total


@bare_inlined
def _may_have_outliers(scalars: Scalars, block: _Superblock, prior: np.float32) -> bool:
    """Whether scales are large for the weights of the superblock, see `_begin_again`."""
    found = splat(_ZERO)
    for k in range(scalars.noise.size):
        scale = load(block.scale, 16 * k)
        usable = load(block.inverse, 16 * k) != _ZERO
        found = where(usable & (scale * scale * prior > scalars.suspicious[k]), splat(_ONE), found)
    return any_lane(found != _ZERO)


@bare_kernel
def _typical_square(block: _Superblock, n_groups: int) -> np.float32:
    """Mean square of weights that are no outliers.

    From the median of the groups without their largest weights; of those that are not 0, if there
    are any.
    """
    n, means = 0, block.each
    for i in range(n_groups):
        center = load(block.center, 16 * i) * (block.unit[i] / _CENTER_UNIT)
        square = center * center
        mean = (add_up(square) - largest_lane(square)) / np.float32(15)
        if mean > _ZERO:
            place = n
            while place > 0 and means[place - 1] > mean:
                means[place] = means[place - 1]
                place -= 1
            means[place] = mean
            n += 1
    return _WITHOUT_LARGEST * means[n // 2] if n > 0 else _ZERO


@bare_kernel
def _begin_again(
    scalars: Scalars, block: _Superblock, start: int, n_groups: int, prior: np.float32
) -> None:
    """Take the scalar inputs into account in a superblock that may have outliers.

    The prior would draw outliers away from where the encoder, which fits the scale to them, puts
    them; they have none, and a normal density around each decoded value. The prior of the others
    is as wide as in a typical group.
    """
    unit = block.unit
    width = _typical_square(block, n_groups)
    limit, narrow = _OUTLIER * width, _ONE / width
    if width == _ZERO:  # everything else is lost in the noise
        limit = -_ONE
    for k in range(scalars.noise.size):
        _hear_any(scalars, k, block, start, k == 0, limit)
        if k == 0:
            _replace_first(scalars, block, start)
    for i in range(n_groups):
        center = load(block.center, 16 * i)
        size = center * (unit[i] / _CENTER_UNIT)
        more = where(size * size > limit, splat(prior), splat(prior - narrow))
        more = more * (unit[i] * unit[i] * BEND_UNIT)  # `_density` adds the prior of all
        store(block.slope, 16 * i, fused(center, more, load(block.slope, 16 * i)))
        store(block.bend, 16 * i, load(block.bend, 16 * i) + more)


@bare_kernel
def _hear_others(
    others: Others,
    block: _Superblock,
    start: int,
    n_groups: int,
    prior: np.float32,
    noise: np.float32,
) -> None:
    """Take the inputs that are not scalar into account.

    `noise` is the typical square error of what the scalar inputs say, by which they are seen. A
    vector type may be far off an outlier and the weights around it (which few of its vectors fit),
    unlike its normal density: where there is one, and where what it says is too far from the
    bounds of the others, it is not believed.
    """
    spread = typical = others.spread[start]
    if prior > _ZERO and typical > _ZERO:
        total = largest = splat(_ZERO)
        for i in range(n_groups):
            center = load(block.center, 16 * i) * (block.unit[i] / _CENTER_UNIT)
            off = center - load(others.said, 16 * (start + i))
            total = fused(off, off, total)
            largest = larger(largest, center * center)
        if largest_lane(largest) * prior > _OUTLIER:
            return
        seen = add_up(total) / np.float32(16 * n_groups) - noise
        spread += _trust(noise / typical) * (max(seen, _LEAST_SPREAD * typical) - typical)
    if not (spread > _ZERO and spread < min(_FAR, _ONE / prior)):
        return
    precision = others.share * (_ONE / spread - prior)
    if precision <= _ZERO:
        return
    reach = _DEVIATIONS * np.sqrt(_ONE / precision)
    for i in range(n_groups):
        at, unit = 16 * i, block.unit[i]
        low, high = load(block.low, at), load(block.high, at)
        said = load(others.said, at + 16 * start) * (others.share / spread / precision)
        near, far = said - reach, said + reach
        sound = (near < high) & (far > low)
        store(block.low, at, where(sound, larger(near, low), low))
        store(block.high, at, where(sound, smaller(far, high), high))
        told = where(sound, splat(BEND_UNIT * unit * unit * precision), splat(_ZERO))
        off = said * (_CENTER_UNIT * block.per_unit[i]) - load(block.center, at)
        store(block.slope, at, fused(off, told, load(block.slope, at)))
        store(block.bend, at, load(block.bend, at) - told)


@bare_kernel
def _pin(scalars: Scalars, block: _Superblock, start: int) -> None:
    """Narrow the bounds of weights that alone in their block have an extreme code.

    See `recover.cells`. Fills in `odds` and what is `pinned`.
    """
    n = scalars.codes.size // scalars.noise.size
    for at in range(0, 256, 16):
        store(block.pinned_low, at, splat(-_FAR))
        store(block.pinned_high, at, splat(_FAR))
    for pair in range(0, 4 * scalars.noise.size, 2):
        for b in range(8 if scalars.extremes[pair] >= 0 else 0):
            at = pair // 4 * n + 16 * start + 32 * b
            first = _has_extreme(load_bytes(scalars.codes, at), scalars, pair)
            second = _has_extreme(load_bytes(scalars.codes, at + 16), scalars, pair)
            bits = mask_bits(first, second)
            others = _n_bits(bits) - 1
            block.odds[4 * pair + b] = _ONE / np.float32(others) if others > 0 else _ZERO
            if others == 0 and block.inverse[pair // 4 * 16 + 2 * b] != _ZERO:
                i = first_lane(first, second)
                _pin_one(scalars, pair // 4, at + i, block, 32 * b + i)
    for at in range(0, 256, 16):
        store(block.low, at, larger(load(block.low, at), load(block.pinned_low, at)))
        store(block.high, at, smaller(load(block.high, at), load(block.pinned_high, at)))


@bare_inlined
def _n_bits(bits: Any) -> int:
    n = 0
    while bits != 0:
        bits &= bits - np.uint32(1)
        n += 1
    return n


@bare_inlined
def _pin_one(scalars: Scalars, k: int, at: int, block: _Superblock, i: int) -> None:
    """See `_pin`; weight `i`, of which input `k` says the code at `at`."""
    level, g = scalars.levels[256 * k + scalars.codes[at]], at // 16
    value = level * scalars.scale[g] + scalars.offset[g]
    error = abs(level) * scalars.scale_error[g] + scalars.offset_error[g]
    block.pinned_low[i] = max(block.pinned_low[i], value - error)
    block.pinned_high[i] = min(block.pinned_high[i], value + error)
    # The cell ends at the value, which rounding may have moved.
    if abs(block.low[i] - value) < _NEARLY * error:
        block.low[i] = value - error
    elif abs(block.high[i] - value) < _NEARLY * error:
        block.high[i] = value + error


@bare_inlined
def _trust(ratio: np.float32) -> np.float32:
    """How far a superblock's own spread counts against that of the type.

    `ratio` is the variance of the scalar input it is seen by over the typical spread. Variances of
    the types' spread between superblocks, of its estimate from 256 weights, and of the part of the
    errors that inputs share.
    """
    one = np.float32(1) + ratio
    return _VARIES / (_VARIES + np.float32(2 / 256) * one * one + _SHARED * ratio * ratio)


@bare_inlined
def _cells(scalars: Scalars, block: _Superblock, start: int, i: int) -> Any:
    """The proven bounds of group `i` of a superblock."""
    low, high = load(block.pinned_low, 16 * i), load(block.pinned_high, 16 * i)
    for k in range(scalars.noise.size):
        at = k * (scalars.codes.size // scalars.noise.size // 16) + start + i
        if scalars.scale[at] != _ZERO and _is_finite(scalars, at):
            low, high = _prove(low, high, scalars, k, 16 * at)
    return low, high


@bare_inlined
def _atom(
    scalars: Scalars, k: int, block: _Superblock, at: int, i: int, middle: Any, half: Any
) -> Any:
    """Place over h of the atoms of input `k` in group `i`, and their mass over the density there.

    Of n weights with an extreme code any may be the one that is exactly there; of one see `_pin`.
    """
    q = load_bytes(scalars.codes, at)
    rows, row = scalars.rows, N_COLUMNS * k + ATOMS
    odds = splat(_ZERO)
    for pair in range(4 * k, 4 * k + 4, 2):
        if scalars.extremes[pair] >= 0:
            found = _has_extreme(q, scalars, pair)
            odds = where(found, splat(block.odds[4 * pair + i // 2]), odds)
    share = where(q == scalars.ends[2 * k], splat(rows[row]), splat(rows[row + 1]))
    place = (_value(scalars, k, at) - middle) / (half * np.float32(H))
    unit = np.float32(_ALL / 2) * abs(splat(scalars.scale[at // 16]))
    mass = odds * share * unit / half
    inside = (abs(place) < _JUST_INSIDE * _END) & (mass < _FAR)
    return where(inside, place, splat(_ZERO)), where(inside, mass, splat(_ZERO))


@bare_inlined
def _density(block: _Superblock, i: int, prior: np.float32) -> Any:
    """Middle and width of what the bounds of group `i` leave, and the log density there.

    The latter as half the width in units, and the odd and the even part of an eighth of its
    logarithm at h, over that in the middle.
    """
    at, unit, per_unit = 16 * i, block.unit[i], block.per_unit[i]
    low, high, center = load(block.low, at), load(block.high, at), load(block.center, at)
    belief = -prior * unit * unit * BEND_UNIT
    slope, bend = fused(center, belief, load(block.slope, at)), load(block.bend, at) + belief
    total, width = low + high, high - low
    across = width * (_HALF * per_unit)
    off = total * (_HALF * per_unit * _CENTER_UNIT) - center
    odd, even = fused(bend, off, slope) * across, bend * across * across
    return total * _HALF, width, across, odd, even


@bare_inlined
def _estimate(
    scalars: Scalars,
    block: _Superblock,
    prior: np.float32,
    start: int,
    out: F32Array,
    asks: Asks,
    plain: bool,
) -> bool:
    """Estimates of a superblock; whether all of them are good."""
    n = out.size
    floor = _floor(prior)
    sound = splat(_ONE)
    for i in range(16):
        at = 16 * (start + i)
        middle, width, across, odd, even = _density(block, i, prior)
        m0, m1, _ = _moments(odd, even)
        # Where next to nothing is left, rounding would lead out of the cells.
        sound = where((width > floor) & _is_mild(m0, even), sound, splat(_ZERO))
        unit = splat(block.unit[i] * np.float32(H))
        if plain:
            estimate = fused(across * m1, unit / m0, middle)
        else:
            place = m1 / m0
            if asks.mode:
                place = _mode(odd, even)
            on_atom = splat(_ZERO)
            for k in range(asks.atoms.size):
                if asks.atoms[k] and block.inverse[16 * k + i] != _ZERO:
                    t, mass = _atom(scalars, k, block, k * n + at, i, middle, width * _HALF)
                    mass = mass * _exp(t * (odd + even * t))
                    m0, m1 = m0 + mass, fused(mass, t, m1)
                    if asks.mode:  # an atom with more than half of the mass
                        on_atom = where(mass > on_atom, mass, on_atom)
                        place = where(on_atom + on_atom > m0, t, place)
                    else:
                        place = m1 / m0
            estimate = fused(across * place, unit, middle)
        store(out, at, estimate)
    return not any_lane(sound == _ZERO)


@bare_kernel
def _estimate_other(
    scalars: Scalars, block: _Superblock, prior: np.float32, start: int, out: F32Array, asks: Asks
) -> bool:
    """See `_estimate`; with atoms, or modes."""
    return _estimate(scalars, block, prior, start, out, asks, False)


@bare_inlined
def _floor(prior: np.float32) -> np.float32:
    """The width from which the estimates of a superblock are good."""
    return np.float32(2) * np.sqrt(_NARROW / prior)


@bare_inlined
def _is_mild(total: Any, even: Any) -> Any:
    """Whether the rule is accurate, see `_WEIGHTS`: neither a steep edge nor a narrow hill."""
    return (total < _STEEP) & (even > _NARROW_HILL)


@bare_kernel
def _sharpen(block: _Superblock, prior: np.float32) -> None:
    """Where a density is too steep for the rule, bounds within which it is above exp(-8)."""
    for i in range(16):
        middle, width, _, odd, even = _density(block, i, prior)
        total, _, _ = _moments(odd, even)
        steep = ~_is_mild(total, even) & (width < _FAR)
        if not any_lane(steep):
            continue
        bend = even * np.float32(16 / H**2)
        top = _mode(odd, even) * np.float32(H)
        fall = abs(fused(bend, top, odd * np.float32(8 / H)))
        bend = where(bend < _ZERO, -bend, splat(_ZERO))
        reach = splat(np.float32(16)) / (fall + sqrt(fused(fall, fall, bend * np.float32(16))))
        steep = steep & (reach > _ZERO)
        half, low, high = width * _HALF, load(block.low, 16 * i), load(block.high, 16 * i)
        near, far = fused(half, top - reach, middle), fused(half, top + reach, middle)
        store(block.low, 16 * i, where(steep & (near > low), near, low))
        store(block.high, 16 * i, where(steep & (far < high), far, high))


@bare_kernel
def _settle(
    scalars: Scalars, block: _Superblock, prior: np.float32, start: int, out: F32Array
) -> int:
    """Weights of a superblock whose reaches miss each other or leave next to nothing between them.

    Either there is a conflict, or the cells alone still meet. Returns the number of conflicts.
    """
    n_conflicts = 0
    for g in range(start, start + 16):
        at, estimate = 16 * (g - start), load(out, 16 * g)
        low, high = load(block.low, at), load(block.high, at)
        middle, width = (low + high) * _HALF, high - low
        good = (width > _floor(prior)) & (abs(estimate) < _FAR)
        lower, upper = _cells(scalars, block, start, g - start)
        conflict = ~good & (upper < lower)
        first = _first(scalars, g, out.size)
        there = where(abs(width) < _FAR, middle, first)
        there = where(there < lower, lower, where(there > upper, upper, there))
        between = (lower + upper) * _HALF  # safer than an edge, which others round otherwise
        there = where((abs(between) < _FAR) & (abs(width) < _FAR), between, there)
        store(out, 16 * g, where(good, estimate, where(conflict, first, there)))
        n_conflicts += int(add_up(where(conflict, splat(_ONE), splat(_ZERO))))
    return n_conflicts


@bare_kernel
def _expect(
    scalars: Scalars,
    others: Others | None,
    block: _Superblock,
    prior: np.float32,
    start: int,
    out: F32Array,
    asks: Asks,
) -> None:
    """The errors to expect in a superblock, whose estimates are there."""
    n, n_scalars, errors = out.size, scalars.noise.size, asks.errors
    for i in range(min(16, asks.n_groups - start)):
        g, at = start + i, 16 * (start + i)
        error = _variance(scalars, block, prior, start, i, asks)
        if asks.deviation.size > 0:
            store(asks.deviation, at, sqrt(error))
        estimate = load(out, at)
        store(errors, 0, load(errors, 0) + error)
        for k in range(n_scalars):
            if _is_finite(scalars, k * n // 16 + g):
                off = estimate - _value(scalars, k, k * n + at)
                store(errors, 16 * (1 + k), load(errors, 16 * (1 + k)) + (off * off + error))
        if others is not None:
            for v in range(others.values.size // n):
                row = 16 * (1 + n_scalars + v)
                off = estimate - load(others.values, v * n + at)
                store(errors, row, load(errors, row) + (off * off + error))


@bare_inlined
def _variance(
    scalars: Scalars, block: _Superblock, prior: np.float32, start: int, i: int, asks: Asks
) -> Any:
    """The variance of the posterior in group `i` of a superblock, and what stands for it."""
    n = scalars.codes.size // scalars.noise.size
    middle, width, _, odd, even = _density(block, i, prior)
    m0, m1, m2 = _moments(odd, even)
    half = width * _HALF
    for k in range(scalars.noise.size):
        if asks.atoms[k] and block.inverse[16 * k + i] != _ZERO:
            at = k * n + 16 * (start + i)
            place, mass = _atom(scalars, k, block, at, i, middle, half)
            mass = mass * _exp(place * (odd + even * place))
            m0, m1, m2 = m0 + mass, fused(mass, place, m1), fused(mass * place, place, m2)
    mean, unit = m1 / m0, half * np.float32(H)
    error = unit * unit * (m2 / m0 - mean * mean)
    good = (width > _floor(prior)) & (abs(fused(unit, mean, middle)) < _FAR)
    known = asks.variance[start + i] if asks.variance[start + i] < _FAR else _ZERO
    error = where(good, error, splat(known))
    if any_lane(~good):
        lower, upper = _cells(scalars, block, start, i)
        narrow = ~good & ~(upper < lower) & (half * half < error)
        error = where(narrow, half * half, error)
    return where(error > _ZERO, error, splat(_ZERO))


def integrate(
    scalars: Scalars,
    others: Others | None,
    out: F32Array,
    asks: Asks,
    tally: NDArray[np.float64],
) -> None:
    """Estimates, their standard deviation if that is asked for, and the tally."""
    _integrate(scalars, others, _new_superblock(scalars.noise.size), out, asks, tally)


@bare_kernel
def _integrate(
    scalars: Scalars,
    others: Others | None,
    block: _Superblock,
    out: F32Array,
    asks: Asks,
    tally: NDArray[np.float64],
) -> None:
    n_groups, n_scalars = asks.n_groups, scalars.noise.size
    stride = 1  # every so many superblocks are looked at for the errors to expect
    if asks.deviation.size == 0:
        stride = max(1, _n_effective(asks.variance) // 16 // _N_SAMPLED)
    n_conflicts, n_sampled = 0, 0
    for start in range(0, n_groups, 16):
        noise = _open(scalars, block, start)
        total = add_up(_hear(scalars, 0, block, start, True))
        if any_lane(load(block.inverse, 0) == _ZERO):
            total += _replace_first(scalars, block, start)
        for k in range(1, n_scalars):
            _hear(scalars, k, block, start, False)
        here = min(16, n_groups - start)
        prior = np.float32(16 * here) / total if total > _ZERO else _ZERO
        if _may_have_outliers(scalars, block, prior):
            _begin_again(scalars, block, start, here, prior)
        if not asks.plain:
            _pin(scalars, block, start)
        if others is not None:
            _hear_others(others, block, start, here, prior, add_up(noise) / np.float32(here))
        if asks.plain:
            all_good = _estimate(scalars, block, prior, start, out, asks, True)
        else:
            all_good = _estimate_other(scalars, block, prior, start, out, asks)
        if not all_good:
            _sharpen(block, prior)
            _estimate_other(scalars, block, prior, start, out, asks)
            n_conflicts += _settle(scalars, block, prior, start, out)
        if start // 16 % stride == 0:
            _expect(scalars, others, block, prior, start, out, asks)
            n_sampled += here
    tally[1] += n_conflicts
    for k in range(asks.errors.size // 16):
        total = add_up(load(asks.errors, 16 * k)) * (n_groups / n_sampled)
        tally[0 if k == 0 else 1 + k] += total


@bare_inlined
def _n_effective(variance: F32Array) -> int:
    """How many groups would count as much if all had the same variance."""
    total = squares = 0.0
    for g in range(variance.size):
        if variance[g] < _FAR:
            total += np.float64(variance[g])
            squares += np.float64(variance[g]) ** 2
    return int(total * total / squares) if squares > 0 else 0

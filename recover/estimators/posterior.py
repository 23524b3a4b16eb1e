"""The mean (or the mode) of the product-of-cells posterior.

Each input says where in its cell a weight is likely to be (`recover.densities`). The product of
these densities and of a normal prior as wide as the superblock's weights is integrated over the
intersection by a fixed rule; the estimate is its mean, the error to expect its variance. Where the
intersection of the cells is empty the first (finest) input is taken alone.

The logarithms of the densities are quadratic, so their sum is one quadratic polynomial in the place
``t`` (-1 to 1) in the intersection, whatever the number of inputs. Sixteen weights are worked on at
once.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._jit import inlined, kernel
from recover.densities import ABOVE, ATOM, BELOW, HIGHEST, INTERIOR, LOWEST, VARYING
from recover.estimators._combine import group_variances, sum_variance
from recover.estimators._request import MODE, Request, fill_deviation
from recover.evidence import Evidence, typical_variance
from recover.quants import GROUP, F32Array, U8Array
from recover.quants._decode import is_affine
from recover.quants._lanes import (
    any_lane,
    fused,
    gather,
    load,
    load_bytes,
    splat,
    sqrt,
    store,
    to_f32,
    where,
)

SEES_CONFLICTS = True
CALIBRATED = "densities"

# A rule with nodes at 0, +-h, +-2h and +-3h: the density at the outer nodes follows from that at
# the inner ones, as its logarithm is quadratic. It is exact for a flat density, and h and the
# weights (relative to that of the middle) are those with the least error for normal densities that
# are cut off at -1 and 1.
_H = 0.3051375516
_WEIGHTS = (0.8392342594, 1.0461387209, 0.6487004206)
_WEIGHTS32 = tuple(np.float32(w) for w in _WEIGHTS)
_FIRST_MOMENTS = tuple(np.float32(w * i * _H) for i, w in enumerate(_WEIGHTS, 1))
_SECOND_MOMENTS = tuple(np.float32(w * (i * _H) ** 2) for i, w in enumerate(_WEIGHTS, 1))
_TOTAL_WEIGHT = 1 + 2 * sum(_WEIGHTS)
_ZERO = np.float32(0)
_HALF = np.float32(0.5)
_SIXTH = np.float32(1 / 6)
_UNIT = np.float32(1 / 8)  # slopes are kept in it, see `_exp`
_LEAST_EXPONENT = np.float32(-1.5)
_ONE = np.float32(1)
_DEVIATIONS = np.float32(4)
_FAR = np.float32(np.inf)
_JUST_INSIDE = np.float32(1.001)
_NARROW = np.float32(2.0**-32)  # squared half width over the mean square of the weights
# Of the spread of weights around what a vector type says, see `_trust`.
_VARIES, _SHARED, _LEAST_SPREAD = np.float32(0.04), np.float32(0.02), np.float32(0.1)
_N_SAMPLED = 8000  # groups of a tile from which the error of each input alone is told


class _Scalars(NamedTuple):
    """The evidence of the K scalar inputs, for the kernels; rows are joined where sizes are given.

    Attributes
    ----------
    codes : uint8 (K * n,)
    scale, offset, scale_error, offset_error : float32 (K, n / 16)
    noise : float32 (K,)
        Mean square error in units of the squared scale.
    levels, near, far : float32 (K * 256,)
        Levels, and how far the integration goes below and above them.
    lower_levels, upper_levels : float32 (K * 256,)
    ends : int32 (K, 2)
    simple : bool (K,)
        Whether levels are consecutive integers and `near` and `far` differ at the ends only.
    rows : float32 (K, 17)
        See `_describe`.
    """

    codes: U8Array
    scale: F32Array
    offset: F32Array
    scale_error: F32Array
    offset_error: F32Array
    noise: F32Array
    levels: F32Array
    near: F32Array
    far: F32Array
    lower_levels: F32Array
    upper_levels: F32Array
    ends: NDArray[np.int32]
    simple: NDArray[np.bool_]
    rows: F32Array


class _Others(NamedTuple):
    """The evidence of the V other inputs.

    Attributes
    ----------
    values : float32 (V * n,)
        What each says.
    said : float32 (n,)
        What they say together.
    spread : float32 (n / 16,)
        Typical variance of weights around that.
    share : float
        What it counts beside the scalar inputs.
    """

    values: F32Array
    said: F32Array
    spread: F32Array
    share: np.float32


def estimate(
    evidence: Evidence, out: F32Array, tally: NDArray[np.float64], request: Request
) -> None:
    """See `recover.estimators`."""
    variance = np.empty(out.size // GROUP, np.float32)
    if len(evidence.codes) == 0:
        _predict(evidence, out, variance)
        variance[~np.isfinite(variance)] = 0
        fill_deviation(request, variance)
        tally[0] += sum_variance(variance)
        for v, values in enumerate(evidence.values):
            off = (out - values).astype(np.float64)
            tally[2 + v] += sum_variance(variance) + float(off @ off)
        return
    group_variances(evidence, 0, variance)
    others = None
    if len(evidence.values) > 0:
        said, spread = np.empty_like(out), np.empty_like(variance)
        _predict(evidence, said, spread)
        share = evidence.likelihood[:, 2].min()
        others = _Others(evidence.values.reshape(-1), said, spread, share)
    mode = request.estimate == MODE
    _integrate(_tabulate(evidence), others, variance, mode, out, request.deviation, tally)


def _predict(evidence: Evidence, out: F32Array, variance: F32Array) -> None:
    """What the vector types say together: fills `out` and its `variance` (n / 16,).

    Their densities are normal, so it is the best linear prediction from decoded values times their
    gain, whose errors go together as they did in the simulation.
    """
    gains, spreads = evidence.likelihood[:, [0, 3]].astype(np.float64).T
    told = 1 - spreads  # of the variance of the weights
    deviations = np.sqrt(spreads)
    among = told[:, None] - spreads + evidence.correlation * np.outer(deviations, deviations)
    weights = np.linalg.lstsq(among, told, rcond=None)[0]
    np.einsum("vn,v->n", evidence.values, (weights * gains).astype(np.float32), out=out)
    # The variance of the weights is what the first input says.
    first = evidence.values[0]
    typical_variance(first, gains[0] ** 2 / told[0] * (1 - weights @ told), variance)
    broken = ~np.isfinite(variance)
    out.reshape(-1, GROUP)[broken] = first.reshape(-1, GROUP)[broken]


# Columns of a row: numbers of one input that the kernels need in a small piece of memory.
_LEVEL, _NEAR, _NEAR_END, _FAR_OFF, _FAR_END = range(5)
_SLOPE, _BEND = 5, 9  # at code 0, per code, lowest, highest; at code 0 and the two powers, ...
_ATOMS = 14  # interior, lowest, highest


def _tabulate(evidence: Evidence) -> _Scalars:
    """What the kernels need of the scalar inputs."""
    n_inputs = len(evidence.codes)
    near, far = np.empty((2, n_inputs * 256), np.float32)
    simple, rows = np.empty(n_inputs, np.bool_), np.empty((n_inputs, _ATOMS + 3), np.float32)
    for k in range(n_inputs):
        part = slice(256 * k, 256 * k + 256)
        simple[k] = _describe(
            evidence.levels[k],
            evidence.lower_levels[k],
            evidence.upper_levels[k],
            evidence.density[k],
            evidence.end_codes[k],
            near[part],
            far[part],
            rows[k],
        )
    return _Scalars(
        evidence.codes.reshape(-1),
        evidence.scale,
        evidence.offset,
        evidence.scale_error,
        evidence.offset_error,
        evidence.noise.astype(np.float32),
        evidence.levels.reshape(-1),
        near,
        far,
        evidence.lower_levels.reshape(-1),
        evidence.upper_levels.reshape(-1),
        evidence.end_codes,
        simple,
        rows,
    )


@kernel
def _describe(
    levels: F32Array,
    lower: F32Array,
    upper: F32Array,
    density: F32Array,
    ends: NDArray[np.int32],
    near: F32Array,
    far: F32Array,
    row: F32Array,
) -> bool:
    """Fill the tables of one input; whether it is simple (see `_Scalars`)."""
    first, last = ends
    for q in range(256):
        which = LOWEST if q == first else HIGHEST if q == last else INTERIOR
        near[q] = lower[q] - levels[q] if lower[q] > -_FAR else density[which, BELOW]
        far[q] = upper[q] - levels[q] if upper[q] < _FAR else density[which, ABOVE]
    simple = first == 0 and is_affine(levels)
    for q in range(first + 1, last):
        simple = simple and near[q] == near[last] and far[q] == far[first]
    row[_LEVEL], row[_NEAR], row[_FAR_OFF] = levels[0], near[last], far[first]
    row[_NEAR_END], row[_FAR_END] = near[first], far[last]
    # The slope of c u + d u**2 is c + 2 d u; what is added to c and d varies with z = p + r q.
    p, r = -np.float32(first + last) / (last - first), np.float32(2) / (last - first)
    c, d = density[INTERIOR, 0], density[INTERIOR, 1]
    cz, dz = density[VARYING, 0], density[VARYING, 1]
    row[_SLOPE], row[_SLOPE + 1] = c + cz * p, cz * r
    row[_SLOPE + 2], row[_SLOPE + 3] = density[LOWEST, 0], density[HIGHEST, 0]
    row[_BEND], row[_BEND + 1], row[_BEND + 2] = d + dz * p * p, 2 * dz * p * r, dz * r * r
    row[_BEND + 3], row[_BEND + 4] = density[LOWEST, 1], density[HIGHEST, 1]
    row[_BEND : _BEND + 5] *= 2
    row[_SLOPE : _BEND + 5] *= _UNIT
    for i, which in enumerate((INTERIOR, LOWEST, HIGHEST)):
        row[_ATOMS + i] = density[which, ATOM]
    return simple


@inlined
def _larger(one: Any, other: Any) -> Any:
    return where(one > other, one, other)


@inlined
def _smaller(one: Any, other: Any) -> Any:
    return where(one < other, one, other)


@inlined
def _exp(y: Any) -> Any:
    """``exp(8 y)`` for moderate y as ``(1 + y + y**2 / 2 + y**3 / 6) ** 8``."""
    y = _larger(y, splat(_LEAST_EXPONENT))
    y = fused(y, fused(y, fused(y, _SIXTH, splat(_HALF)), splat(_ONE)), splat(_ONE))
    y = y * y
    y = y * y
    return y * y


@inlined
def _is_usable(scale: np.float32, offset: np.float32) -> bool:
    return scale != _ZERO and np.isfinite(scale) and np.isfinite(offset)


@inlined
def _level(scalars: _Scalars, k: int, q: Any) -> Any:
    if scalars.simple[k]:
        level = to_f32(q) + scalars.rows[k, _LEVEL]
    else:
        level = gather(scalars.levels, q + 256 * k)
    return level


@inlined
def _value(scalars: _Scalars, k: int, g: int, at: int) -> Any:
    """What input `k` says of group `g`, whose codes begin at `at`."""
    level = _level(scalars, k, load_bytes(scalars.codes, at))
    return level * scalars.scale[k, g] + scalars.offset[k, g]


@inlined
def _reach(scalars: _Scalars, k: int, q: Any, lowest: Any, highest: Any, s: np.float32) -> Any:
    """How far weights may be below and above what input `k` says."""
    if scalars.simple[k]:
        near = where(lowest, scalars.rows[k, _NEAR_END] * s, splat(scalars.rows[k, _NEAR] * s))
        far = where(highest, scalars.rows[k, _FAR_END] * s, splat(scalars.rows[k, _FAR_OFF] * s))
    else:
        near = gather(scalars.near, q + 256 * k) * s
        far = gather(scalars.far, q + 256 * k) * s
    if s < _ZERO:
        near, far = far, near
    return near, far


@inlined
def _prove(low: Any, high: Any, scalars: _Scalars, k: int, g: int, at: int) -> Any:
    """Intersect bounds with the cells of input `k`, as `recover.cells` does."""
    q = load_bytes(scalars.codes, at)
    below = gather(scalars.lower_levels, q + 256 * k)
    above = gather(scalars.upper_levels, q + 256 * k)
    s, o = scalars.scale[k, g], scalars.offset[k, g]
    if s < _ZERO:
        below, above = above, below
    error, slack = scalars.scale_error[k, g], scalars.offset_error[k, g]
    proven = below * s + o - (abs(below) * error + slack)
    low = _larger(proven, low)
    proven = above * s + o + (abs(above) * error + slack)
    return low, where(proven < high, proven, high)


@inlined
def _slopes(scalars: _Scalars, k: int, q: Any, lowest: Any, highest: Any) -> Any:
    """Slope of the log density of input `k` at what it says, and how it changes per scale."""
    qf, row = to_f32(q), scalars.rows[k]
    slope = fused(qf, row[_SLOPE + 1], splat(row[_SLOPE]))
    slope = where(lowest, row[_SLOPE + 2], where(highest, row[_SLOPE + 3], slope))
    bend = fused(qf, fused(qf, row[_BEND + 2], splat(row[_BEND + 1])), splat(row[_BEND]))
    bend = where(lowest, row[_BEND + 3], where(highest, row[_BEND + 4], bend))
    return slope, bend


@inlined
def _moments(slope: Any, bend: Any) -> Any:
    """Integrals of 1, t and t**2 over ``exp(slope * t + bend * t**2 / 2)`` from -1 to 1.

    They are in a unit of their own: 2 is `_TOTAL_WEIGHT`.
    """
    even, odd = bend * np.float32(_H * _H / 2), slope * np.float32(_H)
    right, left = _exp(even + odd), _exp(even - odd)
    product = right * left
    right2, left2 = right * right * product, left * left * product
    product = product * product
    right3, left3 = right2 * right * product, left2 * left * product
    both, both2, both3 = right + left, right2 + left2, right3 + left3
    m0 = fused(both, _WEIGHTS32[0], splat(_ONE))
    m0 = fused(both3, _WEIGHTS32[2], fused(both2, _WEIGHTS32[1], m0))
    m1 = (right - left) * _FIRST_MOMENTS[0]
    m1 = fused(right3 - left3, _FIRST_MOMENTS[2], fused(right2 - left2, _FIRST_MOMENTS[1], m1))
    m2 = both * _SECOND_MOMENTS[0]
    m2 = fused(both3, _SECOND_MOMENTS[2], fused(both2, _SECOND_MOMENTS[1], m2))
    return m0, m1, m2


@inlined
def _mode(slope: Any, bend: Any) -> Any:
    """Where in -1 to 1 the density is largest."""
    end = where(slope < _ZERO, splat(-_ONE), splat(_ONE))
    top = -slope / bend
    return where((bend < _ZERO) & (abs(top) < _ONE), top, end)


@inlined
def _atom(
    scalars: _Scalars, k: int, g: int, at: int, middle: Any, half: Any, slope: Any, bend: Any
) -> Any:
    """Place t and mass of the atoms of input `k`."""
    q = load_bytes(scalars.codes, at)
    lowest, highest = q == scalars.ends[k, 0], q == scalars.ends[k, 1]
    atoms = scalars.rows[k, _ATOMS : _ATOMS + 3]
    share = where(lowest, atoms[LOWEST], where(highest, atoms[HIGHEST], splat(atoms[INTERIOR])))
    t = (_value(scalars, k, g, at) - middle) / half
    unit = np.float32(_TOTAL_WEIGHT / 2) * abs(splat(scalars.scale[k, g]))
    mass = share * unit / half * _exp(t * (slope + bend * t * _HALF))
    inside = (abs(t) < _JUST_INSIDE) & (mass < _FAR)
    return where(inside, t, splat(_ZERO)), where(inside, mass, splat(_ZERO))


@inlined
def _first(scalars: _Scalars, g: int, n: int) -> Any:
    """What the first scalar input that is not broken says."""
    for k in range(scalars.scale.shape[0]):
        if np.isfinite(scalars.scale[k, g]) and np.isfinite(scalars.offset[k, g]):
            return _value(scalars, k, g, k * n + 16 * g)
    return _value(scalars, 0, g, 16 * g)


class _Superblock(NamedTuple):
    """What the groups of one superblock have in common, in scratch memory.

    Attributes
    ----------
    inverse : float32 (K * 16,)
        One over the scale of each input and group; 0 where it cannot be used.
    center : float32 (256,)
        What the first usable input says; 0 if there is none.
    unit, per_unit : float32 (16,)
        Scale of the first usable input, and one over it; 1 if there is none.
    told : float32 (2,)
        What the other inputs say together counts so much, and adds so much to the precision of the
        prior; 0 where they cannot be used.
    """

    inverse: F32Array
    center: F32Array
    unit: F32Array
    per_unit: F32Array
    told: F32Array


@inlined
def _look(
    scalars: _Scalars, others: _Others | None, block: _Superblock, start: int, n_groups: int, n: int
) -> np.float32:
    """Fill a superblock; one over the mean square of its weights, or 0 if they are 0."""
    n_scalars, noise = scalars.scale.shape[0], _ZERO
    for k in range(n_scalars):
        for i in range(n_groups):
            s, o = scalars.scale[k, start + i], scalars.offset[k, start + i]
            inverse = _ONE / s
            usable = abs(inverse) < _FAR and inverse != _ZERO and abs(o) < _FAR
            block.inverse[16 * k + i] = inverse if usable else _ZERO
    total = splat(_ZERO)
    for i in range(n_groups):
        g, k = start + i, 0
        while k < n_scalars - 1 and block.inverse[16 * k + i] == _ZERO:
            k += 1
        center = splat(_ZERO)
        block.unit[i] = block.per_unit[i] = _ONE
        if block.inverse[16 * k + i] != _ZERO:
            block.unit[i], block.per_unit[i] = scalars.scale[k, g], block.inverse[16 * k + i]
            level = _level(scalars, k, load_bytes(scalars.codes, k * n + 16 * g))
            center = fused(level, scalars.scale[k, g], splat(scalars.offset[k, g]))
            noise += scalars.noise[k] * scalars.scale[k, g] * scalars.scale[k, g]
        store(block.center, 16 * i, center)
        total = fused(center, center, total)
    lanes = np.empty(16, np.float32)
    store(lanes, 0, total)
    mean = lanes.sum() / np.float32(16 * n_groups)
    prior = _ONE / mean if mean > _ZERO else _ZERO
    if others is not None:
        _gauge(others, block, start, n_groups, prior, noise / np.float32(n_groups))
    return prior


@kernel
def _gauge(
    others: _Others,
    block: _Superblock,
    start: int,
    n_groups: int,
    prior: np.float32,
    noise: np.float32,
) -> None:
    """Fill in what the inputs that are not scalar count.

    `noise` is the typical square error of what the scalar inputs say, by which they are seen.
    """
    spread = typical = others.spread[start]
    if prior > _ZERO and typical > _ZERO:
        total = splat(_ZERO)
        for i in range(n_groups):
            off = load(block.center, 16 * i) - load(others.said, 16 * (start + i))
            total = fused(off, off, total)
        lanes = np.empty(16, np.float32)
        store(lanes, 0, total)
        seen = lanes.sum() / np.float32(16 * n_groups) - noise
        spread += _trust(noise / typical) * (max(seen, _LEAST_SPREAD * typical) - typical)
    usable = spread > _ZERO and spread < min(_FAR, _ONE / prior)
    block.told[0] = others.share / spread if usable else _ZERO
    block.told[1] = others.share * (_ONE / spread - prior) if usable else _ZERO


@inlined
def _trust(ratio: np.float32) -> np.float32:
    """How far a superblock's own spread counts against that of the type.

    `ratio` is the variance of the scalar input it is seen by over the typical spread. Variances of
    the types' spread between superblocks, of its estimate from 256 weights, and of the part of the
    errors that inputs share.
    """
    one = np.float32(1) + ratio
    return _VARIES / (_VARIES + np.float32(2 / 256) * one * one + _SHARED * ratio * ratio)


@inlined
def _cells(scalars: _Scalars, g: int, n: int) -> Any:
    """The proven bounds of a group."""
    low, high = splat(-_FAR), splat(_FAR)
    for k in range(scalars.scale.shape[0]):
        if _is_usable(scalars.scale[k, g], scalars.offset[k, g]):
            low, high = _prove(low, high, scalars, k, g, k * n + 16 * g)
    return low, high


@kernel
def _hear_others(others: _Others, block: _Superblock, i: int, at: int, state: F32Array) -> None:
    """Take the inputs that are not scalar into account, for group `i` of a superblock.

    `state` (64,) holds the bounds, the slope at the center and the bend, and is changed. A vector
    type may be far off an outlier, unlike its normal density: what is too far from the bounds of
    the others is not believed.
    """
    factor, precision = block.told
    if precision <= _ZERO:
        return
    low, high = load(state, 0), load(state, 16)
    slope, bend = load(state, 32), load(state, 48)
    center, unit = load(block.center, 16 * i), block.unit[i]
    said = load(others.said, at) * (factor / precision)
    reach = _DEVIATIONS * np.sqrt(_ONE / precision)
    near, far = said - reach, said + reach
    sound = (near < high) & (far > low)
    low = where(sound, _larger(near, low), low)
    high = where(sound, _smaller(far, high), high)
    told = where(sound, splat(_UNIT * unit * precision), splat(_ZERO))
    slope = fused(said - center, told, slope)
    bend = bend - told * unit
    store(state, 0, low)
    store(state, 16, high)
    store(state, 32, slope)
    store(state, 48, bend)


@kernel
def _settle(scalars: _Scalars, g: int, n: int, exception: F32Array) -> int:
    """Weights of a group whose reaches miss each other or leave next to nothing between them.

    Either there is a conflict, or the cells alone still meet. `exception` (64,) holds the middle
    and half the width of what the reaches leave, the estimates (NaN if there is none yet), which
    are completed, and has room for the most that the variance can be. Returns the number of
    conflicts.
    """
    middle, half, estimate = load(exception, 0), load(exception, 16), load(exception, 32)
    good = estimate == estimate
    lower, upper = _cells(scalars, g, n)
    conflict = upper < lower
    first = _first(scalars, g, n)
    there = where(abs(half) < _FAR, middle, first)
    there = where(there < lower, lower, where(there > upper, upper, there))
    between = (lower + upper) * _HALF  # safer than an edge, which others round otherwise
    there = where((abs(between) < _FAR) & (abs(half) < _FAR), between, there)
    store(exception, 32, where(conflict, first, where(good, estimate, there)))
    store(exception, 48, where(good | conflict, splat(_FAR), half * half))
    return _count(conflict)


@kernel
def _integrate(
    scalars: _Scalars,
    others: _Others | None,
    variance: F32Array,
    wants_mode: bool,
    out: F32Array,
    deviation: F32Array,
    tally: NDArray[np.float64],
) -> None:
    """Estimates, their standard deviation if that is not empty, and the tally.

    `variance` (n / 16,) is that of the first input, which is taken where there is a conflict.
    """
    n, n_groups = out.size, variance.size
    n_scalars, n_others = scalars.scale.shape[0], 0
    if others is not None:
        n_others = others.values.size // n
    atoms = np.empty(n_scalars, np.bool_)
    for k in range(n_scalars):
        atoms[k] = np.any(scalars.rows[k, _ATOMS : _ATOMS + 3] > 0)
    has_atoms = np.any(atoms)
    # Odd, so that all places of a superblock take part.
    stride = 1 if deviation.size > 0 else n_groups // _N_SAMPLED | 1
    alone = np.zeros((n_scalars + n_others) * 16, np.float32)
    block = _Superblock(
        np.empty(16 * n_scalars, np.float32),
        np.empty(256, np.float32),
        np.empty(16, np.float32),
        np.empty(16, np.float32),
        np.empty(2, np.float32),
    )
    state, exception = np.empty(64, np.float32), np.empty(64, np.float32)
    expected, prior, floor, n_conflicts, n_sampled = splat(_ZERO), _ZERO, _ZERO, 0, 0
    for g in range(n_groups):
        if g % 16 == 0:
            prior = _look(scalars, others, block, g, min(16, n_groups - g), n)
            floor = np.sqrt(_NARROW / prior)
        at = 16 * g
        # The slope of the logarithm of the product, at `center` and by how much it changes per
        # `unit`.
        i = g & 15
        center, unit = load(block.center, 16 * i), block.unit[i]
        slope, bend = center * (-prior * unit * _UNIT), splat(-prior * unit * unit * _UNIT)
        low, high = splat(-_FAR), splat(_FAR)
        for k in range(n_scalars):
            inverse = block.inverse[16 * k + i]
            if inverse != _ZERO:
                s, o = scalars.scale[k, g], scalars.offset[k, g]
                q = load_bytes(scalars.codes, k * n + at)
                lowest, highest = q == scalars.ends[k, 0], q == scalars.ends[k, 1]
                value = fused(_level(scalars, k, q), s, splat(o))
                near, far = _reach(scalars, k, q, lowest, highest, s)
                low, high = _larger(value + near, low), _smaller(value + far, high)
                c, d = _slopes(scalars, k, q, lowest, highest)
                b = unit * inverse
                slope = fused(fused(d, (center - value) * inverse, c), b, slope)
                bend = fused(d, b * b, bend)
        if others is not None:
            store(state, 0, low)
            store(state, 16, high)
            store(state, 32, slope)
            store(state, 48, bend)
            _hear_others(others, block, i, at, state)
            low, high = load(state, 0), load(state, 16)
            slope, bend = load(state, 32), load(state, 48)
        middle, half = (low + high) * _HALF, (high - low) * _HALF
        across = half * block.per_unit[i]
        slope = fused(bend, (middle - center) * block.per_unit[i], slope) * across
        bend = bend * across * across
        m0, m1, m2 = _moments(slope, bend)
        place = m1
        if wants_mode:
            place = _mode(slope, bend)
        on_atom = splat(_ZERO)
        for k in range(n_scalars if has_atoms else 0):
            if atoms[k] and block.inverse[16 * k + i] != _ZERO:
                t, mass = _atom(scalars, k, g, k * n + at, middle, half, slope, bend)
                m0, m1, m2 = m0 + mass, m1 + mass * t, m2 + mass * t * t
                if wants_mode:  # an atom with more than half of the mass
                    on_atom = where(mass > on_atom, mass, on_atom)
                    place = where(on_atom + on_atom > m0, t, place)
        over = splat(_ONE) / m0
        mean = m1 * over
        if not wants_mode:
            place = mean
        # Where next to nothing is left, rounding would lead out of the cells.
        good = (half > floor) & (half < _FAR) & (m0 < _FAR)
        estimate = fused(half, place, middle)
        most = splat(_FAR)
        if any_lane(where(good, _ZERO, splat(_ONE)) > _ZERO):
            store(exception, 0, middle)
            store(exception, 16, half)
            store(exception, 32, where(good, estimate, splat(np.float32(np.nan))))
            n_conflicts += _settle(scalars, g, n, exception)
            estimate, most = load(exception, 32), load(exception, 48)
        store(out, at, estimate)
        is_sample = g == n_sampled * stride
        if is_sample or deviation.size > 0:
            error = half * half * (m2 * over - mean * mean)
            known = variance[g] if variance[g] < _FAR else _ZERO
            error = _larger(where(good, error, splat(known)), splat(_ZERO))
            error = _smaller(error, most)
            if deviation.size > 0:
                store(deviation, at, sqrt(error))
            if is_sample:
                n_sampled += 1
                expected = expected + error
                for k in range(n_scalars):
                    if np.isfinite(scalars.scale[k, g]) and np.isfinite(scalars.offset[k, g]):
                        off = estimate - _value(scalars, k, g, k * n + at)
                        store(alone, 16 * k, load(alone, 16 * k) + (off * off + error))
                if others is not None:
                    for v in range(n_others):
                        row = 16 * (n_scalars + v)
                        off = estimate - load(others.values, v * n + at)
                        store(alone, row, load(alone, row) + (off * off + error))
    lanes = np.empty(16, np.float32)
    store(lanes, 0, expected)
    tally[0] += lanes.sum() * (n_groups / n_sampled)
    tally[1] += n_conflicts
    for k in range(n_scalars + n_others):
        tally[2 + k] += alone[16 * k : 16 * k + 16].sum() * (n_groups / n_sampled)


@inlined
def _count(mask: Any) -> int:
    lanes = np.empty(16, np.float32)
    store(lanes, 0, where(mask, splat(_ONE), splat(_ZERO)))
    return int(lanes.sum())

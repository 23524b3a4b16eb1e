"""The mean (or the mode) of the product-of-cells posterior.

Each input says where in its cell a weight is likely to be (`recover.densities`). The product of
these densities and of a normal prior as wide as the superblock's weights is integrated over the
intersection by a fixed Gauss-Legendre rule; the estimate is its mean, the error to expect its
variance. Where the intersection of the cells is empty the first (finest) input is taken alone.

The logarithms of the densities are polynomials, so their sum is one polynomial of degree 4 in the
place ``t`` (-1 to 1) in the intersection, whatever the number of inputs. Sixteen weights are worked
on at once.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._jit import inlined, kernel
from recover.densities import HIGHEST, INTERIOR, LOWEST, VARYING
from recover.estimators._combine import group_variances, sum_variance
from recover.estimators._request import MODE, Request, fill_deviation
from recover.evidence import Evidence, typical_variance
from recover.quants import GROUP, F32Array, U8Array
from recover.quants._decode import is_affine
from recover.quants._lanes import (
    any_lane,
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

# The rule with 5 nodes: one in the middle, two pairs.
_NODES = tuple(np.float32(t) for t in np.polynomial.legendre.leggauss(5)[0][3:])
_WEIGHTS = tuple(np.float32(w) for w in np.polynomial.legendre.leggauss(5)[1][3:])
_MIDDLE_WEIGHT = np.float32(np.polynomial.legendre.leggauss(5)[1][2])
_ZERO = np.float32(0)
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_DEVIATIONS = np.float32(4)
_FAR = np.float32(np.inf)
_JUST_INSIDE = np.float32(1.001)
_NARROW = np.float32(2.0**-32)  # squared half width over the mean square of the weights
_N_SAMPLED = 12000  # groups of a tile from which the error of each input alone is told


class _Scalars(NamedTuple):
    """The evidence of the K scalar inputs, for the kernels; rows are joined where sizes are given.

    Attributes
    ----------
    codes : uint8 (K * n,)
    scale, offset, scale_error, offset_error : float32 (K, n / 16)
    levels, lower_levels, upper_levels : float32 (K * 256,)
    ends : int32 (K, 2)
    simple : bool (K,)
        Whether levels are consecutive integers and cells reach half-way to the next one.
    rows : float32 (K, 32)
        See `_row`.
    """

    codes: U8Array
    scale: F32Array
    offset: F32Array
    scale_error: F32Array
    offset_error: F32Array
    levels: F32Array
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
    variance : float32 (V, n / 16)
    likelihood : float32 (V, 2)
    """

    values: F32Array
    variance: F32Array
    likelihood: F32Array


def estimate(
    evidence: Evidence, out: F32Array, tally: NDArray[np.float64], request: Request
) -> None:
    """See `recover.estimators`."""
    variance = np.empty(out.size // GROUP, np.float32)
    if len(evidence.codes) == 0:
        _multiply_normals(evidence, variance, out, tally)
        fill_deviation(request, variance)
        return
    group_variances(evidence, 0, variance)
    scalars = _Scalars(
        evidence.codes.reshape(-1),
        evidence.scale,
        evidence.offset,
        evidence.scale_error,
        evidence.offset_error,
        evidence.levels.reshape(-1),
        evidence.lower_levels.reshape(-1),
        evidence.upper_levels.reshape(-1),
        evidence.end_codes,
        np.array([_is_simple(evidence, k) for k in range(len(evidence.codes))], np.bool_),
        np.array([_row(evidence, k) for k in range(len(evidence.codes))], np.float32).reshape(
            -1, 32
        ),
    )
    others = _Others(evidence.values.reshape(-1), evidence.variance, evidence.likelihood)
    _integrate(scalars, others, variance, request.estimate == MODE, out, request.deviation, tally)


def _multiply_normals(
    evidence: Evidence, variance: F32Array, out: F32Array, tally: NDArray[np.float64]
) -> None:
    """The posterior where all densities are normal: there is no scalar input."""
    first = evidence.values[0]
    spread = np.empty_like(variance)
    typical_variance(first, 1.0, spread)
    gains, shares = evidence.likelihood[:, :1], evidence.likelihood[:, 1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = 1 / (evidence.variance * shares)
        np.divide(1, 1 / spread + precision.sum(axis=0), out=variance)
        weights = np.nan_to_num(precision * gains * variance)
    grouped = evidence.values.reshape(len(shares), -1, GROUP)
    np.einsum("vgi,vg->gi", grouped, weights, out=out.reshape(-1, GROUP))
    broken = ~(np.isfinite(variance) & (variance > 0))
    out.reshape(-1, GROUP)[broken] = first.reshape(-1, GROUP)[broken]
    variance[broken] = 0
    tally[0] += sum_variance(variance)
    for v in range(len(shares)):
        off = (out - evidence.values[v]).astype(np.float64)
        tally[2 + v] += sum_variance(variance) + float(off @ off)


def _is_simple(evidence: Evidence, k: int) -> bool:
    first, last = evidence.end_codes[k]
    levels = evidence.levels[k, : last + 1]
    lower, upper = evidence.lower_levels[k, : last + 1], evidence.upper_levels[k, : last + 1]
    return bool(
        first == 0
        and is_affine(evidence.levels[k])
        and np.array_equal(lower[1:], levels[1:] - _HALF)
        and np.array_equal(upper[:-1], levels[:-1] + _HALF)
    )


# Columns of a row: numbers of one input that the kernels need in a small piece of memory.
_LEVEL, _LOW_END, _HIGH_END, _Z_SLOPE, _Z_START, _LOW_REACH, _HIGH_REACH = range(7)
_COEFFICIENTS = 7  # 4 each of: interior, varying, lowest, highest
_ATOMS = _COEFFICIENTS + 16  # interior, lowest, highest


def _row(evidence: Evidence, k: int) -> F32Array:
    """The numbers of input `k`, in the columns that are named above.

    Level of code 0; where the end cells are taken to end, in units of the scale; z as a linear
    function of the code; reach of the end codes; coefficients by class; atoms.
    """
    row = np.zeros(32, np.float32)
    levels, density = evidence.levels[k], evidence.density[k]
    first, last = (int(end) for end in evidence.end_codes[k])
    row[_LEVEL] = levels[0]
    row[_LOW_REACH], row[_HIGH_REACH] = density[LOWEST, 5], density[HIGHEST, 6]
    row[_LOW_END] = levels[first] + density[LOWEST, 5]
    row[_HIGH_END] = levels[last] + density[HIGHEST, 6]
    row[_Z_SLOPE], row[_Z_START] = 2 / (last - first), -(first + last) / (last - first)
    classes = density[[INTERIOR, VARYING, LOWEST, HIGHEST], :4]
    row[_COEFFICIENTS : _COEFFICIENTS + 16] = classes.reshape(-1)
    row[_ATOMS : _ATOMS + 3] = density[[INTERIOR, LOWEST, HIGHEST], 4]
    return row


@inlined
def _add(total: Any, power: Any, coefficients: Any) -> Any:
    """Add to a polynomial (4 coefficients) in t another one in ``u = a + b t``, given (a, b)."""
    a, b = power
    c1, c2, c3, c4 = coefficients
    t1, t2, t3, t4 = total
    two, three, four, six = np.float32(2), np.float32(3), np.float32(4), np.float32(6)
    c4a = c4 * a
    t1 = t1 + b * (c1 + a * (c2 * two + a * (c3 * three + c4a * four)))
    bb = b * b
    t2 = t2 + bb * (c2 + a * (c3 * three + c4a * six))
    t3 = t3 + bb * b * (c3 + c4a * four)
    t4 = t4 + bb * bb * c4
    return t1, t2, t3, t4


@inlined
def _at(polynomial: Any, t: Any) -> Any:
    t1, t2, t3, t4 = polynomial
    return t * (t1 + t * (t2 + t * (t3 + t * t4)))


@inlined
def _parts(polynomial: Any, t: np.float32) -> Any:
    """Even and odd part of a polynomial at `t`."""
    t1, t2, t3, t4 = polynomial
    tt = t * t
    return (t4 * tt + t2) * tt, (t3 * tt + t1) * t


@inlined
def _larger(one: Any, other: Any) -> Any:
    return where(one > other, one, other)


@inlined
def _exp(x: Any) -> Any:
    """``exp(x)`` for x up to 0 as ``(1 + y + y**2 / 2) ** 16``, relatively off by x**3 / 1536."""
    y = x * np.float32(1 / 16)
    y = where(y > -_ONE, y, splat(-_ONE))
    y = y * (y * _HALF + _ONE) + _ONE
    y = y * y
    y = y * y
    y = y * y
    return y * y


@inlined
def _is_usable(scale: np.float32, offset: np.float32) -> bool:
    return scale != _ZERO and np.isfinite(scale) and np.isfinite(offset)


@inlined
def _level(scalars: _Scalars, k: int, q: Any) -> Any:
    if scalars.simple[k]:
        return to_f32(q) + scalars.rows[k, _LEVEL]
    return gather(scalars.levels, q + 256 * k)


@inlined
def _value(scalars: _Scalars, k: int, g: int, at: int) -> Any:
    """What input `k` says of group `g`, whose codes begin at `at`."""
    level = _level(scalars, k, load_bytes(scalars.codes, at))
    return level * scalars.scale[k, g] + scalars.offset[k, g]


@inlined
def _narrow(low: Any, high: Any, scalars: _Scalars, k: int, g: int, at: int) -> Any:
    """Intersect bounds with the reach of input `k`: its cells or, where open, as weights go."""
    q = load_bytes(scalars.codes, at)
    s, o = scalars.scale[k, g], scalars.offset[k, g]
    if scalars.simple[k]:
        level = to_f32(q) + scalars.rows[k, _LEVEL]
        near = where(q == scalars.ends[k, 0], scalars.rows[k, _LOW_END], level - _HALF)
        far = where(q == scalars.ends[k, 1], scalars.rows[k, _HIGH_END], level + _HALF)
    else:
        level = gather(scalars.levels, q + 256 * k)
        near = gather(scalars.lower_levels, q + 256 * k)
        far = gather(scalars.upper_levels, q + 256 * k)
        near = where(near > -_FAR, near, level + scalars.rows[k, _LOW_REACH])
        far = where(far < _FAR, far, level + scalars.rows[k, _HIGH_REACH])
    if s < _ZERO:
        near, far = far, near
    below, above = near * s + o, far * s + o
    return _larger(below, low), where(above < high, above, high)


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
def _coefficients(scalars: _Scalars, k: int, q: Any) -> Any:
    """Of the logarithm of the densities of input `k`, for the class of each lane's code."""
    lowest, highest = q == scalars.ends[k, 0], q == scalars.ends[k, 1]
    z = to_f32(q) * scalars.rows[k, _Z_SLOPE] + scalars.rows[k, _Z_START]
    zz = z * z
    return (
        _by_class(scalars.rows, k, _COEFFICIENTS, z, lowest, highest),
        _by_class(scalars.rows, k, _COEFFICIENTS + 1, zz, lowest, highest),
        _by_class(scalars.rows, k, _COEFFICIENTS + 2, z, lowest, highest),
        _by_class(scalars.rows, k, _COEFFICIENTS + 3, zz, lowest, highest),
    )


@inlined
def _by_class(rows: F32Array, k: int, c: int, z: Any, lowest: Any, highest: Any) -> Any:
    """The coefficient in column `c` and every fourth from there on."""
    interior = z * rows[k, c + 4] + rows[k, c]
    return where(lowest, rows[k, c + 8], where(highest, rows[k, c + 12], interior))


@inlined
def _moments(total: Any) -> Any:
    """Integrals of 1, t and t**2 over exp(total), and the height they are relative to."""
    inner_even, inner_odd = _parts(total, _NODES[0])
    outer_even, outer_odd = _parts(total, _NODES[1])
    top = _larger(inner_even + abs(inner_odd), outer_even + abs(outer_odd))
    top = where(top > _ZERO, top, splat(_ZERO))
    inner_even, outer_even = inner_even - top, outer_even - top
    right, left = _exp(inner_even + inner_odd), _exp(inner_even - inner_odd)
    both = (right + left) * _WEIGHTS[0]
    m0 = _exp(-top) * _MIDDLE_WEIGHT + both
    m1 = (right - left) * (_WEIGHTS[0] * _NODES[0])
    m2 = both * (_NODES[0] * _NODES[0])
    right, left = _exp(outer_even + outer_odd), _exp(outer_even - outer_odd)
    both = (right + left) * _WEIGHTS[1]
    m1 = m1 + (right - left) * (_WEIGHTS[1] * _NODES[1])
    return m0 + both, m1, m2 + both * (_NODES[1] * _NODES[1]), top


@inlined
def _mode(total: Any) -> Any:
    """Where in -1 to 1 a polynomial is largest: the best of 17 places, then Newton's method."""
    best, height = splat(-_ONE), _at(total, splat(-_ONE))
    for i in range(-7, 9):
        t = splat(np.float32(i / 8))
        here = _at(total, t)
        best, height = where(here > height, t, best), _larger(here, height)
    t1, t2, t3, t4 = total
    for _ in range(4):
        first = t1 + best * (
            t2 * np.float32(2) + best * (t3 * np.float32(3) + best * t4 * np.float32(4))
        )
        second = t2 * np.float32(2) + best * (t3 * np.float32(6) + best * t4 * np.float32(12))
        step = where(second < _ZERO, -first / second, splat(_ZERO))
        step = where(abs(step) < np.float32(1 / 8), step, splat(_ZERO))
        best = best + step
        best = where(best < -_ONE, splat(-_ONE), where(best > _ONE, splat(_ONE), best))
    return best


@inlined
def _atom(scalars: _Scalars, k: int, g: int, at: int, frame: Any, total: Any, top: Any) -> Any:
    """Place t and mass of the atoms of input `k`, relative to ``exp(top)`` as the moments are."""
    middle, half = frame
    q = load_bytes(scalars.codes, at)
    lowest, highest = q == scalars.ends[k, 0], q == scalars.ends[k, 1]
    atoms = scalars.rows[k, _ATOMS : _ATOMS + 3]
    share = where(lowest, atoms[LOWEST], where(highest, atoms[HIGHEST], splat(atoms[INTERIOR])))
    t = (_value(scalars, k, g, at) - middle) / half
    mass = share * abs(splat(scalars.scale[k, g])) / half * _exp(_at(total, t) - top)
    inside = (abs(t) < _JUST_INSIDE) & (mass < _FAR)
    return where(inside, t, splat(_ZERO)), where(inside, mass, splat(_ZERO))


@inlined
def _say(others: _Others, v: int, g: int, n: int) -> Any:
    """Centre and deviation of the normal density of input `v`."""
    value = load(others.values, v * n + 16 * g) * others.likelihood[v, 0]
    return value, np.sqrt(others.variance[v, g] * others.likelihood[v, 1])


@inlined
def _first(scalars: _Scalars, g: int, n: int) -> Any:
    """What the first scalar input that is not broken says."""
    for k in range(scalars.scale.shape[0]):
        if np.isfinite(scalars.scale[k, g]) and np.isfinite(scalars.offset[k, g]):
            return _value(scalars, k, g, k * n + 16 * g)
    return _value(scalars, 0, g, 16 * g)


@inlined
def _sharpness(scalars: _Scalars, start: int, end: int, n: int) -> np.float32:
    """One over the mean square of the weights of groups `start` to `end`; 0 if they are 0.

    They are taken from the first input.
    """
    total = splat(_ZERO)
    for g in range(start, end):
        value = _first(scalars, g, n)
        total = total + value * value
    lanes = np.empty(16, np.float32)
    store(lanes, 0, total)
    mean = lanes.sum() / np.float32(16 * (end - start))
    return _ONE / mean if mean > _ZERO else _ZERO


@inlined
def _reach(scalars: _Scalars, others: _Others, g: int, n: int) -> Any:
    """Where the weights of a group may be: the bounds of the integration."""
    low, high = splat(-_FAR), splat(_FAR)
    for k in range(scalars.scale.shape[0]):
        if _is_usable(scalars.scale[k, g], scalars.offset[k, g]):
            low, high = _narrow(low, high, scalars, k, g, k * n + 16 * g)
    for v in range(others.variance.shape[0]):
        if others.variance[v, g] > 0:
            value, deviation = _say(others, v, g, n)
            far = _DEVIATIONS * deviation
            low, high = _larger(value - far, low), -_larger(-value - far, -high)
    return low, high


@inlined
def _cells(scalars: _Scalars, g: int, n: int) -> Any:
    """The proven bounds of a group."""
    low, high = splat(-_FAR), splat(_FAR)
    for k in range(scalars.scale.shape[0]):
        if _is_usable(scalars.scale[k, g], scalars.offset[k, g]):
            low, high = _prove(low, high, scalars, k, g, k * n + 16 * g)
    return low, high


@inlined
def _product(scalars: _Scalars, others: _Others, g: int, n: int, frame: Any, prior: Any) -> Any:
    """The logarithm of the product of the prior and of all densities, in t."""
    middle, half = frame
    zero = splat(_ZERO)
    total = -(middle * half) * prior, -(half * half) * (_HALF * prior), zero, zero
    for k in range(scalars.scale.shape[0]):
        if _is_usable(scalars.scale[k, g], scalars.offset[k, g]):
            q = load_bytes(scalars.codes, k * n + 16 * g)
            value = _level(scalars, k, q) * scalars.scale[k, g] + scalars.offset[k, g]
            inverse = _ONE / scalars.scale[k, g]
            power = (middle - value) * inverse, half * inverse
            total = _add(total, power, _coefficients(scalars, k, q))
    for v in range(others.variance.shape[0]):
        if others.variance[v, g] > 0:
            value, deviation = _say(others, v, g, n)
            inverse = _ONE / deviation
            power = (middle - value) * inverse, half * inverse
            total = _add(total, power, (zero, splat(-_HALF), zero, zero))
    return total


@kernel
def _integrate(
    scalars: _Scalars,
    others: _Others,
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
    n_scalars, n_others = scalars.scale.shape[0], others.variance.shape[0]
    atoms = np.empty(n_scalars, np.bool_)
    for k in range(n_scalars):
        atoms[k] = np.any(scalars.rows[k, _ATOMS : _ATOMS + 3] > 0)
    stride = n_groups // _N_SAMPLED | 1  # odd, so that all places of a superblock take part
    alone = np.zeros((n_scalars + n_others) * 16, np.float32)
    expected, prior, n_conflicts, n_sampled = splat(_ZERO), _ZERO, 0, 0
    for g in range(n_groups):
        if g % 16 == 0:
            prior = _sharpness(scalars, g, min(g + 16, n_groups), n)
        at = 16 * g
        low, high = _reach(scalars, others, g, n)
        middle, half = (low + high) * _HALF, (high - low) * _HALF
        frame = middle, half
        total = _product(scalars, others, g, n, frame, prior)
        m0, m1, m2, top = _moments(total)
        place = m1
        if wants_mode:
            place = _mode(total)
        on_atom = splat(_ZERO)
        for k in range(n_scalars):
            if atoms[k] and _is_usable(scalars.scale[k, g], scalars.offset[k, g]):
                t, mass = _atom(scalars, k, g, k * n + at, frame, total, top)
                m0, m1, m2 = m0 + mass, m1 + mass * t, m2 + mass * t * t
                if wants_mode:  # an atom with more than half of the mass
                    on_atom = where(mass > on_atom, mass, on_atom)
                    place = where(on_atom + on_atom > m0, t, place)
        mean = m1 / m0
        if not wants_mode:
            place = mean
        # Where next to nothing is left, rounding would lead out of the cells.
        good = (half * half * prior > _NARROW) & (half > _ZERO) & (half < _FAR) & (m0 > _ZERO)
        estimate = middle + half * place
        error = where(good, half * half * (m2 / m0 - mean * mean), variance[g])
        if any_lane(where(good, _ZERO, splat(_ONE)) > _ZERO):
            # The reaches miss each other: a conflict, or the cells alone still meet.
            lower, upper = _cells(scalars, g, n)
            conflict = upper < lower
            first = _first(scalars, g, n)
            there = where(abs(half) < _FAR, middle, first)
            there = where(there < lower, lower, where(there > upper, upper, there))
            between = (lower + upper) * _HALF  # safer than an edge, which others round otherwise
            there = where((abs(between) < _FAR) & (abs(half) < _FAR), between, there)
            estimate = where(conflict, first, where(good, estimate, there))
            error = where(good | conflict | (half * half > error), error, half * half)
            n_conflicts += _count(conflict)
        store(out, at, estimate)
        if deviation.size > 0:
            store(deviation, at, sqrt(where(error > _ZERO, error, splat(_ZERO))))
        expected = expected + error
        if g % stride == 0:
            n_sampled += 1
            for k in range(n_scalars):
                if np.isfinite(scalars.scale[k, g]) and np.isfinite(scalars.offset[k, g]):
                    off = estimate - _value(scalars, k, g, k * n + at)
                    store(alone, 16 * k, load(alone, 16 * k) + (off * off + error))
            for v in range(n_others):
                row = 16 * (n_scalars + v)
                off = estimate - load(others.values, v * n + at)
                store(alone, row, load(alone, row) + (off * off + error))
    lanes = np.empty(16, np.float32)
    store(lanes, 0, expected)
    tally[0] += lanes.sum()
    tally[1] += n_conflicts
    for k in range(n_scalars + n_others):
        tally[2 + k] += alone[16 * k : 16 * k + 16].sum() * (n_groups / n_sampled)


@inlined
def _count(mask: Any) -> int:
    lanes = np.empty(16, np.float32)
    store(lanes, 0, where(mask, splat(_ONE), splat(_ZERO)))
    return int(lanes.sum())

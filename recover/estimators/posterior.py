"""The mean of the product-of-cells posterior.

Each input says where in its cell a weight is likely to be (`recover.densities`). The product of
these densities and of a normal prior as wide as the superblock's weights is integrated over the
intersection by a fixed Gauss-Legendre rule; the estimate is its mean, the error to expect its
variance. Where the intersection of the cells is empty the first (finest) input is taken alone.

The logarithms of the densities are polynomials, so their sum is one polynomial of degree 4 in the
place ``t`` (-1 to 1) in the intersection, whatever the number of inputs. Sixteen weights are worked
on at once.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._jit import inlined, kernel
from recover.cells import intersect_cells
from recover.estimators._combine import combine, sum_variance, take_first
from recover.evidence import Evidence, typical_variance
from recover.quants import GROUP, F32Array
from recover.quants._decode import is_affine
from recover.quants._lanes import any_lane, gather, load, load_bytes, splat, store, to_f32, where

SEES_CONFLICTS = True
CALIBRATED = "densities"

# The positive half of the symmetric rule with 8 nodes, outermost node first.
_NODES = tuple(np.float32(t) for t in -np.polynomial.legendre.leggauss(8)[0][:4])
_WEIGHTS = tuple(np.float32(w) for w in np.polynomial.legendre.leggauss(8)[1][:4])
_ZERO = np.float32(0)
_ONE = np.float32(1)
_DEVIATIONS = np.float32(4)
_FAR = np.float32(np.inf)
_JUST_INSIDE = np.float32(1.001)


def estimate(evidence: Evidence, out: F32Array, tally: NDArray[np.float64]) -> None:
    """See `recover.estimators`."""
    variance = np.empty(out.size // GROUP, np.float32)
    combine(evidence, out, variance, tally)
    lower, upper, first = np.empty_like(out), np.empty_like(out), np.empty_like(out)
    intersect_cells(evidence, lower, upper)
    if np.isneginf(evidence.lower_levels).all():  # without cells, the mean is the linear estimate
        tally[0] += sum_variance(variance)
        return
    take_first(evidence, first)
    spread = np.empty_like(variance)
    typical_variance(out, 1.0, spread)
    expected, n_conflicts = _integrate(evidence, lower, upper, first, spread, variance, out)
    tally[0] += expected
    tally[1] += n_conflicts


@inlined
def _add(total: Any, power: Any, coefficients: Any) -> Any:
    """Add to a polynomial (4 coefficients) in t another one in ``u = a + b t``, given (a, b)."""
    a, b = power
    c1, c2, c3, c4 = coefficients
    t1, t2, t3, t4 = total
    two, three, four, six = np.float32(2), np.float32(3), np.float32(4), np.float32(6)
    t1 = t1 + b * (c1 + a * (c2 * two + a * (c3 * three + a * c4 * four)))
    bb = b * b
    t2 = t2 + bb * (c2 + a * (c3 * three + a * c4 * six))
    t3 = t3 + bb * b * (c3 + a * c4 * four)
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
def _exp(x: Any) -> Any:
    """``exp(x)`` as ``(1 + x / 2**10) ** 2**10``, relatively off by about ``x**2 / 2**11``."""
    y = x * np.float32(2.0**-10) + _ONE
    y = where(y < _ZERO, _ZERO, y)
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    y = y * y
    return y * y


@inlined
def _choose(by_class: Any, lowest: Any, highest: Any) -> Any:
    """The number (interior, lowest, highest) for each lane's class of code."""
    return where(lowest, by_class[1], where(highest, by_class[2], splat(by_class[0])))


@inlined
def _is_usable(scale: np.float32, offset: np.float32) -> bool:
    return scale != _ZERO and np.isfinite(scale) and np.isfinite(offset)


@inlined
def _narrow(low: Any, high: Any, one: Any, other: Any) -> Any:
    """The part of an interval between two numbers, in whatever order they come."""
    below, above = where(one < other, one, other), where(one < other, other, one)
    return where(below > low, below, low), where(above < high, above, high)


@kernel
def _integrate(
    evidence: Evidence,
    lower: F32Array,
    upper: F32Array,
    first: F32Array,
    spread: F32Array,
    variance: F32Array,
    out: F32Array,
) -> tuple[float, int]:
    """Replace linear estimates by posterior means; the variance to expect and the conflicts."""
    n_scalars, n = evidence.codes.shape
    codes, values = evidence.codes.reshape(-1), evidence.values.reshape(-1)
    levels, density = evidence.levels.reshape(-1), evidence.density
    scale, offset, ends = evidence.scale, evidence.offset, evidence.end_codes
    others, n_others = evidence.variance, evidence.values.shape[0]
    usable = np.empty(scale.shape, np.bool_)
    for k in range(n_scalars):
        for g in range(scale.shape[1]):
            usable[k, g] = _is_usable(scale[k, g], offset[k, g])
    affine = np.empty(n_scalars, np.bool_)
    atoms = np.empty(n_scalars, np.bool_)
    for k in range(n_scalars):
        affine[k] = is_affine(evidence.levels[k])
        atoms[k] = np.any(density[k, :, 4] > 0)
    n_conflicts, expected = 0, splat(_ZERO)
    for g in range(out.size // 16):
        at = 16 * g
        hard_low, hard_high = load(lower, at), load(upper, at)
        low, high = hard_low, hard_high
        for k in range(n_scalars):
            if usable[k, g]:
                q = load_bytes(codes, k * n + at)
                level = to_f32(q) + levels[256 * k] if affine[k] else gather(levels, q + 256 * k)
                lowest, highest = q == ends[k, 0], q == ends[k, 1]
                s = scale[k, g]
                value = level * s + offset[k, g]
                below = (
                    _choose((density[k, 0, 5], density[k, 1, 5], density[k, 2, 5]), lowest, highest)
                    * s
                    + value
                )
                above = (
                    _choose((density[k, 0, 6], density[k, 1, 6], density[k, 2, 6]), lowest, highest)
                    * s
                    + value
                )
                low, high = _narrow(low, high, below, above)
        for v in range(n_others):
            if others[v, g] > 0:
                value = load(values, v * n + at)
                reach = _DEVIATIONS * np.sqrt(others[v, g])
                low, high = _narrow(low, high, value - reach, value + reach)
        middle, half = (low + high) * np.float32(0.5), (high - low) * np.float32(0.5)
        sharpness = _ONE / spread[g] if spread[g] > 0 else _ZERO
        zero = splat(_ZERO)
        total = (
            -(middle * half) * sharpness,
            -(half * half) * (np.float32(0.5) * sharpness),
            zero,
            zero,
        )
        for k in range(n_scalars):
            if usable[k, g]:
                q = load_bytes(codes, k * n + at)
                level = to_f32(q) + levels[256 * k] if affine[k] else gather(levels, q + 256 * k)
                lowest, highest = q == ends[k, 0], q == ends[k, 1]
                inverse = _ONE / scale[k, g]
                value = level * scale[k, g] + offset[k, g]
                coefficients = (
                    _choose(
                        (density[k, 0, 0], density[k, 1, 0], density[k, 2, 0]), lowest, highest
                    ),
                    _choose(
                        (density[k, 0, 1], density[k, 1, 1], density[k, 2, 1]), lowest, highest
                    ),
                    _choose(
                        (density[k, 0, 2], density[k, 1, 2], density[k, 2, 2]), lowest, highest
                    ),
                    _choose(
                        (density[k, 0, 3], density[k, 1, 3], density[k, 2, 3]), lowest, highest
                    ),
                )
                total = _add(total, ((middle - value) * inverse, half * inverse), coefficients)
        for v in range(n_others):
            if others[v, g] > 0:
                inverse = _ONE / np.sqrt(others[v, g])
                place = (middle - load(values, v * n + at)) * inverse
                normal = (zero, splat(np.float32(-0.5)), zero, zero)
                total = _add(total, (place, half * inverse), normal)
        top = zero
        for t in (_NODES[0], _NODES[2]):
            even, odd = _parts(total, t)
            height = even + abs(odd)
            top = where(height > top, height, top)
        m0, m1, m2 = zero, zero, zero
        for i in range(len(_NODES)):
            t = _NODES[i]
            even, odd = _parts(total, t)
            right, left = _exp(even + odd - top), _exp(even - odd - top)
            both = (right + left) * _WEIGHTS[i]
            m0 = m0 + both
            m1 = m1 + (right - left) * (_WEIGHTS[i] * t)
            m2 = m2 + both * (t * t)
        for k in range(n_scalars):
            if atoms[k] and usable[k, g]:
                q = load_bytes(codes, k * n + at)
                level = to_f32(q) + levels[256 * k] if affine[k] else gather(levels, q + 256 * k)
                lowest, highest = q == ends[k, 0], q == ends[k, 1]
                if any_lane(lowest | highest):
                    s = scale[k, g]
                    value = level * s + offset[k, g]
                    t = (value - middle) / half
                    weight = (
                        _choose(
                            (density[k, 0, 4], density[k, 1, 4], density[k, 2, 4]), lowest, highest
                        )
                        * abs(splat(s))
                        / half
                    )
                    weight = weight * _exp(_at(total, t) - top)
                    inside = (abs(t) < _JUST_INSIDE) & (weight < _FAR)
                    weight, t = where(inside, weight, _ZERO), where(inside, t, _ZERO)
                    m0, m1, m2 = m0 + weight, m1 + weight * t, m2 + weight * t * t
        mean = m1 / m0
        linear = load(out, at)
        clipped = where(linear < hard_low, hard_low, where(linear > hard_high, hard_high, linear))
        good = (half > _ZERO) & (half < _FAR) & (m0 > _ZERO)
        estimate = where(good, middle + half * mean, clipped)
        error = where(good, half * half * (m2 / m0 - mean * mean), variance[g])
        conflict = hard_high < hard_low
        if any_lane(conflict):
            alone = load(first, at)
            estimate = where(conflict, where(abs(alone) < _FAR, alone, linear), estimate)
            error = where(conflict, variance[g], error)
            for i in range(at, at + 16):
                n_conflicts += lower[i] > upper[i]
        store(out, at, estimate)
        expected = expected + error
    lanes = np.empty(16, np.float32)
    store(lanes, 0, expected)
    return lanes.sum(), n_conflicts

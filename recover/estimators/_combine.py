"""Kernels that the estimators share."""

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import add_up, any_lane
from recover._compiled.jit import bare_inlined, inner, kernel
from recover._compiled.lanes import gather, load, load_bytes, splat, store, to_f32
from recover.estimators.tally import ALONE
from recover.evidence.buffer import Evidence, take_one
from recover.quants import GROUP, F32Array, U8Array
from recover.quants._decode import is_affine

_ZERO, _FAR = np.float32(0), np.float32(np.inf)
_LEAST_SHARE = np.float32(1e-6)
_STRIP = 256
"""Groups of 16 weights whose sums stay in the first-level cache."""


@inner
def _mean_variances(values: F32Array, each: F32Array, variance: F32Array) -> None:
    """The means of `each` (n,) over groups of 16 weights; infinite where something is broken."""
    for g in range(variance.size):
        broken = any_lane(~(abs(load(values, 16 * g)) < np.float32(np.inf)))
        mean = add_up(load(each, 16 * g)) / np.float32(16)
        variance[g] = np.float32(np.inf) if broken or not np.isfinite(mean) else mean


@kernel
def group_variances(evidence: Evidence, k: int, variance: F32Array) -> None:
    """Expected mean square error (n / 16,) of input `k`; infinite where its bytes are broken.

    ``noise s^2`` of a scalar input with the scale s, the mean of the stated variances of an
    interval input, and ``relative_mse`` times the mean square of a superblock of the others.
    """
    n_scalars, n_proven = evidence.scale.shape[0], evidence.interval_values.shape[0]
    if k >= n_scalars + n_proven:
        for g in range(variance.size):
            variance[g] = evidence.variance[k - n_scalars - n_proven, g]
        return
    if k >= n_scalars:
        row = k - n_scalars
        _mean_variances(evidence.interval_values[row], evidence.interval_variance[row], variance)
        return
    noise = np.float32(evidence.noise[k])
    scale = evidence.scale[k]
    offset = evidence.offset[k]
    for g in range(variance.size):
        alone = noise * scale[g] * scale[g]
        variance[g] = alone if np.isfinite(offset[g]) and np.isfinite(alone) else np.inf


@kernel
def sum_variance(variance: F32Array) -> float:
    """Sum over the weights of a variance (n / 16,) that they share in groups, where it is known."""
    total = 0.0
    for g in range(variance.size):
        total += np.float64(variance[g]) if variance[g] < np.inf else 0.0
    return 16 * total


@bare_inlined
def n_effective(variance: F32Array) -> int:
    """How many groups would count as much if all had one variance: ``(sum V)^2 / (sum V^2)``.

    Four sums of a kind, as each waits for the number before; of whole superblocks.
    """
    a = b = c = d = aa = bb = cc = dd = 0.0
    for g in range(0, variance.size, 4):
        one, two = _known(variance[g]), _known(variance[g + 1])
        three, four = _known(variance[g + 2]), _known(variance[g + 3])
        a, b, c, d = a + one, b + two, c + three, d + four
        aa, bb, cc, dd = aa + one * one, bb + two * two, cc + three * three, dd + four * four
    total, squares = (a + b) + (c + d), (aa + bb) + (cc + dd)
    return int(total * total / squares) if squares > 0 else 0


HARDLY_ANYTHING = 1e-30
"""Part of the `amount` of each group."""


@bare_inlined
def add_amount(variance: F32Array, start: int, end: int, amount: float) -> float:
    """Add what errors of groups are in proportion to: the variance where it is known."""
    for g in range(start, end):
        amount += _known(variance[g])
    return amount


@bare_inlined
def _known(variance: np.float32) -> float:
    return np.float64(variance if variance < _FAR else _ZERO)


@kernel
def add_variance(variance: F32Array, tallies: NDArray[np.float64], column: int) -> None:
    """Add the sums over the weights of tensors to a column (n_tensors, ...).

    Tensors of one size lie one behind the other in the variance (n / 16,), as `sum_variance` has
    it.
    """
    n = variance.size // tallies.shape[0]
    for i in range(tallies.shape[0]):
        tallies[i, column] += sum_variance(variance[i * n : (i + 1) * n])


@inner
def _add_variances(rows: F32Array, tallies: NDArray[np.float64], column: int) -> None:
    """As `add_variance`, of rows (k, n / 16) and the columns from `column` on.

    Four rows are added up at once: each sum waits for the number before.
    """
    n, last = rows.shape[1] // tallies.shape[0], rows.shape[0] - 1
    for k in range(0, rows.shape[0], 4):
        a, b = rows[k], rows[min(k + 1, last)]
        c, d = rows[min(k + 2, last)], rows[min(k + 3, last)]
        for i in range(tallies.shape[0]):
            own = slice(i * n, (i + 1) * n)
            sums = _sums_of_four(a[own], b[own], c[own], d[own])
            for j in range(min(4, rows.shape[0] - k)):
                tallies[i, column + k + j] += 16 * sums[j]


@inner
def _sums_of_four(a: F32Array, b: F32Array, c: F32Array, d: F32Array) -> tuple[float, ...]:
    """Sums of what is known, in the order of the groups."""
    of_a = of_b = of_c = of_d = 0.0
    known = np.empty((4, _STRIP), np.float64)
    for start in range(0, a.size, _STRIP):
        end = min(start + _STRIP, a.size)
        _take_known(a[start:end], known[0])
        _take_known(b[start:end], known[1])
        _take_known(c[start:end], known[2])
        _take_known(d[start:end], known[3])
        for g in range(end - start):
            of_a += known[0, g]
            of_b += known[1, g]
            of_c += known[2, g]
            of_d += known[3, g]
    return of_a, of_b, of_c, of_d


@inner
def _take_known(variance: F32Array, known: NDArray[np.float64]) -> None:
    for g in range(variance.size):
        known[g] = np.float64(variance[g] if variance[g] < _FAR else _ZERO)


@inner
def _variances_alone(evidence: Evidence, tallies: NDArray[np.float64]) -> F32Array:
    """The `group_variances` of all inputs, (n_inputs, n / 16), which are added to the tallies."""
    rows = np.empty((tallies.shape[1] - ALONE, evidence.scale.shape[1]), np.float32)
    for k in range(rows.shape[0]):
        group_variances(evidence, k, rows[k])
    _add_variances(rows, tallies, ALONE)
    return rows


@inner
def _precisions(variance: F32Array, precision: F32Array, total: F32Array) -> None:
    """``1 / variance``, added to `total`; 0 where a variance says nothing (scale 0, broken)."""
    for g in range(variance.size):
        known = variance[g] > _ZERO and variance[g] < _FAR
        precision[g] = np.float32(1) / variance[g] if known else _ZERO
        total[g] += precision[g]


@inner
def _normalize(weights: F32Array, total: F32Array) -> None:
    """Precisions to weights: ``w_k = p_k / sum over j of p_j``, where any is known."""
    for g in range(total.size):
        weights[g] = weights[g] / total[g] if total[g] > _ZERO else _ZERO


@inner
def _take_first_usable(variances: F32Array, total: F32Array, weights: F32Array) -> None:
    """Where the `total` precision is 0: weight 1 for the first input that is not broken."""
    for g in range(total.size):
        if total[g] == _ZERO:
            first = 0
            for k in range(weights.shape[0] - 1, -1, -1):
                if variances[k, g] < _FAR:
                    first = k
            weights[first, g] = 1


@inner
def _weigh(weights: F32Array, numbers: F32Array, out: F32Array) -> None:
    """Numbers (n,) times weights; 0 where the weight is, as those may be broken."""
    for g in range(weights.size):
        out[g] = weights[g] * numbers[g] if weights[g] != _ZERO else _ZERO


@inner
def _add_codes(
    codes: U8Array,
    levels: F32Array,
    affine: NDArray[np.bool_],
    at: int,
    scales: F32Array,
    offsets: F32Array,
    out: F32Array,
) -> None:
    """Fill `out` (n,) with the sum of K decoded inputs, from weight `at` on.

    Codes and levels (K, 256) are flat, `affine` (K,) as `is_affine` has it. Scales and offsets (K *
    _STRIP,) begin as `out` does.
    """
    n_codes = codes.size // max(affine.size, 1)
    for g in range(out.size // 16):
        total = splat(_ZERO)
        for k in range(affine.size):
            q = load_bytes(codes, k * n_codes + at + 16 * g)
            level = to_f32(q) + levels[256 * k] if affine[k] else gather(levels, q + 256 * k)
            total = total + (level * scales[_STRIP * k + g] + offsets[_STRIP * k + g])
        store(out, 16 * g, total)


@inner
def _add_values(values: F32Array, weights: F32Array, out: F32Array) -> None:
    """``out += weight * value``."""
    for g in range(weights.size):
        if weights[g] != 0:
            store(out, 16 * g, load(out, 16 * g) + load(values, 16 * g) * weights[g])


def combine(
    evidence: Evidence, out: F32Array, variance: F32Array, tallies: NDArray[np.float64]
) -> None:
    """The mean of the inputs weighted by inverse variance.

    Fills `out` (n,) and the expected `variance` (n / 16,) of it, and adds to ``tallies[:, 2:]`` the
    expected variance of each input alone. Where no input has a usable variance (scales are 0), the
    first that is not broken is taken. Beside interval inputs, whose errors differ from weight to
    weight, each weight has weights of its own.
    """
    _combine_by_group(evidence, out, variance, tallies)
    n_scalars, n_proven = len(evidence.scale), len(evidence.interval_values)
    n_inputs = tallies.shape[1] - ALONE
    if not n_proven or n_inputs == 1:
        return
    total, weighted = np.zeros((2, out.size), np.float32)
    value, own = np.empty_like(out), np.empty_like(variance)
    for k in range(n_inputs):
        take_one(evidence, k, value)
        if n_scalars <= k < n_scalars + n_proven:
            each = evidence.interval_variance[k - n_scalars]
        else:
            group_variances(evidence, k, own)
            each = np.repeat(own, GROUP)
        _add_precise(value, each, weighted, total)
    _divide(weighted, total, out, variance)


@kernel
def _add_precise(value: F32Array, variance: F32Array, weighted: F32Array, total: F32Array) -> None:
    """Add what an input says, times its precision, and the precision, where both are known.

    ``weighted += x_k / var_k``, ``total += 1 / var_k``.
    """
    for i in range(value.size):
        precision = np.float32(1) / variance[i]
        known = np.float32(0) < precision < np.float32(np.inf) and np.isfinite(value[i])
        weighted[i] += value[i] * precision if known else np.float32(0)
        total[i] += precision if known else np.float32(0)


@kernel
def _divide(weighted: F32Array, total: F32Array, out: F32Array, variance: F32Array) -> None:
    """The mean where something is known, and its variance (n / 16,), the mean of 16 weights.

    ``mean = (sum of x_k / var_k) / (sum of 1 / var_k)``, ``variance = 1 / (sum of 1 / var_k)``.
    """
    for g in range(variance.size):
        mean = np.float32(0)
        for i in range(16 * g, 16 * g + 16):
            if total[i] > 0:
                out[i] = weighted[i] / total[i]
                mean += np.float32(1) / total[i]
            else:
                mean += variance[g]
        variance[g] = mean / np.float32(16)


@kernel
def _combine_by_group(
    evidence: Evidence, out: F32Array, variance: F32Array, tallies: NDArray[np.float64]
) -> None:
    """As `combine`, with weights that each 16 share.

    ``out = sum over k of w_k x_k``, ``w_k = (1 / var_k) / (sum over j of 1 / var_j)``; the variance
    is ``1 / (sum over j of 1 / var_j)``.
    """
    n_inputs, n_groups = tallies.shape[1] - ALONE, variance.size
    alone = _variances_alone(evidence, tallies)
    weights, total = np.empty((n_inputs, n_groups), np.float32), np.zeros_like(variance)
    for k in range(n_inputs):
        _precisions(alone[k], weights[k], total)
    for k in range(n_inputs):
        _normalize(weights[k], total)
    if not _are_positive(total):
        _take_first_usable(alone, total, weights)
    for g in range(n_groups):
        last = alone[n_inputs - 1, g]
        variance[g] = np.float32(1) / total[g] if total[g] > _ZERO else last
    _add_all(evidence, weights, out)


@inner
def _are_positive(values: F32Array) -> bool:
    n = 0
    for value in values:
        n += value > _ZERO
    return n == values.size


@inner
def _add_all(evidence: Evidence, weights: F32Array, out: F32Array) -> None:
    """Fill `out` (n,) with the sum of all inputs times their weights (K + I + V, n / 16)."""
    n_scalars, n_proven = evidence.codes.shape[0], evidence.interval_values.shape[0]
    codes, levels = evidence.codes.reshape(-1), evidence.levels.reshape(-1)
    affine = np.empty(n_scalars, np.bool_)
    for k in range(n_scalars):
        affine[k] = is_affine(evidence.levels[k])
    scales, offsets = np.empty((2, n_scalars * _STRIP), np.float32)
    for start in range(0, weights.shape[1], _STRIP):
        end = min(start + _STRIP, weights.shape[1])
        for k in range(n_scalars):
            own = slice(_STRIP * k, _STRIP * k + end - start)
            _weigh(weights[k, start:end], evidence.scale[k, start:end], scales[own])
            _weigh(weights[k, start:end], evidence.offset[k, start:end], offsets[own])
        _add_codes(codes, levels, affine, 16 * start, scales, offsets, out[16 * start : 16 * end])
    for k in range(n_scalars, n_scalars + n_proven):
        _add_values(evidence.interval_values[k - n_scalars], weights[k], out)
    for k in range(n_scalars + n_proven, weights.shape[0]):
        _add_values(evidence.values[k - n_scalars - n_proven], weights[k], out)


@kernel
def combine_weighted(
    evidence: Evidence, out: F32Array, variance: F32Array, tallies: NDArray[np.float64]
) -> None:
    """The sum of the inputs times the weights of a calibration.

    ``out = sum over k of w_k x_k``. Fills and adds to the same as `combine`; the variance is that
    of independent errors, ``sum over k of w_k^2 var_k``. Where an input's bytes are broken, the
    others take over its weight.
    """
    n_inputs = tallies.shape[1] - ALONE
    weights = np.zeros((n_inputs, variance.size), np.float32)
    total = np.zeros_like(variance)
    expected = np.zeros_like(variance)
    alone = _variances_alone(evidence, tallies)
    for k in range(n_inputs):
        weight = np.float32(evidence.weights[k])
        for g in range(variance.size):
            if alone[k, g] < np.inf:
                weights[k, g] = weight
                total[g] += weight
                expected[g] += weight * weight * alone[k, g]
    # In the same order as above, so that nothing is scaled where nothing is broken.
    full = np.float32(0)
    for k in range(n_inputs):
        full += np.float32(evidence.weights[k])
    for g in range(variance.size):
        if total[g] != full:
            share = full / total[g] if total[g] > _LEAST_SHARE * full else np.float32(0)
            total[g] *= share
            for k in range(n_inputs):
                weights[k, g] *= share
    if not _are_positive(total):
        _take_first_usable(alone, total, weights)
    variance[:] = expected
    _add_all(evidence, weights, out)


def take_finest(evidence: Evidence, out: F32Array) -> None:
    """The finest input alone: exactly what dequantizing it gives."""
    take_one(evidence, evidence.finest, out)


@kernel
def square_difference(one: F32Array, other: F32Array) -> float:
    """Of two inputs' weights, float32 (n,), summed."""
    total = 0.0
    for i in range(one.size):
        off = np.float64(one[i]) - np.float64(other[i])
        total += off * off
    return total

"""Kernels that the estimators share."""

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import add_up, any_lane
from recover._compiled.jit import bare_inlined, inner, kernel
from recover._compiled.lanes import gather, load, load_bytes, store, to_f32
from recover.estimators.tally import ALONE
from recover.evidence.buffer import Evidence, take_one
from recover.quants import GROUP, F32Array, U8Array
from recover.quants._decode import is_affine

_LEAST_SHARE = np.float32(1e-6)
_HARDLY_ANYTHING = 1e-30


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
    """How many groups would count as much if all had one variance: ``(sum V)^2 / (sum V^2)``."""
    total = squares = 0.0
    for g in range(variance.size):
        if variance[g] < np.float32(np.inf):
            total += np.float64(variance[g])
            squares += np.float64(variance[g]) ** 2
    return int(total * total / squares) if squares > 0 else 0


@bare_inlined
def amount(variance: F32Array) -> float:
    """What errors of groups are in proportion to: the sum of what is known, and hardly anything."""
    total = variance.size * _HARDLY_ANYTHING
    for g in range(variance.size):
        total += np.float64(variance[g]) if variance[g] < np.float32(np.inf) else 0.0
    return total


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
def _precisions(variance: F32Array, precision: F32Array, total: F32Array) -> None:
    """``1 / variance``, added to `total`; 0 where a variance says nothing (scale 0, broken)."""
    for g in range(variance.size):
        known = variance[g] > 0 and variance[g] < np.inf
        precision[g] = np.float32(1) / variance[g] if known else np.float32(0)
        total[g] += precision[g]


@inner
def _normalize(weights: F32Array, total: F32Array) -> None:
    """Precisions to weights: ``w_k = p_k / sum over j of p_j``, where any is known."""
    for g in range(total.size):
        weights[g] = weights[g] / total[g] if total[g] > 0 else np.float32(0)


@inner
def _take_first_usable(evidence: Evidence, total: F32Array, weights: F32Array) -> None:
    """Where the `total` precision is 0: weight 1 for the first input that is not broken."""
    variance = np.empty(total.size, np.float32)
    missing = total == 0
    for k in range(weights.shape[0]):
        group_variances(evidence, k, variance)
        for g in range(total.size):
            if missing[g] and variance[g] < np.inf:
                weights[k, g] = 1
                missing[g] = False
    for g in range(total.size):
        if missing[g]:
            weights[0, g] = 1


@inner
def _add_codes(
    codes: U8Array,
    scale: F32Array,
    offset: F32Array,
    levels: F32Array,
    weights: F32Array,
    out: F32Array,
) -> None:
    """``out += weight * decoded``."""
    affine = is_affine(levels)
    for g in range(weights.size):
        if weights[g] != 0:
            q = load_bytes(codes, 16 * g)
            level = to_f32(q) + levels[0] if affine else gather(levels, q)
            weighted = level * (weights[g] * scale[g]) + weights[g] * offset[g]
            store(out, 16 * g, load(out, 16 * g) + weighted)


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
    n_inputs = tallies.shape[1] - ALONE
    weights = np.empty((n_inputs, variance.size), np.float32)
    total = np.zeros_like(variance)
    for k in range(n_inputs):
        group_variances(evidence, k, variance)
        add_variance(variance, tallies, ALONE + k)
        _precisions(variance, weights[k], total)
    for k in range(n_inputs):
        _normalize(weights[k], total)
    if not _are_positive(total):
        _take_first_usable(evidence, total, weights)
    for g in range(variance.size):
        if total[g] > 0:
            variance[g] = np.float32(1) / total[g]
    _add_all(evidence, weights, out)


@inner
def _are_positive(values: F32Array) -> bool:
    n = 0
    for value in values:
        n += value > 0
    return n == values.size


@inner
def _add_all(evidence: Evidence, weights: F32Array, out: F32Array) -> None:
    """Fill `out` with the sum of all inputs times their weights (K + I + V, n / 16)."""
    n_scalars, n_inputs = evidence.codes.shape[0], weights.shape[0]
    n_proven = evidence.interval_values.shape[0]
    out[:] = 0
    for k in range(n_scalars):
        _add_codes(
            evidence.codes[k],
            evidence.scale[k],
            evidence.offset[k],
            evidence.levels[k],
            weights[k],
            out,
        )
    for k in range(n_scalars, n_scalars + n_proven):
        _add_values(evidence.interval_values[k - n_scalars], weights[k], out)
    for k in range(n_scalars + n_proven, n_inputs):
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
    for k in range(n_inputs):
        weight = np.float32(evidence.weights[k])
        group_variances(evidence, k, variance)
        add_variance(variance, tallies, ALONE + k)
        for g in range(variance.size):
            if variance[g] < np.inf:
                weights[k, g] = weight
                total[g] += weight
                expected[g] += weight * weight * variance[g]
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
        _take_first_usable(evidence, total, weights)
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

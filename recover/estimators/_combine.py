"""Kernels that the estimators share."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import any_lane, sum_lanes
from recover._compiled.doubles import to_f64
from recover._compiled.jit import bare_inlined, bare_inner, bare_kernel, kernel
from recover._compiled.lanes import (
    LANES,
    gather,
    load,
    load_bytes,
    splat,
    store,
    to_f32,
    where,
)
from recover.estimators._variances import (
    add_variance,
    group_variances,
    mean_variances,
    scalar_variances,
)
from recover.estimators.tally import ALONE, VARIANCE
from recover.evidence.buffer import Evidence, take_one
from recover.quants import GROUP, F32Array, U8Array
from recover.quants._decode import is_affine

_ZERO, _FAR = np.float32(0), np.float32(np.inf)
_LEAST_SHARE = np.float32(1e-6)
_BY_TABLE = np.int32(-(2**31))
_STRIP = 256
"""Groups of 16 weights whose sums stay in the first-level cache."""


@bare_inner
def _add_up(rows: F32Array, n: int, sums: NDArray[np.float64]) -> None:
    """Add to `sums` (k,) the first `n` of each row (k, ...), where they are known.

    Sixteen sums at once: each sum waits for the number before.
    """
    whole = n // LANES * LANES
    for k in range(rows.shape[0]):
        row, several, alone = rows[k], to_f64(splat(_ZERO)), 0.0
        for g in range(0, whole, LANES):
            own = load(row, g)
            several = several + to_f64(where(own < _FAR, own, _ZERO))
        for g in range(whole, n):
            alone += np.float64(row[g] if row[g] < _FAR else _ZERO)
        sums[k] += sum_lanes(several) + alone


@bare_inner
def _weigh_by_precision(rows: F32Array, n: int, weights: F32Array) -> None:
    """Weights of `n` groups, and the variance of their sum.

    ``w_k = p_k / sum over j of p_j`` with ``p_k = 1 / var_k``, 0 where a variance says nothing
    (scale 0, broken).

    Parameters
    ----------
    rows : float32 (k + 1, ...)
        Variances of the inputs; the last row is filled: ``1 / sum over j of p_j``.
    n : int
        How many groups.
    weights : float32 (k, ...)
        To be filled.
    """
    n_inputs = weights.shape[0]
    total, last, one = rows[n_inputs], rows[n_inputs - 1], splat(np.float32(1))
    unknown = one < _ZERO
    for g in range(0, n, LANES):
        precisions = splat(_ZERO)
        for k in range(n_inputs):
            own = load(rows[k], g)
            precision = where(own > _ZERO, one / own, _ZERO)  # 0 where nothing is known, too
            store(weights[k], g, precision)
            precisions = precisions + precision
        for k in range(n_inputs):
            weight = where(precisions > _ZERO, load(weights[k], g) / precisions, _ZERO)
            store(weights[k], g, weight)
        store(total, g, precisions)
        unknown = unknown | ~(precisions > _ZERO)
    if any_lane(unknown):
        _take_first_usable(rows, total[:n], weights)
    for g in range(0, n, LANES):
        precisions = load(total, g)
        store(total, g, where(precisions > _ZERO, one / precisions, load(last, g)))


@bare_inner
def _weigh_as_told(
    told: NDArray[np.float64], rows: F32Array, n: int, weights: F32Array, total: F32Array
) -> None:
    """As `_weigh_by_precision`, by what a calibration says (k,) of the inputs; `total` is scratch.

    The variance is that of independent errors, ``sum over k of w_k^2 var_k``. Where an input's
    bytes are broken, the others take over its weight.
    """
    n_inputs = weights.shape[0]
    expected = rows[n_inputs, :n]
    expected[:], total[:n] = _ZERO, _ZERO
    full = _ZERO
    for k in range(n_inputs):
        weight = np.float32(told[k])
        full += weight
        for g in range(n):
            usable = rows[k, g] < _FAR
            weights[k, g] = weight if usable else _ZERO
            total[g] += weight if usable else _ZERO
            expected[g] += weight * weight * rows[k, g] if usable else _ZERO
    # `full` is summed in the same order, so that nothing is scaled where nothing is broken.
    for g in range(n):
        if total[g] != full:
            share = full / total[g] if total[g] > _LEAST_SHARE * full else _ZERO
            total[g] *= share
            for k in range(n_inputs):
                weights[k, g] *= share
    if not _are_positive(total[:n]):
        _take_first_usable(rows, total[:n], weights)


@bare_inner
def _take_first_usable(variances: F32Array, total: F32Array, weights: F32Array) -> None:
    """Where the `total` precision is 0: weight 1 for the first input that is not broken."""
    for g in range(total.size):
        if total[g] == _ZERO:
            first = 0
            for k in range(weights.shape[0] - 1, -1, -1):
                if variances[k, g] < _FAR:
                    first = k
            weights[first, g] = 1


@bare_inner
def _weigh(
    weights: F32Array, scale: F32Array, offset: F32Array, scales: F32Array, offsets: F32Array
) -> None:
    """Scale and offset (n,) times weights; 0 where the weight is, as those may be broken."""
    whole = scale.size // LANES * LANES
    for g in range(0, whole, LANES):
        weight = load(weights, g)
        counts = weight != _ZERO
        store(scales, g, where(counts, weight * load(scale, g), _ZERO))
        store(offsets, g, where(counts, weight * load(offset, g), _ZERO))
    for g in range(whole, scale.size):
        counts_alone = weights[g] != _ZERO
        scales[g] = weights[g] * scale[g] if counts_alone else _ZERO
        offsets[g] = weights[g] * offset[g] if counts_alone else _ZERO


@bare_inner
def _add_codes(
    codes: U8Array,
    levels: F32Array,
    lowest: NDArray[np.int32],
    at: int,
    scales: F32Array,
    offsets: F32Array,
    out: F32Array,
) -> None:
    """Fill `out` (n,) with the sum of K decoded inputs, from weight `at` on.

    Codes and levels (K, 256) are flat; `lowest` (K,) as `_Scratch` has it. Scales and offsets (K *
    _STRIP,) begin as `out` does. Where no level needs a table, four groups are worked on at once.
    """
    n_inputs = lowest.size
    n_codes, whole = codes.size // max(n_inputs, 1), out.size // 64 * 64
    for k in range(n_inputs):
        if lowest[k] == _BY_TABLE:
            whole = 0
    for i in range(0, whole, 64):
        a = b = c = d = splat(_ZERO)
        for k in range(n_inputs):
            q, g, base = k * n_codes + at + i, _STRIP * k + i // 16, lowest[k]
            level = to_f32(load_bytes(codes, q) + base)
            a = a + (level * scales[g] + offsets[g])
            level = to_f32(load_bytes(codes, q + 16) + base)
            b = b + (level * scales[g + 1] + offsets[g + 1])
            level = to_f32(load_bytes(codes, q + 32) + base)
            c = c + (level * scales[g + 2] + offsets[g + 2])
            level = to_f32(load_bytes(codes, q + 48) + base)
            d = d + (level * scales[g + 3] + offsets[g + 3])
        store(out, i, a)
        store(out, i + 16, b)
        store(out, i + 32, c)
        store(out, i + 48, d)
    for i in range(whole, out.size, 16):
        total = splat(_ZERO)
        for k in range(n_inputs):
            codes_of_16, g = load_bytes(codes, k * n_codes + at + i), _STRIP * k + i // 16
            if lowest[k] == _BY_TABLE:
                level = gather(levels, codes_of_16 + 256 * k)
            else:
                level = to_f32(codes_of_16 + lowest[k])
            total = total + (level * scales[g] + offsets[g])
        store(out, i, total)


@bare_inner
def _add_values(values: F32Array, weights: F32Array, out: F32Array) -> None:
    """``out += weight * value``."""
    for g in range(weights.size):
        if weights[g] != 0:
            store(out, 16 * g, load(out, 16 * g) + load(values, 16 * g) * weights[g])


def combine(
    evidence: Evidence,
    out: F32Array,
    variance: F32Array,
    tallies: NDArray[np.float64],
    *,
    is_counted: bool = False,
) -> None:
    """The mean of the inputs weighted by inverse variance, or by the weights of a calibration.

    Fills `out` (n,) and the expected `variance` (n / 16,) of it, and adds to ``tallies[:, 2:]`` the
    expected variance of each input alone; with `is_counted` that of the mean to ``tallies[:, 0]``.
    Where no input has a usable variance (scales are 0), the first that is not broken is taken.
    Beside interval inputs, whose errors differ from weight to weight, each weight has weights of
    its own, by the code of scalar inputs.
    """
    n_scalars, n_proven = len(evidence.scale), len(evidence.interval_values)
    n_inputs = tallies.shape[1] - ALONE
    is_by_group = not n_proven or n_inputs == 1 or evidence.weights.size > 0
    _combine_by_group(
        evidence,
        out,
        variance,
        tallies,
        is_counted and is_by_group,
        np.zeros(_n_scratch(n_inputs, n_scalars), np.float32),
        np.empty(n_inputs + 1, np.float64),
        np.empty(n_scalars, np.int32),
    )
    if is_by_group:
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
        if k < n_scalars:
            _by_code(evidence.codes[k], evidence.code_errors[k], each)
        _add_precise(value, each, weighted, total)
    _divide(weighted, total, out, variance)
    if is_counted:
        add_variance(variance, tallies, VARIANCE)


@kernel
def _by_code(codes: U8Array, errors: F32Array, variance: F32Array) -> None:
    """Multiply variances (n,) by what errors of codes are, over those of all (256,)."""
    for i in range(codes.size):
        variance[i] *= errors[codes[i]]


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


class _Scratch(NamedTuple):
    """Memory for a strip of groups of K + I + V inputs."""

    rows: F32Array
    """(K + I + V + 1, _STRIP): variances of the inputs, and of their sum."""
    weights: F32Array
    """(K + I + V, _STRIP)"""
    scales: F32Array
    """(K * _STRIP,), at least one strip."""
    offsets: F32Array
    sums: NDArray[np.float64]
    """(K + I + V + 1,)"""
    lowest: NDArray[np.int32]
    """(K,): the level of code 0 where levels are consecutive integers, otherwise `_BY_TABLE`."""


def _n_scratch(n_inputs: int, n_scalars: int) -> int:
    """Numbers that the memory of a `_Scratch` has."""
    return (2 * n_inputs + 1 + 2 * max(n_scalars, 1)) * _STRIP


@bare_inner
def _scratch_in(memory: F32Array, sums: NDArray[np.float64], lowest: NDArray[np.int32]) -> _Scratch:
    """The parts of some memory."""
    n_rows, n_scalars = sums.size, max(lowest.size, 1)
    ends = n_rows * _STRIP, (2 * n_rows - 1) * _STRIP
    scales = memory[ends[1] : ends[1] + n_scalars * _STRIP]
    return _Scratch(
        rows=memory[: ends[0]].reshape(n_rows, _STRIP),
        weights=memory[ends[0] : ends[1]].reshape(n_rows - 1, _STRIP),
        scales=scales,
        offsets=memory[ends[1] + scales.size : ends[1] + 2 * scales.size],
        sums=sums,
        lowest=lowest,
    )


@bare_kernel
def _combine_by_group(
    evidence: Evidence,
    out: F32Array,
    variance: F32Array,
    tallies: NDArray[np.float64],
    is_counted: bool,
    memory: F32Array,
    sums: NDArray[np.float64],
    lowest: NDArray[np.int32],
) -> None:
    """As `combine`, with weights that each 16 share: ``out = sum over k of w_k x_k``.

    Strips of groups stay in the first-level cache. `memory`, all 0, `sums` and `lowest` make a
    `_Scratch`: of a tuple a call looks at each array, which takes longer than to make it.
    """
    scratch = _scratch_in(memory, sums, lowest)
    n_inputs, n_tensors = tallies.shape[1] - ALONE, tallies.shape[0]
    n_groups, rows, weights = variance.size // n_tensors, scratch.rows, scratch.weights
    for k in range(scratch.lowest.size):
        scratch.lowest[k] = _lowest_level(evidence.levels[k])
    for i in range(n_tensors):
        scratch.sums[:] = 0
        for start in range(i * n_groups, (i + 1) * n_groups, _STRIP):
            n = min(_STRIP, (i + 1) * n_groups - start)
            _strip_variances(evidence, start, n, rows)
            if evidence.weights.size:
                _weigh_as_told(evidence.weights, rows, n, weights, scratch.scales)
            else:
                _weigh_by_precision(rows, n, weights)
            _copy(rows[n_inputs], variance[start : start + n])
            _add_up(rows, n, scratch.sums)
            _add_all(evidence, start, scratch, out[16 * start : 16 * (start + n)])
        for k in range(n_inputs):
            tallies[i, ALONE + k] += 16 * scratch.sums[k]
        if is_counted:
            tallies[i, VARIANCE] += 16 * scratch.sums[n_inputs]


@bare_inner
def _lowest_level(levels: F32Array) -> np.int32:
    """See `_Scratch.lowest`."""
    lowest = np.int32(levels[0])
    return lowest if is_affine(levels) and np.float32(lowest) == levels[0] else _BY_TABLE


@bare_inner
def _copy(numbers: F32Array, out: F32Array) -> None:
    for g in range(out.size):
        out[g] = numbers[g]


@bare_inlined
def _strip_variances(evidence: Evidence, start: int, n: int, rows: F32Array) -> None:
    """The `group_variances` of all inputs, of `n` groups from `start` on."""
    n_scalars, n_proven = evidence.scale.shape[0], evidence.interval_values.shape[0]
    own, end = slice(16 * start, 16 * (start + n)), start + n
    for k in range(n_scalars):
        scale, offset = evidence.scale[k, start:end], evidence.offset[k, start:end]
        scalar_variances(np.float32(evidence.noise[k]), scale, offset, rows[k, :n])
    for k in range(n_proven):
        values, stated = evidence.interval_values[k, own], evidence.interval_variance[k, own]
        mean_variances(values, stated, rows[n_scalars + k, :n])
    for k in range(evidence.values.shape[0]):
        _copy(evidence.variance[k, start:end], rows[n_scalars + n_proven + k, :n])


@bare_inner
def _are_positive(values: F32Array) -> bool:
    n = 0
    for value in values:
        n += value > _ZERO
    return n == values.size


@bare_inlined
def _add_all(evidence: Evidence, start: int, scratch: _Scratch, out: F32Array) -> None:
    """Fill `out` (n,) with the sum of all inputs times their weights, from group `start` on."""
    n_scalars, n_proven = evidence.codes.shape[0], evidence.interval_values.shape[0]
    codes, levels, weights = (
        evidence.codes.reshape(-1),
        evidence.levels.reshape(-1),
        scratch.weights,
    )
    n = out.size // 16
    end, own = start + n, slice(16 * start, 16 * (start + n))
    for k in range(n_scalars):
        at = slice(_STRIP * k, _STRIP * k + n)
        scale, offset = evidence.scale[k, start:end], evidence.offset[k, start:end]
        _weigh(weights[k], scale, offset, scratch.scales[at], scratch.offsets[at])
    _add_codes(codes, levels, scratch.lowest, 16 * start, scratch.scales, scratch.offsets, out)
    for k in range(n_proven):
        _add_values(evidence.interval_values[k, own], weights[n_scalars + k, :n], out)
    for k in range(evidence.values.shape[0]):
        _add_values(evidence.values[k, own], weights[n_scalars + n_proven + k, :n], out)


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

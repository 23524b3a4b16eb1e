"""The scale searches that encoders share, on sixteen sub-blocks at once: one in each lane.

Their arrays are transposed: weight i of the sub-block in lane k is element ``16 * i + k``. What a
search finds goes to four rows of an array with a column per sub-block: the scale, the minimum (how
far below zero the codes begin, as a positive number), and the factor and base of the codes, which
are ``nearest_int(factor * (x - base))``; a factor of NaN stands for codes that are all 0, counted
from 0.
"""

from typing import Any, NamedTuple

import numpy as np

from recover._compiled.float16 import f32_bits
from recover._compiled.jit import inner, kernel, sized
from recover._compiled.lanes import (
    bits,
    load,
    load_strided,
    splat,
    sqrt,
    store,
    store_bytes,
    to_f32,
    where,
)
from recover.quants.base import F32Array, U8Array

SCALE, MIN, FACTOR, BASE = 0, 1, 2, 3
"""Rows of what a search found."""

SMALLEST = np.float32(1e-15)
"""Sub-blocks without a larger weight are taken for zeros; `GROUP_MAX_EPS` of ggml."""


class Steps(NamedTuple):
    """The scales that `make_qkx_quants` tries: ``(n_codes - 1 + first + k * step) / range``."""

    n_codes: int
    first: np.float32
    step: np.float32
    n_steps: int
    absolute_error: bool


@kernel
def nearest(value: np.float32) -> np.int32:
    """Round to an integer, halves to even; beyond 2**22 the result is as odd as ggml's is.

    Mirrors `nearest_int`.
    """
    word = np.int32(f32_bits(value + np.float32(12582912)))
    return np.int32((word & np.int32(0x7FFFFF)) - np.int32(0x400000))


@inner
def largest_magnitude(values: F32Array) -> np.float32:
    """The first of those with the largest magnitude; 0 if all are 0."""
    largest = np.float32(0)
    for i in range(values.size):
        if abs(values[i]) > abs(largest):
            largest = values[i]
    return largest


@inner
def nearest_int(value: Any) -> Any:
    """`nearest` of a vector."""
    return (bits(value + np.float32(12582912)) & 0x7FFFFF) - 0x400000


@sized
def clipped_nearest(value: Any, lowest: int, highest: int) -> Any:
    """`nearest_int`, clipped at both ends."""
    codes = nearest_int(value)
    codes = where(codes > highest, highest, codes)
    return where(codes < lowest, lowest, codes)


@kernel
def transpose(x: F32Array, start: int, n: int, out: F32Array) -> None:
    """Sixteen sub-blocks of `n` weights, from ``x[start]`` on, to lanes; `x` continues cyclically.

    So an importance matrix serves row after row, and lanes past the end of a tensor hold weights
    that do no harm.
    """
    if start + 16 * n <= x.size:
        for i in range(n):
            store(out, 16 * i, load_strided(x, start + i, n))
    else:
        for k in range(16):
            first = (start + k * n) % x.size
            for i in range(n):
                out[16 * i + k] = x[first + i]


@inner
def sum_of_squares(x: F32Array) -> np.float32:
    """Added up in order."""
    total = np.float32(0)
    for i in range(x.size):
        total += x[i] * x[i]
    return total


@inner
def weigh(x: F32Array, mean_square: Any, weights: F32Array) -> None:
    """Importance to weights: multiplies by ``sqrt(mean_square + x**2)``, with one mean per lane."""
    for i in range(0, x.size, 16):
        value = load(x, i)
        store(weights, i, load(weights, i) * sqrt(mean_square + value * value))


@inner
def sum_lanes(values: F32Array, out: F32Array) -> None:
    """Sum of each lane's values, added up in order."""
    total = splat(np.float32(0))
    for i in range(0, values.size, 16):
        total = total + load(values, i)
    store(out, 0, total)


@kernel
def encode(
    x: F32Array, d: np.float32, dm: np.float32, lowest: int, highest: int, out: U8Array
) -> None:
    """Codes of a sub-block for its stored scale and minimum, counted from 0."""
    for i in range(0, x.size, 16):
        codes = clipped_nearest((load(x, i) + dm) / d, lowest, highest)
        store_bytes(out, i, codes - lowest)


@sized
def encode_found(
    x: F32Array, factor: np.float32, base: np.float32, lowest: int, highest: int, out: U8Array
) -> None:
    """Codes of a sub-block as the search left them, counted from 0."""
    for i in range(0, x.size, 16):
        codes = clipped_nearest(factor * (load(x, i) - base), lowest, highest)
        store_bytes(out, i, codes - (0 if np.isnan(factor) else lowest))


@inner
def _code_sums(
    x: F32Array, weights: F32Array, codes: F32Array, factor: Any, low: Any, highest: int
) -> Any:
    """Stores the codes; returns the weighted sums of code, code**2 and code * x."""
    sum_l = sum_l2 = sum_xl = splat(np.float32(0))
    for i in range(0, x.size, 16):
        value = load(x, i)
        code = to_f32(clipped_nearest(factor * (value - low), 0, highest))
        store(codes, i, code)
        weighted = load(weights, i) * code
        sum_l = sum_l + weighted
        sum_l2 = sum_l2 + weighted * code
        sum_xl = sum_xl + weighted * value
    return sum_l, sum_l2, sum_xl


@inner
def _code_error(
    x: F32Array, weights: F32Array, codes: F32Array, scale: Any, low: Any, absolute: bool
) -> Any:
    """The weighted sum of absolute or squared errors."""
    error = splat(np.float32(0))
    for i in range(0, x.size, 16):
        difference = scale * load(codes, i) + low - load(x, i)
        difference = abs(difference) if absolute else difference * difference
        error = error + load(weights, i) * difference
    return error


@inner
def _weight_sums(x: F32Array, weights: F32Array) -> Any:
    """Smallest and largest weight, sum of importances, importance-weighted sum of weights."""
    low = high = load(x, 0)
    sum_w = load(weights, 0)
    sum_x = sum_w * low
    for i in range(16, x.size, 16):
        value = load(x, i)
        weight = load(weights, i)
        low = where(value < low, value, low)
        high = where(value > high, value, high)
        sum_w = sum_w + weight
        sum_x = sum_x + weight * value
    return low, high, sum_w, sum_x


@inner
def make_qkx_quants(
    x: F32Array, weights: F32Array, codes: F32Array, steps: Steps, found: F32Array, at: int
) -> None:
    """Scale and minimum of codes from 0 up; they go to `found` from column `at` on.

    Mirrors `make_qkx2_quants` and `make_qkx3_quants`, which differ in nothing else than their
    steps.
    """
    highest = steps.n_codes - 1
    zero = splat(np.float32(0))
    low, high, sum_w, sum_x = _weight_sums(x, weights)
    low = where(low > zero, zero, low)
    lowest, flat = low, high == low
    factor = np.float32(highest) / (high - low)
    scale = np.float32(1) / factor
    best_factor, best_base = factor, low
    _code_sums(x, weights, codes, factor, low, highest)
    best_error = _code_error(x, weights, codes, scale, low, steps.absolute_error)
    for k in range(steps.n_steps + 1):
        factor = (steps.first + steps.step * np.float32(k) + np.float32(highest)) / (high - low)
        sum_l, sum_l2, sum_xl = _code_sums(x, weights, codes, factor, low, highest)
        det = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / det
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / det
        new_scale = where(new_low > zero, sum_xl / sum_l2, new_scale)
        new_low = where(new_low > zero, zero, new_low)
        error = _code_error(x, weights, codes, new_scale, new_low, steps.absolute_error)
        better = (det > zero) & (error < best_error)
        best_error = where(better, error, best_error)
        best_factor = where(better, factor, best_factor)
        best_base = where(better, low, best_base)
        scale = where(better, new_scale, scale)
        low = where(better, new_low, low)
    store(found[SCALE], at, where(flat, zero, scale))
    store(found[MIN], at, -where(flat, lowest, low))
    store(found[FACTOR], at, where(flat, np.float32(np.nan), best_factor))
    store(found[BASE], at, best_base)


@inner
def largest_in_lanes(x: F32Array) -> Any:
    """In each lane the first weight of largest magnitude."""
    largest = magnitude = splat(np.float32(0))
    for i in range(0, x.size, 16):
        value = load(x, i)
        larger = abs(value) > magnitude
        largest = where(larger, value, largest)
        magnitude = where(larger, abs(value), magnitude)
    return largest


@sized
def _symmetric_sums(x: F32Array, weights: F32Array, factor: Any, half: int) -> Any:
    """The weighted sums of x * code and of code**2."""
    sum_xl = sum_l2 = splat(np.float32(0))
    for i in range(0, x.size, 16):
        value = load(x, i)
        weight = load(weights, i)
        code = to_f32(clipped_nearest(factor * value, -half, half - 1))
        sum_xl = sum_xl + weight * value * code
        sum_l2 = sum_l2 + weight * code * code
    return sum_xl, sum_l2


@sized
def make_qx_quants(x: F32Array, weights: F32Array, half: int, found: F32Array, at: int) -> None:
    """Scale of codes from ``-half`` to ``half - 1``; goes to `found` from column `at` on.

    Mirrors `make_qx_quants` with `rmse_type` 1.
    """
    zero = splat(np.float32(0))
    largest = largest_in_lanes(x)
    factor = np.float32(-half) / largest
    sum_xl, sum_l2 = _symmetric_sums(x, weights, factor, half)
    scale = where(sum_l2 != zero, sum_xl / sum_l2, zero)
    best = scale * sum_xl
    best_factor = factor
    for k in range(-9, 10):
        if k == 0:
            continue
        factor = -(np.float32(half) + np.float32(0.1) * np.float32(k)) / largest
        sum_xl, sum_l2 = _symmetric_sums(x, weights, factor, half)
        better = (sum_l2 > zero) & (sum_xl * sum_xl > best * sum_l2)
        scale = where(better, sum_xl / sum_l2, scale)
        best = where(better, scale * sum_xl, best)
        best_factor = where(better, factor, best_factor)
    zeros = abs(largest) < SMALLEST
    store(found[SCALE], at, where(zeros, zero, scale))
    store(found[FACTOR], at, where(zeros, np.float32(np.nan), best_factor))
    store(found[BASE], at, zero)

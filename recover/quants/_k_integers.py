"""How the scales and minima of sixteen superblocks become integers; lanes are superblocks."""

from typing import Any

import numpy as np

from recover._compiled.across import any_lane
from recover._compiled.jit import inner
from recover._compiled.lanes import load, load_bytes, splat, store, store_bytes, to_f32, where
from recover.quants._search import SMALLEST, nearest_int
from recover.quants.base import F32Array, U8Array


@inner
def largest_scales(x: F32Array, highest: int, codes: U8Array, scale: F32Array) -> None:
    """Codes of a superblock's scales (or minima), the largest of which gets the highest code.

    Mirrors the middle of `quantize_row_q4_K_ref`.
    """
    zero = splat(np.float32(0))
    largest = zero
    for i in range(0, x.size, 16):
        largest = where(load(x, i) > largest, load(x, i), largest)
    factor = where(largest > zero, np.float32(highest) / largest, zero)
    for i in range(0, x.size, 16):
        store_bytes(codes, i, nearest_int(factor * load(x, i)))
    store(scale, 0, largest / np.float32(highest))


@inner
def _capped(code: Any, highest: int) -> Any:
    return where(code > highest, highest, code)


@inner
def _positive_factor(x: F32Array, weights: F32Array, highest: int, largest: Any) -> Any:
    """The best of nine factors, by weighted square error."""
    best_factor = np.float32(highest) / largest
    best_error = splat(np.float32(0))
    for i in range(0, x.size, 16):
        code = to_f32(nearest_int(best_factor * load(x, i)) & 255)
        difference = load(x, i) - np.float32(1) / best_factor * code
        best_error = best_error + load(weights, i) * difference * difference
    for k in range(-4, 5):
        if k == 0:
            continue
        factor = (np.float32(0.1) * np.float32(k) + np.float32(highest)) / largest
        error = splat(np.float32(0))
        for i in range(0, x.size, 16):
            code = to_f32(_capped(nearest_int(factor * load(x, i)), highest))
            difference = load(x, i) - np.float32(1) / factor * code
            error = error + load(weights, i) * difference * difference
        best_factor = where(error < best_error, factor, best_factor)
        best_error = where(error < best_error, error, best_error)
    return best_factor


@inner
def make_qp_quants(
    x: F32Array, weights: F32Array, highest: int, codes: U8Array, scale: F32Array
) -> None:
    """Codes from 0 up of positive numbers, and their scale; mirrors `make_qp_quants`."""
    zero = splat(np.float32(0))
    largest = zero
    for i in range(0, x.size, 16):
        largest = where(largest > load(x, i), largest, load(x, i))
    factor = _positive_factor(x, weights, highest, largest)
    sum_xl = sum_l2 = zero
    for i in range(0, x.size, 16):
        code = _capped(nearest_int(factor * load(x, i)), highest)
        store_bytes(codes, i, code)
        sum_xl = sum_xl + load(weights, i) * load(x, i) * to_f32(code)
        sum_l2 = sum_l2 + load(weights, i) * to_f32(code) * to_f32(code)
    for _ in range(5):
        changed = zero > zero
        for i in range(0, x.size, 16):
            value, weight, code = load(x, i), load(weights, i), load_bytes(codes, i)
            xl = sum_xl - weight * value * to_f32(code)
            l2 = sum_l2 - weight * to_f32(code) * to_f32(code)
            new = _capped(nearest_int(value * l2 / xl), highest)
            better = (xl > zero) & (l2 > zero) & (new != code)
            xl = xl + weight * value * to_f32(new)
            l2 = l2 + weight * to_f32(new) * to_f32(new)
            better = better & (xl * xl * sum_l2 > sum_xl * sum_xl * l2)
            store_bytes(codes, i, where(better, new, code))
            sum_xl = where(better, xl, sum_xl)
            sum_l2 = where(better, l2, sum_l2)
            changed = changed | better
        if not any_lane(changed):
            break
    zeros = largest < SMALLEST
    for i in range(0, x.size, 16):
        store_bytes(codes, i, where(zeros, 0, load_bytes(codes, i)))
    store(scale, 0, where(~zeros & (sum_l2 > zero), sum_xl / sum_l2, zero))

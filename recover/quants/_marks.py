"""Marks that ggml's encoders leave in blocks: what types share."""

from collections.abc import Callable

import numpy as np

from recover.quants.base import GROUP, F32Array, Mask, U8Array

Marks = tuple[Mask, Mask]
"""Which blocks have a scale that is neither 0 nor broken, and which have the mark."""

Unpack = Callable[[U8Array, U8Array, F32Array, F32Array], None]


def f16_at(blocks: U8Array, at: int) -> F32Array:
    """The f16 numbers (n_blocks,) at a position of blocks (n_blocks, type_size)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")[:, 0].astype(np.float32)


def is_scale(d: F32Array) -> Mask:
    """Which scales are neither 0 nor broken."""
    usable: Mask = np.isfinite(d) & (d != 0)
    return usable


def codes_of(blocks: U8Array, unpack: Unpack) -> U8Array:
    """Codes (n_blocks, 32) of blocks (n_blocks, type_size) of 32 weights."""
    n = len(blocks) * 32
    codes = np.empty(n, np.uint8)
    scale, offset = np.empty((2, n // GROUP), np.float32)
    unpack(np.ascontiguousarray(blocks).reshape(-1), codes, scale, offset)
    return codes.reshape(-1, 32)


def marks_extreme(blocks: U8Array, unpack: Unpack) -> Marks:
    """The mark of Q4_0 and Q5_0: the weight that the scale is fitted to is given code 0."""
    return is_scale(f16_at(blocks, 0)), (codes_of(blocks, unpack) == 0).any(1)


def marks_range(blocks: U8Array, unpack: Unpack, highest: int) -> Marks:
    """The mark of Q4_1 and Q5_1: a positive scale, code 0 for min and the highest for max."""
    d, codes = f16_at(blocks, 0), codes_of(blocks, unpack)
    both = (codes == 0).any(1) & (codes == highest).any(1)
    return is_scale(d), both & (d > 0)


def marks_scales_and_minima(d: F32Array, dmin: F32Array, full: Mask, full_min: Mask) -> Marks:
    """The mark of types with minima: the largest codes of scales and of minima, unless 0."""
    usable = np.isfinite(d) & np.isfinite(dmin) & ((d != 0) | (dmin != 0))
    return usable, (full | (d == 0)) & (full_min | (dmin == 0))


def marks_of_packed_scales(blocks: U8Array) -> Marks:
    """The mark of Q4_K and Q5_K: d is the largest scale / 63, dmin the largest minimum / 63."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], 1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], 1)
    full, full_min = (scales == 63).any(1), (minima == 63).any(1)
    return marks_scales_and_minima(f16_at(blocks, 0), f16_at(blocks, 2), full, full_min)

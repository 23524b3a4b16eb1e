"""What the encoders of Q2_K, Q4_K and Q5_K share: they work on batches of sixteen superblocks.

First the scale of every sub-block is searched (lanes are sub-blocks), then the scales and minima of
each superblock are made integers (lanes are superblocks).
"""

from typing import NamedTuple

import numpy as np

from recover._compiled.jit import inner, sized
from recover._compiled.lanes import load, splat, sqrt, store
from recover.quants._k_integers import largest_scales, make_qp_quants
from recover.quants._search import (
    BASE,
    FACTOR,
    MIN,
    SCALE,
    Steps,
    encode,
    encode_found,
    make_qkx_quants,
    sum_lanes,
    sum_of_squares,
    transpose,
    weigh,
)
from recover.quants.base import F32Array, U8Array

BATCH = 4096
"""Weights in sixteen superblocks."""


class Batch(NamedTuple):
    """Working memory for a batch of sixteen superblocks.

    Attributes
    ----------
    lanes : float32 (4, 512)
        Weights, importances and codes of sixteen sub-blocks, transposed.
    found : float32 (4, 256)
        What the search found, for every sub-block.
    sums : float32 (256,)
        The importance of every sub-block.
    scale_codes, min_codes : uint8 (256,)
        Integer scales and minima, transposed: those of sub-block j of superblock b are element
        ``16 * j + b``.
    d, dmin : float32 (16,)
        What they are multiples of, for every superblock.
    """

    lanes: F32Array
    found: F32Array
    sums: F32Array
    scale_codes: U8Array
    min_codes: U8Array
    d: F32Array
    dmin: F32Array


@inner
def new_batch() -> Batch:
    """Uninitialised working memory."""
    return Batch(
        np.empty((4, 512), np.float32),
        np.empty((4, 256), np.float32),
        np.empty(256, np.float32),
        np.empty(256, np.uint8),
        np.empty(256, np.uint8),
        np.empty(16, np.float32),
        np.empty(16, np.float32),
    )


@inner
def _weigh_by_magnitude(x: F32Array, weights: F32Array) -> None:
    """Weights of `quantize_row_q2_K_ref` (sub-blocks of 16) and `quantize_row_q4_K_ref` (of 32)."""
    average = splat(np.float32(0))
    if x.size == 512:
        for i in range(0, 512, 16):
            average = average + load(x, i) * load(x, i)
        average = sqrt(average / np.float32(32))
    for i in range(0, x.size, 16):
        store(weights, i, average + abs(load(x, i)))


@sized
def mean_squares(x: F32Array, start: int, n: int, factor: np.float32, out: F32Array) -> None:
    """`factor` times the mean square of the superblock, for each of sixteen sub-blocks.

    A superblock past the end of `x` counts as the first one; see `transpose`.
    """
    for k in range(0, 16, 256 // n):
        first = (start + k * n) % x.size
        mean = factor * sum_of_squares(x[first : first + 256]) / np.float32(256)
        out[k : k + 256 // n] = mean


@sized
def search_batch(
    x: F32Array, imatrix: F32Array, at: int, n: int, steps: Steps, batch: Batch
) -> None:
    """Scales and minima for the sub-blocks of `n` weights of up to sixteen superblocks.

    The batch `x` begins at weight `at` of the tensor; `imatrix` may be empty.
    """
    values, weights, codes = batch.lanes[0, : 16 * n], batch.lanes[1, : 16 * n], batch.lanes[2]
    for start in range(0, x.size, 16 * n):
        column = start // n
        transpose(x, start, n, values)
        if imatrix.size:
            transpose(imatrix, (at + start) % imatrix.size, n, weights)
            mean_squares(x, start, n, np.float32(1 if n == 16 else 2), batch.lanes[3])
            weigh(values, load(batch.lanes[3], 0), weights)
            sum_lanes(weights, batch.sums[column : column + 16])
        else:
            _weigh_by_magnitude(values, weights)
        make_qkx_quants(values, weights, codes, steps, batch.found, column)
    n_found = x.size // n
    for row, integers, unit in (
        (SCALE, batch.scale_codes, batch.d),
        (MIN, batch.min_codes, batch.dmin),
    ):
        found, highest = batch.found[row, :n_found], 15 if n == 16 else 63
        values, weights = batch.lanes[0, : 4096 // n], batch.lanes[1, : 4096 // n]
        transpose(found, 0, 256 // n, values)
        if imatrix.size:
            transpose(batch.sums[:n_found], 0, 256 // n, weights)
            make_qp_quants(values, weights, highest, integers, unit)
        else:
            largest_scales(values, highest, integers, unit)


@sized
def encode_superblock(
    x: F32Array,
    scale: F32Array,
    offset: F32Array,
    found: F32Array,
    at: int,
    n: int,
    highest: int,
    codes: U8Array,
) -> None:
    """Codes of a superblock with sub-blocks of `n` weights.

    They fit its stored scales and offsets, which are given per 16 weights. Where a scale is 0, the
    codes are those of the search; the superblock's first sub-block is column `at` of `found`.
    """
    for k in range(256 // n):
        first = n * k
        values, out = x[first : first + n], codes[first : first + n]
        d, dm = scale[first // 16], -offset[first // 16]
        if d != 0:
            encode(values, d, dm, 0, highest, out)
        else:
            encode_found(values, found[FACTOR, at + k], found[BASE, at + k], 0, highest, out)

"""Q4_0: 32 weights, one f16 scale, 4-bit codes around zero.

Block: ``d`` f16, ``qs`` 16 bytes (weight j in the low nibble of byte j, weight j + 16 in the high
one).
"""

import numpy as np

from recover._compiled.float16 import read_f16, write_f16
from recover._compiled.jit import inner, kernel
from recover.quants._legacy import (
    encode_32,
    extreme_code_cells,
    inverse,
    join_nibbles,
    largest_magnitude_of_32,
    row_mean_squares,
    split_nibbles,
    weigh_blocks,
)
from recover.quants._marks import Marks, code_mark, marks_of_codes
from recover.quants._search import BASE, FACTOR, SCALE, encode_found, make_qx_quants
from recover.quants.base import F32Array, FromWeight, ScalarType, U8Array, integer_levels


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q4_0`."""
    for b in range(raw.size // 18):
        d = read_f16(raw, 18 * b)
        for g in range(2 * b, 2 * b + 2):
            scale[g] = d
            offset[g] = -0.0
        split_nibbles(raw[18 * b + 2 : 18 * b + 18], codes[32 * b : 32 * b + 32])


@inner
def _quantize_plain(x: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_row_q4_0_ref`."""
    codes = np.empty(32, np.uint8)
    for b in range(x.size // 32):
        weights, block = x[32 * b : 32 * b + 32], raw[18 * b : 18 * b + 18]
        d = largest_magnitude_of_32(weights) / np.float32(-8)
        write_f16(block, 0, d)
        zero, middle = np.float32(0), np.float32(8.5)
        encode_32(weights, zero, inverse(d), middle, 15, codes)
        join_nibbles(codes, block[2:18])


@inner
def _quantize_weighted(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_row_q4_0_impl`."""
    means, x = row_mean_squares(x), x.reshape(x.size)
    lanes, found = np.empty((3, 512), np.float32), np.empty((4, 16), np.float32)
    codes = np.empty(32, np.uint8)
    for b in range(x.size // 32):
        k = b % 16
        if k == 0:
            weigh_blocks(x, imatrix, means, 32 * b, lanes)
            make_qx_quants(lanes[0], lanes[1], 8, found, 0)
        weights, block = x[32 * b : 32 * b + 32], raw[18 * b : 18 * b + 18]
        write_f16(block, 0, found[SCALE, k])
        encode_found(weights, found[FACTOR, k], found[BASE, k], -8, 7, codes)
        join_nibbles(codes, block[2:18])


@kernel
def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_q4_0`."""
    if imatrix.size:
        _quantize_weighted(x, imatrix, raw)
    else:
        _quantize_plain(x.reshape(x.size), raw)


_MARK = code_mark((0,), positive=False)


def _marks(blocks: U8Array) -> Marks:
    """`quantize_row_q4_0_ref`: d = max / -8, so that max is given code 0."""
    return marks_of_codes(blocks, _unpack, _MARK)


# `quantize_row_q4_0_ref`: d = max / -8, code = min(15, int(x / d + 8.5)), d is rounded to f16 last.
_LOWER, _UPPER = extreme_code_cells(16)

Q4_0 = ScalarType(
    name="Q4_0",
    type_id=2,
    block_size=32,
    type_size=18,
    levels=integer_levels(first=-8),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    rounds_scale_last=True,
    refits_scale_with_imatrix=True,
    extremes=((0, 0),),
    unpack=_unpack,
    quantize=_quantize,
    file_type=2,
    marks=_marks,
    cells_need_marks=True,
    from_weight=FromWeight(at=0, divisor=-8),
    comes_back=True,
    weighs_whole_rows=True,
    noise=0.0828,
    relative_mse=0.0074,
)

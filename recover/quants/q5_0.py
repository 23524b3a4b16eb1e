"""Q5_0: 32 weights, one f16 scale, 5-bit codes around zero.

Block: ``d`` f16, ``qh`` 4 bytes (fifth bits, weight j in bit j), ``qs`` 16 bytes (as in Q4_0).
"""

import numpy as np

from recover._compiled.float16 import read_f16, write_f16
from recover._compiled.jit import inner, kernel
from recover.quants._legacy import (
    add_fifth_bits,
    collect_fifth_bits,
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
    """Mirrors `dequantize_row_q5_0`."""
    for b in range(raw.size // 22):
        d = read_f16(raw, 22 * b)
        for g in range(2 * b, 2 * b + 2):
            scale[g] = d
            offset[g] = -0.0
        split_nibbles(raw[22 * b + 6 : 22 * b + 22], codes[32 * b : 32 * b + 32])
        add_fifth_bits(raw[22 * b + 2 : 22 * b + 6], codes[32 * b : 32 * b + 32])


@inner
def _pack(codes: U8Array, block: U8Array) -> None:
    collect_fifth_bits(codes, block[2:6])
    join_nibbles(codes, block[6:22])


@inner
def _quantize_plain(x: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_row_q5_0_ref`."""
    codes = np.empty(32, np.uint8)
    for b in range(x.size // 32):
        weights, block = x[32 * b : 32 * b + 32], raw[22 * b : 22 * b + 22]
        d = largest_magnitude_of_32(weights) / np.float32(-16)
        write_f16(block, 0, d)
        zero, middle = np.float32(0), np.float32(16.5)
        encode_32(weights, zero, inverse(d), middle, 31, codes)
        _pack(codes, block)


@inner
def _quantize_weighted(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_row_q5_0_impl`."""
    means, x = row_mean_squares(x), x.reshape(x.size)
    lanes, found = np.empty((3, 512), np.float32), np.empty((4, 16), np.float32)
    codes = np.empty(32, np.uint8)
    for b in range(x.size // 32):
        k = b % 16
        if k == 0:
            weigh_blocks(x, imatrix, means, 32 * b, lanes)
            make_qx_quants(lanes[0], lanes[1], 16, found, 0)
        weights, block = x[32 * b : 32 * b + 32], raw[22 * b : 22 * b + 22]
        write_f16(block, 0, found[SCALE, k])
        encode_found(weights, found[FACTOR, k], found[BASE, k], -16, 15, codes)
        _pack(codes, block)


@kernel
def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_q5_0`."""
    if imatrix.size:
        _quantize_weighted(x, imatrix, raw)
    else:
        _quantize_plain(x.reshape(x.size), raw)


_MARK = code_mark((0,), positive=False)


def _marks(blocks: U8Array) -> Marks:
    """`quantize_row_q5_0_ref`: d = max / -16, so that max is given code 0."""
    return marks_of_codes(blocks, _unpack, _MARK)


# `quantize_row_q5_0_ref`: d = max / -16, code = min(31, int(x / d + 16.5)), d is rounded to f16
# last.
_LOWER, _UPPER = extreme_code_cells(32)

Q5_0 = ScalarType(
    name="Q5_0",
    type_id=6,
    block_size=32,
    type_size=22,
    levels=integer_levels(first=-16),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    rounds_scale_last=True,
    refits_scale_with_imatrix=True,
    extremes=((0, 0),),
    unpack=_unpack,
    quantize=_quantize,
    file_type=8,
    marks=_marks,
    cells_need_marks=True,
    from_weight=FromWeight(at=0, divisor=-16),
    comes_back=True,
    weighs_whole_rows=True,
    noise=0.0818,
    relative_mse=0.0018,
)

"""Q5_1: 32 weights, f16 scale and minimum, 5-bit codes.

Block: ``d`` f16, ``m`` f16, ``qh`` 4 bytes (as in Q5_0), ``qs`` 16 bytes (as in Q4_0).
"""

import numpy as np

from recover._compiled.float16 import read_f16, write_f16
from recover._compiled.jit import inner, kernel
from recover.quants._legacy import (
    add_fifth_bits,
    collect_fifth_bits,
    encode_32,
    inverse,
    join_nibbles,
    range_cells,
    range_of_32,
    row_mean_squares,
    split_nibbles,
    weigh_blocks,
)
from recover.quants._marks import Marks, code_mark, marks_of_codes
from recover.quants._search import BASE, FACTOR, MIN, SCALE, Steps, encode_found, make_qkx_quants
from recover.quants.base import F32Array, FromWeight, ScalarType, U8Array, integer_levels


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q5_1`."""
    for b in range(raw.size // 24):
        d = read_f16(raw, 24 * b)
        m = read_f16(raw, 24 * b + 2)
        for g in range(2 * b, 2 * b + 2):
            scale[g] = d
            offset[g] = m
        split_nibbles(raw[24 * b + 8 : 24 * b + 24], codes[32 * b : 32 * b + 32])
        add_fifth_bits(raw[24 * b + 4 : 24 * b + 8], codes[32 * b : 32 * b + 32])


_STEPS = Steps(32, np.float32(-0.9), np.float32(0.05), 36, False)


@inner
def _pack(codes: U8Array, block: U8Array) -> None:
    collect_fifth_bits(codes, block[4:8])
    join_nibbles(codes, block[8:24])


@inner
def _quantize_plain(x: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_row_q5_1_ref`."""
    codes = np.empty(32, np.uint8)
    for b in range(x.size // 32):
        weights, block = x[32 * b : 32 * b + 32], raw[24 * b : 24 * b + 24]
        low, high = range_of_32(weights)
        d = (high - low) / np.float32(31)
        write_f16(block, 0, d)
        write_f16(block, 2, low)
        encode_32(weights, low, inverse(d), np.float32(0.5), 31, codes)
        _pack(codes, block)


@inner
def _quantize_weighted(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_row_q5_1_impl`."""
    means, x = row_mean_squares(x), x.reshape(x.size)
    lanes, found = np.empty((3, 512), np.float32), np.empty((4, 16), np.float32)
    codes = np.empty(32, np.uint8)
    for b in range(x.size // 32):
        k = b % 16
        if k == 0:
            weigh_blocks(x, imatrix, means, 32 * b, lanes)
            make_qkx_quants(lanes[0], lanes[1], lanes[2], _STEPS, found, 0)
        weights, block = x[32 * b : 32 * b + 32], raw[24 * b : 24 * b + 24]
        write_f16(block, 0, found[SCALE, k])
        write_f16(block, 2, -found[MIN, k])
        encode_found(weights, found[FACTOR, k], found[BASE, k], 0, 31, codes)
        _pack(codes, block)


@kernel
def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_q5_1`."""
    if imatrix.size:
        _quantize_weighted(x, imatrix, raw)
    else:
        _quantize_plain(x.reshape(x.size), raw)


_MARK = code_mark((0,), (31,), positive=True)


def _marks(blocks: U8Array) -> Marks:
    """`quantize_row_q5_1_ref`: d = (max - min) / 31, code 0 for min and 31 for max."""
    return marks_of_codes(blocks, _unpack, _MARK)


# `quantize_row_q5_1_ref`: d = (max - min) / 31, code = int((x - min) / d + 0.5); d and min are
# rounded to f16 last.
_LOWER, _UPPER = range_cells(32)

Q5_1 = ScalarType(
    name="Q5_1",
    type_id=7,
    block_size=32,
    type_size=24,
    levels=integer_levels(),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    rounds_scale_last=True,
    rounds_offset_last=True,
    refits_scale_with_imatrix=True,
    extremes=((0, 0), (31, 31)),
    unpack=_unpack,
    quantize=_quantize,
    file_type=9,
    marks=_marks,
    cells_need_marks=True,
    from_weight=FromWeight(at=2, divisor=1),
    comes_back=True,
    weighs_whole_rows=True,
    noise=0.0782,
    relative_mse=0.0014,
)

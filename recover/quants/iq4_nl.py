"""IQ4_NL: 32 weights, one f16 scale, 4-bit codes into a fixed code book.

Block: ``d`` f16, ``qs`` 16 bytes (as in Q4_0).
"""

import numpy as np

from recover._compiled.float16 import write_f16
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import load, splat, store
from recover.quants._declared import coded, layout
from recover.quants._iq4 import LEVELS, codebook_cells, encode_levels, search_levels
from recover.quants._legacy import inverse, join_nibbles
from recover.quants._search import SCALE, transpose, weigh
from recover.quants._signed_32 import unpack_signed
from recover.quants.base import F32Array, Reencoding, ScalarType, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_iq4_nl`."""
    unpack_signed(raw, 4, codes, scale, offset)


@inner
def _search(x: F32Array, imatrix: F32Array, start: int, lanes: F32Array, found: F32Array) -> None:
    """Scales of the sixteen blocks from ``x[start]`` on; `imatrix` may be empty."""
    values, weights = lanes[0], lanes[1]
    transpose(x, start, 32, values)
    sum_x2 = splat(np.float32(0))
    for i in range(0, 512, 16):
        square = load(values, i) * load(values, i)
        sum_x2 = sum_x2 + square
        store(weights, i, square)
    if imatrix.size:
        transpose(imatrix, start % imatrix.size, 32, weights)
        weigh(values, sum_x2 * np.float32(2 / 32), weights)
    search_levels(values, weights, found)


@kernel
def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_iq4_nl`."""
    x = x.reshape(x.size)
    lanes, found = np.empty((2, 512), np.float32), np.empty((4, 16), np.float32)
    codes = np.empty(32, np.uint8)
    for b in range(x.size // 32):
        if b % 16 == 0:
            _search(x, imatrix, 32 * b, lanes, found)
        scale = found[SCALE, b % 16]
        block = raw[18 * b : 18 * b + 18]
        write_f16(block, 0, scale)
        encode_levels(x[32 * b : 32 * b + 32], inverse(scale), codes)
        join_nibbles(codes, block[2:18])


# `quantize_row_iq4_nl_impl`: nearest entry of the code book for the final scale, rounded to f16
# last.
IQ4_NL = ScalarType(
    **layout("IQ4_NL", type_id=20, block_size=32, type_size=18),
    **coded(LEVELS, codebook_cells()),
    rounds_scale_last=True,
    unpack=_unpack,
    quantize=_quantize,
    file_type=25,
    reencoding=Reencoding(slope=2.0, margin=0.03, largest_level=127, weighted=0.1),
    noise=16.28,
    relative_mse=0.0058,
)

"""IQ4_XS: superblocks of 256 weights in 8 sub-blocks with signed 6-bit scales, codes as in IQ4_NL.

Block: ``d`` f16, ``scales_h`` 2 bytes, ``scales_l`` 4 bytes, ``qs`` 128 bytes (16 per sub-block).
"""

import numpy as np

from recover._compiled.float16 import read_f16, write_f16
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import load, store
from recover.quants._declared import coded, layout
from recover.quants._iq4 import LEVELS, codebook_cells, encode_levels, search_levels
from recover.quants._legacy import inverse, join_nibbles, split_nibbles
from recover.quants._marks import Marks, f16_at
from recover.quants._search import (
    SCALE,
    largest_magnitude,
    nearest,
    sum_of_squares,
    transpose,
    weigh,
)
from recover.quants._sub_blocks import SubBlocks, marks_of_scales, without_minima
from recover.quants.base import F32Array, Reencoding, ScalarType, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_iq4_xs`."""
    for b in range(raw.size // 136):
        block = raw[136 * b : 136 * b + 136]
        d = read_f16(block, 0)
        scales_h = np.uint32(block[2]) | (np.uint32(block[3]) << np.uint32(8))
        for j in range(8):
            low = (block[4 + j // 2] >> (4 * (j % 2))) & 15
            high = (scales_h >> np.uint32(2 * j)) & np.uint32(3)
            g = 16 * b + 2 * j
            dl = d * np.float32(np.int32(low | (high << np.uint32(4))) - 32)
            scale[g] = scale[g + 1] = dl
            offset[g] = offset[g + 1] = -0.0
            y = codes[256 * b + 32 * j : 256 * b + 32 * j + 32]
            split_nibbles(block[8 + 16 * j : 24 + 16 * j], y)


@inner
def _search(x: F32Array, imatrix: F32Array, start: int, lanes: F32Array, found: F32Array) -> None:
    """Scales of the sub-blocks of two superblocks from ``x[start]`` on; `imatrix` may be empty."""
    values, weights, means = lanes[0], lanes[1], lanes[2]
    transpose(x, start, 32, values)
    if imatrix.size:
        for half in range(2):
            first = (start + 256 * half) % x.size
            mean = sum_of_squares(x[first : first + 256]) * np.float32(2 / 256)
            means[8 * half : 8 * half + 8] = mean
        transpose(imatrix, start % imatrix.size, 32, weights)
        weigh(values, load(means, 0), weights)
    else:
        for i in range(0, 512, 16):
            store(weights, i, load(values, i) * load(values, i))
    search_levels(values, weights, found)


@inner
def _quantize_block(x: F32Array, scales: F32Array, codes: U8Array, block: U8Array) -> None:
    d = -largest_magnitude(scales) / np.float32(32)
    write_f16(block, 0, d)
    scales_h = np.uint32(0)
    for j in range(8):
        scale = min(max(nearest(inverse(d) * scales[j]), np.int32(-32)), np.int32(31))
        encode_levels(x[32 * j : 32 * j + 32], inverse(d * np.float32(scale)), codes)
        join_nibbles(codes, block[8 + 16 * j : 24 + 16 * j])
        stored = np.uint32(scale + np.int32(32))
        low, shift = np.uint8(stored & np.uint32(15)), np.uint8(4 * (j % 2))
        block[4 + j // 2] = low if shift == 0 else block[4 + j // 2] | (low << shift)
        scales_h |= (stored >> np.uint32(4)) << np.uint32(2 * j)
    block[2], block[3] = np.uint8(scales_h), np.uint8(scales_h >> np.uint32(8))


@kernel
def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_iq4_xs`."""
    x = x.reshape(x.size)
    lanes, found = np.empty((3, 512), np.float32), np.empty((4, 16), np.float32)
    codes = np.empty(32, np.uint8)
    for b in range(x.size // 256):
        half = b % 2
        if half == 0:
            _search(x, imatrix, 256 * b, lanes, found)
        scales = found[SCALE, 8 * half : 8 * half + 8]
        block = raw[136 * b : 136 * b + 136]
        _quantize_block(x[256 * b : 256 * b + 256], scales, codes, block)


def _sub_blocks(blocks: U8Array) -> SubBlocks:
    """See `recover.quants.SubBlocks`."""
    packed = blocks[:, 4:8]
    low = np.stack([packed & 15, packed >> 4], 2).reshape(len(blocks), 8)
    high_bits = np.ascontiguousarray(blocks[:, 2:4]).view("<u2")
    high = (high_bits >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
    return without_minima(f16_at(blocks, 0), (low | (high << 4)).astype(np.int8) - np.int8(32))


def _marks(blocks: U8Array) -> Marks:
    """`quantize_row_iq4_nl_impl`: d = max_scale / -32."""
    return marks_of_scales(_sub_blocks(blocks), -32)


# `quantize_row_iq4_nl_impl`: nearest entry of the code book for ``d * scale``; d is rounded to f16
# last.
IQ4_XS = ScalarType(
    **layout("IQ4_XS", type_id=23, block_size=256, type_size=136),
    **coded(LEVELS, codebook_cells()),
    rounds_scale_last=True,
    unpack=_unpack,
    quantize=_quantize,
    file_type=30,
    fallback="IQ4_NL",
    sub_blocks=_sub_blocks,
    marks=_marks,
    marks_hold_with_imatrix=True,
    reencoding=Reencoding(slope=0.0, margin=0.08, largest_level=32 * 127, weighted=0.1),
    scale_steps=32,
    noise=16.54,
    relative_mse=0.0059,
)

"""IQ4_KT: rows with one scale, a seed of 15 bits for 4 weights, 7-bit scales of 32 weights.

Row: ``d`` f32, then the blocks: of each 32 weights 4 bytes (bit 0: 32768 is added to the seeds,
then the scale in 7 bits, then bits 12 to 14 of eight seeds), ``ql`` 64 bytes, ``qh`` 32 bytes. The
first generation has the average of the row, f32, behind ``d``; it is added to all weights.
"""

import numpy as np

from recover._compiled.float16 import f32_from_bits
from recover._compiled.jit import kernel
from recover.quants._declared import layout
from recover.quants._fields import double_word
from recover.quants._soft import LEVELS, errors
from recover.quants._trellis import FIRST_FACTOR, FIRST_UNIT, fill_group
from recover.quants._trellis_book import Shape
from recover.quants._trellis_encode import encode
from recover.quants._trellis_marks import fill_by_encoder
from recover.quants._trellis_pack import blocks_of_rows, by_block
from recover.quants._trellis_types import first_generation, trellis_type
from recover.quants.base import F32Array, U8Array
from recover.quants.interval import Stated


@kernel
def _unpack(
    raw: U8Array, is_first: bool, levels: F32Array, scale: F32Array, average: F32Array
) -> None:
    """Mirrors `dequantize_row_iq4_kt`."""
    n_header = 8 if is_first else 4
    size = n_header + 128
    for b in range(raw.size // size):
        row = raw[size * b : size * b + n_header]
        block = raw[size * b + n_header : size * (b + 1)]
        d = f32_from_bits(np.uint32(double_word(row, 0)))
        if is_first:
            d *= FIRST_FACTOR
            average[b] = f32_from_bits(np.uint32(double_word(row, 4)))
        for s in range(8):
            sh = double_word(block, 4 * s)
            dl = d * np.float32(((sh >> 1) & 127) - 64)
            scale[16 * b + 2 * s] = scale[16 * b + 2 * s + 1] = dl
            for j in range(8):
                g = 8 * s + j
                high = (np.int64(block[96 + g % 32]) >> (4 * (g // 32))) & 15
                seed = np.int64(block[32 + g]) | high << 8 | ((sh >> (8 + 3 * j)) & 7) << 12
                at = 256 * b + 4 * g
                fill_group(seed + 32768 * (sh & 1), levels[at : at + 4], is_first)


_ERRORS = errors(
    4,
    ((13, 2.45), (22, 2.96), (31, 3.81), (41, 5.05), (50, 6.77), (59, 9.81), (69, 15.8)),
    (
        *((2, 1), (7, 0.984), (16, 0.913), (27, 0.786), (39, 0.645)),
        *((52, 0.513), (67, 0.396), (82, 0.308), (100, 0.217)),
    ),
)
_OUR_ERRORS = errors(
    4,
    ((8, 2.1), (16, 2.2), (24, 2.4), (32, 2.7), (40, 3.05), (48, 3.5), (57, 4.35), (68, 5.6)),
    ((2, 1.01), (40, 1), (60, 0.955), (80, 0.95), (100, 0.89), (115, 0.76)),
)


def _state(is_first: bool, raw: U8Array, stated: Stated) -> None:
    n = stated.value.size
    levels, scale = np.empty(n, np.float32), np.empty(n // 16, np.float32)
    average = np.zeros(n // 256, np.float32)
    _unpack(raw, is_first, levels, scale, average)
    unit = FIRST_UNIT if is_first else LEVELS
    blocks = raw.reshape(-1, 136 if is_first else 132)
    fill_by_encoder(blocks, levels, scale, (_ERRORS, _OUR_ERRORS), unit, stated)
    if is_first:
        stated.value[:] = (stated.value.reshape(-1, 256) + average[:, None]).reshape(-1)


_SHAPE = Shape(4, 32_768, 2, False, tuple(map(float, range(-64, 64))))


def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    scales, found = encode(_SHAPE, x, imatrix)
    blocks = blocks_of_rows(raw, scales, IQ4_KT.type_size)
    seeds = by_block(found.seeds.astype(np.int64), blocks)
    words = by_block(found.sets | found.codes << 1, blocks)
    words |= (seeds >> 12 << (8 + 3 * np.arange(8))).sum(axis=-1)
    words_and_bytes = words.astype("<u4").view(np.uint8)
    blocks[..., :32] = words_and_bytes.reshape(*blocks.shape[:2], 32)
    seeds = seeds.reshape(*blocks.shape[:2], 64)
    blocks[..., 32:96] = seeds & 255
    high = seeds >> 8 & 15
    blocks[..., 96:] = high[..., :32] | high[..., 32:] << 4


IQ4_KT = trellis_type(
    layout("IQ4_KT", type_id=155, block_size=256, type_size=128),
    _state,
    _quantize,
    file_type=153,
    relative_mse=0.00978,
)

IQ4_KT_V1 = first_generation(IQ4_KT, _state, row_header=8)

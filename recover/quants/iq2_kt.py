"""IQ2_KT: rows with one scale, a seed of 16 bits for 8 weights, 4-bit scales of 32 weights.

Row: ``d`` f32, then the blocks: ``scales`` 4 bytes, seeds 64 bytes.
"""

import numpy as np

from recover._compiled.float16 import f32_from_bits
from recover._compiled.jit import kernel
from recover.quants._declared import layout
from recover.quants._fields import double_word, half, word
from recover.quants._soft import LEVELS, errors
from recover.quants._trellis import FIRST_FACTOR, FIRST_UNIT, SCALES, fill_group
from recover.quants._trellis_book import Shape
from recover.quants._trellis_encode import encode
from recover.quants._trellis_marks import fill_by_encoder
from recover.quants._trellis_pack import blocks_of_rows, pack_scales_and_words
from recover.quants._trellis_types import first_generation, trellis_type
from recover.quants.base import F32Array, U8Array
from recover.quants.interval import Stated


@kernel
def _unpack(raw: U8Array, is_first: bool, levels: F32Array, scale: F32Array) -> None:
    """Mirrors `dequantize_row_iq2_kt`."""
    for b in range(raw.size // 72):
        block = raw[72 * b : 72 * b + 72]
        d = f32_from_bits(np.uint32(double_word(block, 0)))
        if is_first:
            d *= FIRST_FACTOR
        for s in range(8):
            dl = d * SCALES[half(block, 4, s)]
            scale[16 * b + 2 * s] = scale[16 * b + 2 * s + 1] = dl
            for g in range(4 * s, 4 * s + 4):
                at = 256 * b + 8 * g
                fill_group(word(block, 8 + 2 * g), levels[at : at + 8], is_first)


_ERRORS = errors(
    8,
    ((11, 7.08), (18, 7.73), (25, 8.77), (32, 10.6), (40, 13.4), (47, 17.6), (55, 23), (62, 28.6)),
    (
        *((2, 1), (7, 0.989), (16, 0.978), (27, 0.986), (39, 0.969)),
        *((52, 0.894), (67, 0.744), (82, 0.56), (99, 0.443)),
    ),
)
_OUR_ERRORS = errors(
    8,
    ((9, 7.1), (16, 7), (20, 7.4), (28, 8.4), (32, 9.2), (36, 10.3), (44, 12.55), (57, 15.8)),
    ((80, 1), (100, 1.15)),
)


def _state(is_first: bool, raw: U8Array, stated: Stated) -> None:
    n = stated.value.size
    levels, scale = np.empty(n, np.float32), np.empty(n // 16, np.float32)
    _unpack(raw, is_first, levels, scale)
    unit = FIRST_UNIT if is_first else LEVELS
    blocks = raw.reshape(-1, 72)
    fill_by_encoder(blocks, levels, scale, (_ERRORS, _OUR_ERRORS), unit, stated)


_SHAPE = Shape(8, 65_536, 1, False, tuple(SCALES.tolist()))


def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    scales, found = encode(_SHAPE, x, imatrix)
    pack_scales_and_words(found, blocks_of_rows(raw, scales, IQ2_KT.type_size))


IQ2_KT = trellis_type(
    layout("IQ2_KT", type_id=153, block_size=256, type_size=68),
    _state,
    _quantize,
    file_type=151,
    relative_mse=0.115,
    twin="IQ2_KT_V1",
)

IQ2_KT_V1 = first_generation(IQ2_KT, _state, twin="IQ2_KT")

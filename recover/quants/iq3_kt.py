"""IQ3_KT: rows with one scale, a seed of 16 bits for 8 weights, their signs, 4-bit scales.

Row: ``d`` f32, then the blocks: ``scales`` 4 bytes (of 32 weights), seeds 64 bytes, signs 32 bytes.
The signs are those of the weights (``x < 0``): the one thing that the codes prove.
"""

import numpy as np

from recover._compiled.float16 import f32_from_bits
from recover._compiled.jit import kernel
from recover.quants._declared import layout
from recover.quants._fields import double_word, half, word
from recover.quants._soft import LEVELS, errors
from recover.quants._trellis import FIRST_FACTOR, FIRST_UNIT, fill_group
from recover.quants._trellis_book import Shape
from recover.quants._trellis_encode import encode
from recover.quants._trellis_marks import fill_by_encoder
from recover.quants._trellis_pack import blocks_of_rows, pack_scales_and_words
from recover.quants._trellis_types import first_generation, trellis_type
from recover.quants.base import F32Array, U8Array
from recover.quants.interval import Stated


@kernel
def _unpack(raw: U8Array, is_first: bool, levels: F32Array, scale: F32Array) -> None:
    """Mirrors `dequantize_row_iq3_kt`; the levels are as if there were no signs."""
    for b in range(raw.size // 104):
        block = raw[104 * b : 104 * b + 104]
        d = f32_from_bits(np.uint32(double_word(block, 0)))
        if is_first:
            d *= FIRST_FACTOR
        for s in range(8):
            scale[16 * b + 2 * s] = scale[16 * b + 2 * s + 1] = d * np.float32(half(block, 4, s))
            for g in range(4 * s, 4 * s + 4):
                at = 256 * b + 8 * g
                fill_group(word(block, 8 + 2 * g), levels[at : at + 8], is_first)
    for i in range(levels.size):
        levels[i] = abs(levels[i])


@kernel
def _add_signs(
    raw: U8Array, scale: F32Array, value: F32Array, lower: F32Array, upper: F32Array
) -> None:
    """Negate the weights that are negative; the sign is a bound where the scale is not 0."""
    for b in range(raw.size // 104):
        signs = raw[104 * b + 72 : 104 * b + 104]
        for i in range(256):
            at, s = 256 * b + i, scale[16 * b + i // 16]
            is_negative = (signs[i % 32] >> np.uint8(i // 32)) & np.uint8(1)
            if is_negative:
                value[at] = -value[at]
            if not 0 < s < np.float32(np.inf):
                continue
            if is_negative:
                upper[at] = 0
            else:
                lower[at] = 0


_ERRORS = errors(
    8,
    ((11, 3.8), (17, 3.93), (24, 4.47), (32, 5.38), (40, 6.86), (47, 9.12), (54, 12.1), (62, 15.4)),
    (
        *((2, 1), (8, 0.96), (16, 1.125), (27, 1.083), (39, 0.879)),
        *((52, 0.703), (66, 0.544), (82, 0.434), (99, 0.362)),
    ),
)
_OUR_ERRORS = errors(
    8,
    ((9, 4.1), (16, 3.8), (24, 4.1), (32, 4.7), (36, 5.2), (40, 5.9), (48, 7.25), (57, 8.6)),
    ((2, 0.85), (7, 0.92), (15, 1.05), (40, 1), (80, 1.02), (100, 1.1)),
)


def _state(is_first: bool, raw: U8Array, stated: Stated) -> None:
    n = stated.value.size
    levels, scale = np.empty(n, np.float32), np.empty(n // 16, np.float32)
    _unpack(raw, is_first, levels, scale)
    unit = FIRST_UNIT if is_first else LEVELS
    blocks = raw.reshape(-1, 104)
    fill_by_encoder(blocks, levels, scale, (_ERRORS, _OUR_ERRORS), unit, stated)
    _add_signs(raw, scale, stated.value, stated.lower, stated.upper)


_SHAPE = Shape(8, 65_536, 1, True, tuple(map(float, range(16))))


def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    scales, found = encode(_SHAPE, x, imatrix)
    blocks = blocks_of_rows(raw, scales, IQ3_KT.type_size)
    pack_scales_and_words(found, blocks)
    is_negative = (x < 0).reshape(*blocks.shape[:2], 8, 32)
    blocks[..., 68:] = np.packbits(is_negative, axis=2, bitorder="little")[..., 0, :]


IQ3_KT = trellis_type(
    layout("IQ3_KT", type_id=154, block_size=256, type_size=100),
    _state,
    _quantize,
    file_type=152,
    relative_mse=0.0301,
    has_cells=True,
    twin="IQ3_KT_V1",
)

IQ3_KT_V1 = first_generation(IQ3_KT, _state, twin="IQ3_KT")

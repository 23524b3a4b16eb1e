"""IQ4_KSS: rows with one scale, sub-blocks of 32 weights with signed 7-bit scales, codes of 4 bits.

Row: ``d`` f32, then the blocks: eight 16-bit words for each 32 weights. The bits 0 of the words are
the scale (bit 0: shifted). Without them, ``v XOR (v >> 1)`` has the codes: the encoder changes
codes until that is possible, so that they prove nothing.
"""

import numpy as np

from recover._compiled.jit import kernel
from recover.quants._declared import layout
from recover.quants._fields import add_shift, four_bits_16, word
from recover.quants._hidden_scales import LEVELS_4, SUPERBLOCK, read_unit, tables_of
from recover.quants._soft import errors, soft_type
from recover.quants.base import F32Array, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array) -> None:
    """Mirrors `dequantize_row_iq4_kss`."""
    plain = np.empty(16, np.uint8)
    for b in range(raw.size // 132):
        block = raw[132 * b : 132 * b + 132]
        d = read_unit(block, 0, False)
        for s in range(8):
            stored = 0
            for k in range(8):
                bits = word(block, 4 + 16 * s + 2 * k)
                stored |= (bits & 1) << k
                bits &= 0xFFFE
                bits ^= bits >> 1
                plain[2 * k], plain[2 * k + 1] = np.uint8(bits & 255), np.uint8(bits >> 8)
            y = codes[256 * b + 32 * s : 256 * b + 32 * s + 32]
            four_bits_16(plain, 0, y)
            add_shift(y, 0, 32, stored & 1, 16)
            dl = d * np.float32((stored & 254) - 127)
            scale[16 * b + 2 * s] = scale[16 * b + 2 * s + 1] = dl


_LEVELS = tables_of(LEVELS_4, 4)[0]
_ERRORS = errors(
    4,
    ((16, 5.82), (31, 6.27), (49, 6.65), (69, 6.78), (87, 7.17)),
    (
        *((1, 1), (7, 0.82), (16, 1.127), (26, 0.763), (40, 0.748)),
        *((53, 0.71), (67, 0.708), (84, 0.729), (112, 0.656)),
    ),
)


def _unpack_levels(raw: U8Array, levels: F32Array, scale: F32Array) -> None:
    codes = np.empty(levels.size, np.uint8)
    _unpack(raw, codes, scale)
    levels[:] = _LEVELS[codes]


IQ4_KSS = soft_type(
    layout("IQ4_KSS", type_id=146, block_size=SUPERBLOCK, type_size=128),
    _unpack_levels,
    _ERRORS,
    row_header=4,
    file_types={148: "IQ4_KSS"},
    relative_mse=0.0118,
)

"""IQ2_KL: rows with one scale, signed 6-bit scales of 32 weights, codes of 5 bits for 2 weights.

Row: ``d`` f16, then the blocks: ``scales_h`` 2 bytes, ``scales_l`` 4 bytes, ``qs`` 64 bytes, ``qh``
16 bytes. A code stands for one of 32 pairs of levels. Where the pair of the nearest levels is none
of them the encoder searches for another, so that the codes prove nothing.
"""

import numpy as np

from recover._compiled.float16 import read_f16
from recover._compiled.jit import kernel
from recover.quants._declared import layout
from recover.quants._fields import half, word
from recover.quants._hidden_scales import SUPERBLOCK
from recover.quants._soft import errors, soft_type
from recover.quants.base import F32Array, U8Array

PAIRS = np.array(
    [
        (-63, -23),
        (-63, 13),
        (-40, -63),
        (-40, -10),
        (-40, 13),
        (-40, 47),
        (-23, -40),
        (-23, -23),
        (-23, 1),
        (-23, 13),
        (-23, 28),
        (-10, -63),
        (-10, 1),
        (-10, 13),
        (-10, 47),
        (1, -23),
        (1, -10),
        (1, 1),
        (1, 13),
        (1, 28),
        (13, -40),
        (13, -23),
        (13, -10),
        (13, 1),
        (13, 13),
        (28, -63),
        (28, -23),
        (28, 1),
        (28, 28),
        (28, 47),
        (47, -23),
        (47, 13),
    ],
    np.float32,
)
"""`iq2kl_values` of ik_llama.cpp."""


@kernel
def _unpack(raw: U8Array, levels: F32Array, scale: F32Array) -> None:
    """Mirrors `dequantize_row_iq2_kl`."""
    for b in range(raw.size // 88):
        block = raw[88 * b : 88 * b + 88]
        d = read_f16(block, 0)
        high = word(block, 2)
        for s in range(8):
            n = half(block, 4, s) + 16 * ((high >> (2 * s)) & 3) - 32
            scale[16 * b + 2 * s] = scale[16 * b + 2 * s + 1] = d * np.float32(n)
            for j in range(16):
                code = (np.int64(block[8 + 16 * (s // 2) + j]) >> (4 * (s % 2))) & 15
                code |= ((np.int64(block[72 + j]) >> s) & 1) << 4
                at = 256 * b + 32 * s + 2 * j
                levels[at], levels[at + 1] = PAIRS[code, 0], PAIRS[code, 1]


_ERRORS = errors(
    2,
    ((1, 3.22), (9, 4.77), (17, 6.03), (27, 9.74), (35, 14), (46, 15.2), (53, 21.5)),
    ((1, 1), (10, 0.674), (13, 0.745), (25, 0.666), (40, 0.457), (53, 0.417)),
)


IQ2_KL = soft_type(
    layout("IQ2_KL", type_id=157, block_size=SUPERBLOCK, type_size=86),
    _unpack,
    _ERRORS,
    row_header=2,
    file_types={155: "IQ2_KL"},
    relative_mse=0.0583,
)

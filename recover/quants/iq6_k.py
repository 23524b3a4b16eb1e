"""IQ6_K: superblocks of 256 weights in 16 sub-blocks with signed 8-bit scales, codes of 6 bits.

Block: ``d`` f16, shift bits 2 bytes, ``scales`` 16 bytes, ``qs`` 128 bytes, ``qh`` 64 bytes.

The levels are the integers that the encoder and the matrix products use. `dequantize_row_iq6_k`
evaluates a cubic polynomial instead, which is up to half a level away and has a larger error.
"""

import numpy as np

from recover._compiled.float16 import read_f16
from recover._compiled.jit import kernel
from recover.quants._fields import add_bits, add_shift, four_bits, word
from recover.quants._hidden_scales import Places, Unit, hidden_scale_type
from recover.quants.base import F32Array, U8Array

LEVELS = (
    -127,
    -121,
    -115,
    -109,
    -104,
    -98,
    -93,
    -88,
    -84,
    -79,
    -74,
    -70,
    -66,
    -62,
    -58,
    -54,
    -51,
    -47,
    -44,
    -40,
    -37,
    -34,
    -31,
    -28,
    -25,
    -22,
    -19,
    -16,
    -13,
    -11,
    -8,
    -5,
    -2,
    0,
    3,
    6,
    9,
    12,
    14,
    17,
    20,
    23,
    27,
    30,
    33,
    36,
    40,
    44,
    47,
    51,
    55,
    59,
    63,
    68,
    72,
    77,
    82,
    87,
    92,
    98,
    103,
    109,
    115,
    121,
)
"""`iq6nl_values` of ik_llama.cpp."""


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array) -> None:
    """Mirrors `dequantize_row_iq6_k`."""
    for b in range(raw.size // 212):
        block = raw[212 * b : 212 * b + 212]
        y = codes[256 * b : 256 * b + 256]
        d = read_f16(block, 0)
        shift = word(block, 2)
        four_bits(block, 20, y)
        add_bits(block, 148, 2, 4, y)
        for s in range(16):
            n = np.int64(np.int8(block[4 + s]))
            scale[16 * b + s] = d * np.float32(n)
            add_shift(y, 16 * s, 16, (shift >> s) & 1, 64)


IQ6_K = hidden_scale_type(
    "IQ6_K",
    141,
    212,
    unpack=_unpack,
    levels=LEVELS,
    shift=1,
    unit=Unit(0, is_f16=True),
    step=1,
    reach=(0.97, 1.03),
    usual=(0.993, 1.007),
    file_types={142: "IQ6_K"},
    relative_mse=0.00024,
    places=Places(11.9, 6.71, 8.7, 0.0152, 4.21, 0.61, 57.2),
    weighted=Places(13.9, 4.07, 12.1, 0.0294, 3.04, 0.68, 57.3),
)

"""IQ2_K: superblocks of 256 weights in 16 sub-blocks with signed 4-bit scales, codes of 2 bits.

Block: ``d`` f16, shift bits 2 bytes, ``scales`` 8 bytes, ``qs`` 64 bytes.
"""

import numpy as np

from recover._compiled.float16 import read_f16
from recover._compiled.jit import kernel
from recover.quants._fields import add_shift, nibble, two_bits, word
from recover.quants._hidden_scales import LEVELS_2, Places, Unit, hidden_scale_type
from recover.quants.base import F32Array, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array) -> None:
    """Mirrors `dequantize_row_iq2_k`."""
    for b in range(raw.size // 76):
        block = raw[76 * b : 76 * b + 76]
        y = codes[256 * b : 256 * b + 256]
        d = read_f16(block, 0)
        shift = word(block, 2)
        two_bits(block, 12, y)
        for s in range(16):
            n = nibble(block, 4, s) - 8
            scale[16 * b + s] = d * np.float32(n)
            add_shift(y, 16 * s, 16, (shift >> s) & 1, 4)


IQ2_K = hidden_scale_type(
    "IQ2_K",
    137,
    76,
    unpack=_unpack,
    levels=LEVELS_2,
    shift=5,
    unit=Unit(0, is_f16=True),
    step=1,
    reach=(0.15, 1.25),
    usual=(0.919, 1.015),
    file_types={138: "IQ2_K"},
    relative_mse=0.0947,
    places=Places(14, -0.2, 20, 0.0613, 0.83, 0.6, 14.9),
    weighted=Places(15.3, -0.4, 20, 0.0764, 0.81, 1.49, 15.4),
)

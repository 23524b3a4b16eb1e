"""IQ2_KS: rows with one scale, sub-blocks of 32 weights with signed 5-bit scales, codes of 2 bits.

Row: ``d`` f16, then the blocks: shift bits 1 byte, high bits of the scales 1 byte, ``scales`` 4
bytes, ``qs`` 64 bytes.
"""

import numpy as np

from recover._compiled.float16 import read_f16
from recover._compiled.jit import kernel
from recover.quants._fields import add_shift, nibble, two_bits, word
from recover.quants._hidden_scales import LEVELS_2, Places, Unit, hidden_scale_type
from recover.quants.base import F32Array, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array) -> None:
    """Mirrors `dequantize_row_iq2_ks`."""
    for b in range(raw.size // 72):
        block = raw[72 * b : 72 * b + 72]
        y = codes[256 * b : 256 * b + 256]
        d = read_f16(block, 0)
        extra = word(block, 2)
        two_bits(block, 8, y)
        for s in range(8):
            n = nibble(block, 4, s) + 16 * ((extra >> (8 + s)) & 1) - 16
            scale[16 * b + 2 * s] = scale[16 * b + 2 * s + 1] = d * np.float32(n)
            add_shift(y, 32 * s, 32, (extra >> s) & 1, 4)


IQ2_KS = hidden_scale_type(
    "IQ2_KS",
    145,
    70,
    unpack=_unpack,
    levels=LEVELS_2,
    shift=5,
    unit=Unit(0, is_f16=True),
    step=1,
    n_wide=2,
    reach=(0.8, 1.2),
    usual=(0.961, 1.012),
    file_types={147: "IQ2_KS"},
    relative_mse=0.124,
    places=Places(13.7, -0.6, 20, 0.08, 0.51, 0.67, 13.1),
    weighted=Places(14.5, -0.8, 20, 0.112, 0.44, 2, 14),
    row_header=2,
)

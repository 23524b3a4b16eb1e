"""IQ5_K: superblocks of 256 weights in 16 sub-blocks with signed 6-bit scales, codes of 5 bits.

Block: ``d`` f16, shift bits 2 bytes, ``scales_h`` 4 bytes, ``scales_l`` 8 bytes, ``qs`` 128 bytes,
``qh`` 32 bytes.
"""

import numpy as np

from recover._compiled.float16 import read_f16
from recover._compiled.jit import kernel
from recover.quants._fields import add_bits, add_shift, four_bits, nibble, word
from recover.quants._hidden_scales import LEVELS_5, Places, Unit, hidden_scale_type
from recover.quants.base import F32Array, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array) -> None:
    """Mirrors `dequantize_row_iq5_k`."""
    for b in range(raw.size // 176):
        block = raw[176 * b : 176 * b + 176]
        y = codes[256 * b : 256 * b + 256]
        d = read_f16(block, 0)
        shift = word(block, 2)
        four_bits(block, 16, y)
        add_bits(block, 144, 1, 4, y)
        for s in range(16):
            high = (block[4 + s // 4] >> np.uint8(2 * (s % 4))) & np.uint8(3)
            n = nibble(block, 8, s) + 16 * np.int64(high) - 32
            scale[16 * b + s] = d * np.float32(n)
            add_shift(y, 16 * s, 16, (shift >> s) & 1, 32)


IQ5_K = hidden_scale_type(
    "IQ5_K",
    140,
    176,
    unpack=_unpack,
    levels=LEVELS_5,
    shift=2,
    unit=Unit(0, is_f16=True),
    step=1,
    reach=(0.94, 1.05),
    usual=(0.989, 1.011),
    file_types={141: "IQ5_K"},
    relative_mse=0.00111,
    places=Places(12.3, 6.45, 29.4, 0.0092, 4.97, 0.87, 57.4),
    weighted=Places(13.8, 5.98, 47.6, 0.0235, 2.98, 0.86, 57.6),
)

"""IQ4_K: superblocks of 256 weights in 16 sub-blocks with signed 6-bit scales, codes of 4 bits.

Block: ``d`` f16, shift bits 2 bytes, ``scales_h`` 4 bytes, ``scales_l`` 8 bytes, ``qs`` 128 bytes.
"""

import numpy as np

from recover._compiled.float16 import read_f16
from recover._compiled.jit import kernel
from recover.quants._fields import add_shift, four_bits_16, nibble, word
from recover.quants._hidden_scales import LEVELS_4, Places, Unit, hidden_scale_type
from recover.quants.base import F32Array, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array) -> None:
    """Mirrors `dequantize_row_iq4_k`."""
    for b in range(raw.size // 144):
        block = raw[144 * b : 144 * b + 144]
        y = codes[256 * b : 256 * b + 256]
        d = read_f16(block, 0)
        shift = word(block, 2)
        four_bits_16(block, 16, y)
        for s in range(16):
            high = (block[4 + s // 4] >> np.uint8(2 * (s % 4))) & np.uint8(3)
            n = nibble(block, 8, s) + 16 * np.int64(high) - 32
            scale[16 * b + s] = d * np.float32(n)
            add_shift(y, 16 * s, 16, (shift >> s) & 1, 16)


IQ4_K = hidden_scale_type(
    "IQ4_K",
    139,
    144,
    unpack=_unpack,
    levels=LEVELS_4,
    shift=4,
    unit=Unit(0, is_f16=True),
    step=1,
    reach=(0.88, 1.08),
    usual=(0.987, 1.013),
    file_types={140: "IQ4_K"},
    relative_mse=0.00442,
    places=Places(11.5, 5.91, 19, 0.011, 4.71, 0.93, 58.1),
    weighted=Places(13.8, 4.31, 34.1, 0.0306, 2.44, 0.92, 58.7),
)

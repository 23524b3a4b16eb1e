"""IQ3_KS: rows with one scale, sub-blocks of 32 weights with signed 5-bit scales, codes of 3 bits.

Row: ``d`` f16, then the blocks: high bits of the scales 1 byte, shift bits 1 byte, ``scales`` 4
bytes, ``qs`` 64 bytes, ``qh`` 32 bytes.
"""

import numpy as np

from recover._compiled.float16 import read_f16
from recover._compiled.jit import kernel
from recover.quants._fields import add_bits, add_shift, half, two_bits, word
from recover.quants._hidden_scales import LEVELS_3, Places, Unit, hidden_scale_type
from recover.quants.base import F32Array, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array) -> None:
    """Mirrors `dequantize_row_iq3_ks`."""
    for b in range(raw.size // 104):
        block = raw[104 * b : 104 * b + 104]
        y = codes[256 * b : 256 * b + 256]
        d = read_f16(block, 0)
        extra = word(block, 2)
        two_bits(block, 8, y)
        add_bits(block, 72, 1, 2, y)
        for s in range(8):
            n = half(block, 4, s) + 16 * ((extra >> s) & 1) - 16
            scale[16 * b + 2 * s] = scale[16 * b + 2 * s + 1] = d * np.float32(n)
            add_shift(y, 32 * s, 32, (extra >> (8 + s)) & 1, 8)


IQ3_KS = hidden_scale_type(
    "IQ3_KS",
    156,
    102,
    unpack=_unpack,
    levels=LEVELS_3,
    shift=4,
    unit=Unit(0, is_f16=True),
    step=1,
    n_wide=2,
    reach=(0.8, 1.2),
    usual=(0.982, 1.016),
    file_types={154: "IQ3_KS"},
    relative_mse=0.0259,
    places=Places(11.4, 2.49, 46.9, 0.034, 2.73, 0.94, 25.9),
    weighted=Places(12.4, 1.9, 38.2, 0.059, 1.35, 1.08, 26.2),
    row_header=2,
)

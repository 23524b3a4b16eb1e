"""IQ3_K: superblocks of 256 weights in 16 sub-blocks with odd scales of 5 bits, codes of 3 bits.

Block: ``d`` f16, shift bits 2 bytes, signs 2 bytes, ``scales`` 8 bytes, ``qs`` 64 bytes, ``qh`` 32
bytes.
"""

import numpy as np

from recover._compiled.float16 import read_f16
from recover._compiled.jit import kernel
from recover.quants._fields import add_bits, add_shift, nibble, two_bits, word
from recover.quants._hidden_scales import LEVELS_3, Places, Unit, hidden_scale_type
from recover.quants.base import F32Array, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array) -> None:
    """Mirrors `dequantize_row_iq3_k`."""
    for b in range(raw.size // 110):
        block = raw[110 * b : 110 * b + 110]
        y = codes[256 * b : 256 * b + 256]
        d = read_f16(block, 0)
        shift = word(block, 2)
        signs = word(block, 4)
        two_bits(block, 14, y)
        add_bits(block, 78, 1, 2, y)
        for s in range(16):
            n = 2 * nibble(block, 6, s) + 1
            n = -n if (signs >> s) & 1 else n
            scale[16 * b + s] = d * np.float32(n)
            add_shift(y, 16 * s, 16, (shift >> s) & 1, 8)


IQ3_K = hidden_scale_type(
    "IQ3_K",
    138,
    110,
    unpack=_unpack,
    levels=LEVELS_3,
    shift=4,
    unit=Unit(0, is_f16=True),
    step=2,
    reach=(0.72, 1.16),
    usual=(0.952, 1.018),
    file_types={139: "IQ3_K", 146: "IQ3_KL"},
    relative_mse=0.019,
    places=Places(12.5, 4.55, 59.3, 0.0261, 3.63, 0.98, 29.6),
    weighted=Places(13.6, 3.57, 43, 0.0436, 2.28, 1.04, 29.8),
)

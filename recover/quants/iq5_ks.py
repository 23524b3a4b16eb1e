"""IQ5_KS: rows with one scale, sub-blocks of 32 weights with signed 7-bit scales, codes of 5 bits.

Row: ``d`` f32, then the blocks: ``scales`` 8 bytes (bit 0: shifted), ``qs`` 128 bytes, ``qh`` 32
bytes.
"""

import numpy as np

from recover._compiled.jit import kernel
from recover.quants._fields import add_bits, add_shift, four_bits
from recover.quants._hidden_scales import LEVELS_5, Places, Unit, hidden_scale_type, read_unit
from recover.quants.base import F32Array, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array) -> None:
    """Mirrors `dequantize_row_iq5_ks`."""
    for b in range(raw.size // 172):
        block = raw[172 * b : 172 * b + 172]
        y = codes[256 * b : 256 * b + 256]
        d = read_unit(block, 0, False)
        four_bits(block, 12, y)
        add_bits(block, 140, 1, 4, y)
        for s in range(8):
            n = np.int64(block[4 + s] & np.uint8(254)) - 127
            scale[16 * b + 2 * s] = scale[16 * b + 2 * s + 1] = d * np.float32(n)
            add_shift(y, 32 * s, 32, block[4 + s] & 1, 32)


IQ5_KS = hidden_scale_type(
    "IQ5_KS",
    152,
    168,
    unpack=_unpack,
    levels=LEVELS_5,
    shift=2,
    unit=Unit(0, is_f16=False),
    step=2,
    n_wide=2,
    reach=(0.97, 1.02),
    usual=(0.996, 1.004),
    file_types={150: "IQ5_KS"},
    relative_mse=0.00143,
    places=Places(11.4, 3.54, 17.9, 0.0116, 4.07, 0.98, 49.6),
    weighted=Places(13.1, 2.32, 28.2, 0.0314, 2.35, 1.09, 49.9),
    row_header=4,
)

"""IQ4_KS: rows with one scale, sub-blocks of 32 weights with signed 7-bit scales, codes of 4 bits.

Row: ``d`` f32, then the blocks: ``scales`` 8 bytes (bit 0: shifted), ``qs`` 128 bytes.
"""

import numpy as np

from recover._compiled.jit import kernel
from recover.quants._fields import add_shift, four_bits_16
from recover.quants._hidden_scales import LEVELS_4, Places, Unit, hidden_scale_type, read_unit
from recover.quants.base import F32Array, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array) -> None:
    """Mirrors `dequantize_row_iq4_ks`."""
    for b in range(raw.size // 140):
        block = raw[140 * b : 140 * b + 140]
        y = codes[256 * b : 256 * b + 256]
        d = read_unit(block, 0, False)
        four_bits_16(block, 12, y)
        for s in range(8):
            n = np.int64(block[4 + s] & np.uint8(254)) - 127
            scale[16 * b + 2 * s] = scale[16 * b + 2 * s + 1] = d * np.float32(n)
            add_shift(y, 32 * s, 32, block[4 + s] & 1, 16)


IQ4_KS = hidden_scale_type(
    "IQ4_KS",
    144,
    136,
    unpack=_unpack,
    levels=LEVELS_4,
    shift=4,
    unit=Unit(0, is_f16=False),
    step=2,
    n_wide=2,
    reach=(0.95, 1.03),
    usual=(0.996, 1.004),
    file_types={145: "IQ4_KS"},
    relative_mse=0.00593,
    places=Places(11.4, 3.29, 14.1, 0.0167, 3.72, 1.02, 50.6),
    weighted=Places(13.1, 2.12, 34.3, 0.0422, 1.71, 1.32, 51.4),
    row_header=4,
)

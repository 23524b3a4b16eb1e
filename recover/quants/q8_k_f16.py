"""Q8_K_F16: superblocks of 256 weights with one scale, codes of 8 bits; the blocks of Q8_K_R8.

Block: ``d`` f16, 256 bytes of 8-bit integers. The encoder rounds ``x / d``, and d to f16 last.
"""

import numpy as np

from recover._compiled.float16 import read_f16
from recover._compiled.jit import kernel
from recover.quants._hidden_scales import Unit, hidden_scale_type
from recover.quants.base import F32Array, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array) -> None:
    """Codes from 0 on, for the integers from -128 on."""
    for b in range(raw.size // 258):
        block = raw[258 * b : 258 * b + 258]
        scale[16 * b : 16 * b + 16] = read_f16(block, 0)
        for i in range(256):
            codes[256 * b + i] = block[2 + i] ^ np.uint8(128)


Q8_K_F16 = hidden_scale_type(
    "Q8_K_F16",
    None,
    258,
    unpack=_unpack,
    levels=tuple(range(-128, 128)),
    shift=None,
    unit=Unit(0, is_f16=True),
    reach=(1.0, 1.0),
    usual=(1.0, 1.0),
    file_types={},
    relative_mse=0.00005,
)

"""Q6_0: blocks of 32 weights with one scale, codes of 6 bits.

Block: ``d`` f16, ``qh`` 8 bytes, ``qs`` 16 bytes. The encoder fits the scale again after the codes,
and in some blocks moves codes besides, so that they prove nothing.
"""

import numpy as np

from recover._compiled.float16 import read_f16
from recover._compiled.jit import kernel
from recover.quants._declared import layout
from recover.quants._soft import errors, soft_type
from recover.quants.base import F32Array, U8Array


@kernel
def _unpack(raw: U8Array, levels: F32Array, scale: F32Array) -> None:
    """Mirrors `dequantize_row_q6_0`."""
    for b in range(raw.size // 26):
        block = raw[26 * b : 26 * b + 26]
        scale[2 * b] = scale[2 * b + 1] = read_f16(block, 0)
        for j in range(16):
            high = np.int64(block[2 + j % 8]) >> (4 * (j // 8))
            byte = np.int64(block[10 + j])
            levels[32 * b + j] = np.float32((byte & 15 | (high & 3) << 4) - 32)
            levels[32 * b + 16 + j] = np.float32((byte >> 4 | (high & 12) << 2) - 32)


_ERRORS = errors(1, ((0, 0.27),))


Q6_0 = soft_type(
    layout("Q6_0", type_id=133, block_size=32, type_size=26),
    _unpack,
    _ERRORS,
    file_types={135: "Q6_0"},
    relative_mse=0.00046,
)

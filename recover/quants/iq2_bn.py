"""IQ2_BN: rows with one scale, weights of three values in 2 bits each.

Row: ``d`` f32, then blocks of 64 weights: 16 bytes. A weight is 0 if it is below half of the
largest of the row, which is d, and has the sign of the original otherwise.
"""

import numpy as np

from recover._compiled.float16 import f32_from_bits
from recover._compiled.jit import kernel
from recover.quants._declared import layout
from recover.quants._fields import double_word
from recover.quants._ternary import ternary_type
from recover.quants.base import F32Array, I8Array, U8Array


@kernel
def _unpack(raw: U8Array, digits: I8Array, scale: F32Array) -> None:
    """As `quantize_row_iq2_bn` has packed them."""
    for b in range(raw.size // 20):
        scale[b] = f32_from_bits(np.uint32(double_word(raw, 20 * b)))
        for p in range(4):
            for j in range(16):
                bits = (raw[20 * b + 4 + j] >> np.uint8(2 * p)) & np.uint8(3)
                digits[64 * b + 16 * p + j] = np.int8(bits) - np.int8(1)


IQ2_BN = ternary_type(
    layout("IQ2_BN", type_id=135, block_size=64, type_size=16),
    _unpack,
    row_header=4,
    file_types={137: "IQ2_BN"},
)

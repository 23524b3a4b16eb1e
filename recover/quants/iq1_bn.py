"""IQ1_BN: rows with one scale, weights of three values, five in a byte.

Row: ``d`` f16, then blocks of 64 weights: 13 bytes. A weight is 0 if it is below half of the
largest of the row, which is d, and has the sign of the original otherwise.
"""

import numpy as np

from recover._compiled.float16 import read_f16
from recover._compiled.jit import kernel
from recover.quants._declared import layout
from recover.quants._ternary import ternary_type
from recover.quants.base import F32Array, I8Array, U8Array

_POWERS = (81, 27, 9, 3, 1)


@kernel
def _unpack(raw: U8Array, digits: I8Array, scale: F32Array) -> None:
    """As `quantize_row_iq1_bn` packs them: of 16 weights three bytes of five, and one digit."""
    for b in range(raw.size // 15):
        scale[b] = read_f16(raw, 15 * b)
        for i in range(64):
            m, place = i // 16, i % 16
            byte = raw[15 * b + 2 + (3 * m + place // 5 if place < 15 else 12)]
            power = _POWERS[place % 5 if place < 15 else m]
            v = (np.int64(byte) * power) & 255
            digits[64 * b + i] = np.int8((v + v // 2) // 128 - 1)


IQ1_BN = ternary_type(
    layout("IQ1_BN", type_id=134, block_size=64, type_size=13),
    _unpack,
    row_header=2,
    file_types={136: "IQ1_BN"},
)

"""IQ1_BN: rows with one scale, weights of three values, five in a byte.

Row: ``d`` f16, then blocks of 64 weights: 13 bytes. A weight is 0 if it is below half of the
largest of the row, which is d, and has the sign of the original otherwise.
"""

import numpy as np

from recover._compiled.float16 import read_f16
from recover._compiled.jit import kernel
from recover.quants._declared import layout
from recover.quants._hidden_scales import IK
from recover.quants._ternary import fill_ternary
from recover.quants.base import F32Array, I8Array, U8Array
from recover.quants.interval import BlockIntervals, Stated

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


def _state(raw: U8Array, stated: Stated) -> None:
    n = stated.value.size
    digits, scale = np.empty(n, np.int8), np.empty(n // 64, np.float32)
    _unpack(raw, digits, scale)
    fill_ternary(digits, scale, True, stated)


IQ1_BN = BlockIntervals(
    **layout("IQ1_BN", type_id=134, block_size=64, type_size=13),
    row_header=2,
    file_types={136: "IQ1_BN"},
    writer=IK,
    relative_mse=0.65,
    is_native=True,
    state=_state,
)

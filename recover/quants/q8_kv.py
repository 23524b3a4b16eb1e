"""Q8_KV: rows with one scale, codes of 8 bits. Q8_KV_R: the same as interleaved rows have it.

Row: ``d`` f32, the sum of the codes i32 (not in Q8_KV_R), then 8-bit integers, 32 to a block. The
encoder rounds ``127 x / max |x|`` and does not change the scale afterwards.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from recover._compiled.float16 import f32_from_bits
from recover._compiled.jit import kernel
from recover.quants._declared import layout
from recover.quants._fields import double_word
from recover.quants._hidden_scales import IK
from recover.quants.base import U8Array
from recover.quants.interval import BlockIntervals, Stated

_HALF = np.float32(0.5 + 2.0**-12)  # with the encoder's rounding
_FAR = np.float32(np.inf)
_VARIANCE = np.float32(1 / 12)


@kernel
def _fill(raw: U8Array, n_header: int, stated: Stated) -> None:
    """Mirrors `dequantize_row_q8_KV`."""
    value, lower, upper, variance = stated
    size = n_header + 32
    for b in range(raw.size // size):
        d = f32_from_bits(np.uint32(double_word(raw, size * b)))
        is_known = d > 0 and 0 < d * d * _VARIANCE < _FAR
        reach = d * _HALF if is_known else _FAR
        error = d * d * _VARIANCE if is_known else _FAR
        for i in range(32):
            x = d * np.float32(np.int8(raw[size * b + n_header + i]))
            at = 32 * b + i
            value[at], variance[at] = x, error
            lower[at] = x - reach if is_known else -_FAR
            upper[at] = x + reach if is_known else _FAR


def _state(n_header: int, raw: U8Array, stated: Stated) -> None:
    _fill(raw, n_header, stated)


Q8_KV = BlockIntervals(
    **layout("Q8_KV", type_id=151, block_size=32, type_size=32),
    row_header=8,
    file_types={149: "Q8_KV"},
    writer=IK,
    relative_mse=0.00011,
    state=partial(_state, 8),
)

Q8_KV_R = replace(
    Q8_KV,
    name="Q8_KV_R",
    type_id=None,
    row_header=4,
    file_types={},
    state=partial(_state, 4),
)

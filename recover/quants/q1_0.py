"""Q1_0: blocks of 128 weights with one scale and their signs.

Block: ``d`` f16, 16 bytes: a bit is 1 where the weight is not negative. d is the mean of their
sizes.
"""

import numpy as np

from recover._compiled.float16 import read_f16
from recover._compiled.jit import kernel
from recover.quants._declared import layout
from recover.quants._legacy import write_u16
from recover.quants.base import I8Array, Integers, U8Array, U16Array
from recover.quants.interval import BlockIntervals, Stated

_FAR = np.float32(np.inf)
_VARIANCE = np.float32(np.pi / 2 - 1)  # of sizes of normal weights, over their squared mean


@kernel
def _fill(raw: U8Array, stated: Stated) -> None:
    """Mirrors `dequantize_row_q1_0`."""
    value, lower, upper, variance = stated
    for b in range(raw.size // 18):
        d = read_f16(raw, 18 * b)
        is_known = d > 0 and d < _FAR
        error = d * d * _VARIANCE if is_known else _FAR
        for i in range(128):
            at = 128 * b + i
            bit = (raw[18 * b + 2 + i // 8] >> np.uint8(i % 8)) & np.uint8(1)
            value[at], variance[at] = d if bit else -d, error
            lower[at] = np.float32(0) if bit and is_known else -_FAR
            upper[at] = np.float32(0) if is_known and not bit else _FAR


def _state(raw: U8Array, stated: Stated) -> None:
    _fill(raw, stated)


@kernel
def _pack_integers(integers: I8Array, d: U16Array, _m: U16Array, group: int, raw: U8Array) -> None:
    """See `Integers`; mirrors `quantize_row_q1_0_ref`."""
    for b in range(integers.size // 128):
        block = raw[18 * b : 18 * b + 18]
        write_u16(block, 0, d[128 * b // group])
        for i in range(16):
            byte = np.int32(0)
            for j in range(8):
                byte |= np.int32(integers[128 * b + 8 * i + j] > 0) << j
            block[2 + i] = byte


Q1_0 = BlockIntervals(
    **layout("Q1_0", type_id=41, block_size=128, type_size=18),
    relative_mse=0.37,
    noise=1.0,
    is_native=True,
    state=_state,
    integers=Integers(lowest=-1, highest=1, has_zero=False, pack=_pack_integers),
)

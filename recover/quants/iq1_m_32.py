"""IQ1_M_32: IQ1_M with one scale for a row and blocks of 32 weights, as IQ1_M_R4 interleaves them.

Row: ``d`` f16, then the blocks: the low bytes of four indices, two bytes with high bits of two
indices and the signs of their offsets, a byte with two scales.
"""

import numpy as np

from recover.quants._declared import layout
from recover.quants.base import F32Array, U8Array, VectorType
from recover.quants.iq1_s_32 import grid_of_iq1

_DELTA = np.float32(0.125)


def _decode(raw: U8Array, out: F32Array) -> None:
    """Mirrors `dequantize_row_iq1_m_r4`."""
    blocks = raw.reshape(-1, 9)
    d = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    high = np.repeat(blocks[:, 6:8], 2, 1).astype(np.int64) >> [0, 4, 0, 4]
    index = blocks[:, 2:6] | (high & 7) << 8
    delta = np.where(high & 8, -_DELTA, _DELTA)[:, :, None]
    scales = (np.repeat(blocks[:, 8:], 4, 1) >> np.array([0, 0, 4, 4], np.uint8)) & 15
    with np.errstate(all="ignore"):  # infinite scales and NaN are decoded as they are
        dl = d * scales.astype(np.float32)
        out[:] = (dl[:, :, None] * (grid_of_iq1()[index] + delta)).reshape(-1)


IQ1_M_32 = VectorType(
    **layout("IQ1_M_32", block_size=32, type_size=7),
    row_header=2,
    relative_mse=0.204,
    decode=_decode,
)

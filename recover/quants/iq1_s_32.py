"""IQ1_S_32: IQ1_S with one scale for a row and blocks of 32 weights, as IQ1_S_R4 interleaves them.

Row: ``d`` f16, then the blocks: the low bytes of four indices, a word: bits 3 i on are high bits of
index i, bits 12 to 14 the scale, bit 15 the sign of the offset.
"""

from typing import Any

import numpy as np

from recover.quants._declared import layout
from recover.quants.base import F32Array, U8Array, VectorType

_DELTA = np.float32(0.125)


def grid_of_iq1() -> Any:
    """The levels of IQ1_S and IQ1_M, float32 (2048, 8), from gguf-py."""
    from gguf.quants import IQ1_S

    IQ1_S.init_grid()
    assert IQ1_S.grid is not None
    return IQ1_S.grid.reshape(2048, 8)


def _decode(raw: U8Array, out: F32Array) -> None:
    """Mirrors `dequantize_row_iq1_s_r4`."""
    blocks = raw.reshape(-1, 8)
    d = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    words = np.ascontiguousarray(blocks[:, 6:]).view("<u2").astype(np.int64)
    index = blocks[:, 2:6] | ((words >> [0, 3, 6, 9]) & 7) << 8
    delta = np.where(words & 0x8000, -_DELTA, _DELTA)[:, :, None]
    with np.errstate(all="ignore"):  # infinite scales and NaN are decoded as they are
        dl = d * (2 * ((words >> 12) & 7) + 1).astype(np.float32)
        out[:] = (dl[:, :, None] * (grid_of_iq1()[index] + delta)).reshape(-1)


IQ1_S_32 = VectorType(
    **layout("IQ1_S_32", block_size=32, type_size=6),
    row_header=2,
    relative_mse=0.236,
    decode=_decode,
)

"""Q5_K: as Q4_K, with 5-bit codes.

Block: ``d`` f16, ``dmin`` f16, ``scales`` 12 bytes, ``qh`` 32 bytes (fifth bits, sub-block k in bit
k), ``qs`` 128 bytes.
"""

import numpy as np

from recover._compiled.jit import kernel
from recover._compiled.lanes import load_bytes, store_bytes
from recover.quants._declared import layout, rounded
from recover.quants._k_packed import quantize_packed
from recover.quants._k_scales import unpack_scales
from recover.quants._search import Steps
from recover.quants._sub_blocks import marks_of_packed_scales, packed_sub_blocks
from recover.quants.base import F32Array, Reencoding, ScalarType, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q5_K`."""
    for b in range(raw.size // 176):
        block = raw[176 * b : 176 * b + 176]
        unpack_scales(block[:16], scale[16 * b : 16 * b + 16], offset[16 * b : 16 * b + 16])
        for j in range(4):
            for i in range(0, 32, 16):
                q = load_bytes(block, 48 + 32 * j + i)
                fifths = load_bytes(block, 16 + i) >> (2 * j)
                store_bytes(codes, 256 * b + 64 * j + i, (q & 15) | ((fifths & 1) << 4))
                store_bytes(codes, 256 * b + 64 * j + 32 + i, (q >> 4) | ((fifths & 2) << 3))


_STEPS = Steps(32, np.float32(-0.5), np.float32(0.1), 15, False)
_WEIGHTED_STEPS = Steps(32, np.float32(-0.9), np.float32(0.05), 36, False)


@kernel
def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_q5_K`."""
    steps = _WEIGHTED_STEPS if imatrix.size else _STEPS
    quantize_packed(x, imatrix, steps, 63, 176, raw)


# `quantize_row_q5_K`: code = nearest_int((x + dm) / d) with the stored d and dm, clipped to 0..31.
Q5_K = ScalarType(
    **layout("Q5_K", type_id=13, block_size=256, type_size=176),
    **rounded(32),
    unpack=_unpack,
    quantize=_quantize,
    file_type=17,
    file_types={16: "Q5_K_S", 17: "Q5_K_M"},
    fallback="Q5_1",
    sub_blocks=packed_sub_blocks,
    marks=marks_of_packed_scales,
    reencoding=Reencoding(slope=0.9, margin=0.05, largest_level=63 * 31 / 2, weighted=0.1),
    scale_steps=63,
    lost_spread=2.5,
    noise=0.0712,
    relative_mse=0.0013,
)

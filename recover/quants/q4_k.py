"""Q4_K: superblocks of 256 weights in 8 sub-blocks with 6-bit scales and minima, 4-bit codes.

Block: ``d`` f16, ``dmin`` f16, ``scales`` 12 bytes, ``qs`` 128 bytes (32 bytes hold two
sub-blocks).
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
    """Mirrors `dequantize_row_q4_K`."""
    for b in range(raw.size // 144):
        block = raw[144 * b : 144 * b + 144]
        unpack_scales(block[:16], scale[16 * b : 16 * b + 16], offset[16 * b : 16 * b + 16])
        for j in range(4):
            for i in range(0, 32, 16):
                q = load_bytes(block, 16 + 32 * j + i)
                store_bytes(codes, 256 * b + 64 * j + i, q & 15)
                store_bytes(codes, 256 * b + 64 * j + 32 + i, q >> 4)


_STEPS = Steps(16, np.float32(-1), np.float32(0.1), 20, False)
_WEIGHTED_STEPS = Steps(16, np.float32(-0.9), np.float32(0.05), 36, False)


@kernel
def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_q4_K`."""
    steps, limit = (_WEIGHTED_STEPS, 255) if imatrix.size else (_STEPS, 63)
    quantize_packed(x, imatrix, steps, limit, 144, raw)


# `quantize_row_q4_K`: code = nearest_int((x + dm) / d) with the stored d and dm, clipped to 0..15.
Q4_K = ScalarType(
    **layout("Q4_K", type_id=12, block_size=256, type_size=144),
    **rounded(16),
    unpack=_unpack,
    quantize=_quantize,
    file_type=15,
    file_types={14: "Q4_K_S", 15: "Q4_K_M"},
    fallback="Q5_0",
    sub_blocks=packed_sub_blocks,
    marks=marks_of_packed_scales,
    reencoding=Reencoding(slope=1.2, margin=0.03, largest_level=63 * 15 / 2, weighted=0.1),
    scale_steps=63,
    lost_spread=1.5,
    noise=0.0643,
    relative_mse=0.0051,
)

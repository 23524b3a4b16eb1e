"""Q4_1: 32 weights, f16 scale and minimum, 4-bit codes.

Block: ``d`` f16, ``m`` f16, ``qs`` 16 bytes (as in Q4_0).
"""

from recover._jit import kernel
from recover.quants._float16 import read_f16
from recover.quants._legacy import range_cells, split_nibbles
from recover.quants.base import F32Array, ScalarType, U8Array, integer_levels


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q4_1`."""
    for b in range(raw.size // 20):
        d = read_f16(raw, 20 * b)
        m = read_f16(raw, 20 * b + 2)
        scale[2 * b : 2 * b + 2] = d
        offset[2 * b : 2 * b + 2] = m
        split_nibbles(raw[20 * b + 4 : 20 * b + 20], codes[32 * b : 32 * b + 32])


# `quantize_row_q4_1_ref`: d = (max - min) / 15, code = min(15, int((x - min) / d + 0.5)); d and min are
# rounded to f16 last.
_LOWER, _UPPER = range_cells(16)

Q4_1 = ScalarType(
    name="Q4_1",
    type_id=3,
    block_size=32,
    type_size=20,
    levels=integer_levels(16),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    rounds_scale_last=True,
    rounds_offset_last=True,
    refits_scale_with_imatrix=True,
    unpack=_unpack,
    noise=0.0781,
    relative_mse=0.0061,
)

"""Q5_1: 32 weights, f16 scale and minimum, 5-bit codes.

Block: ``d`` f16, ``m`` f16, ``qh`` 4 bytes (as in Q5_0), ``qs`` 16 bytes (as in Q4_0).
"""

from recover._jit import kernel
from recover.quants._float16 import read_f16
from recover.quants._legacy import add_fifth_bits, range_cells, split_nibbles
from recover.quants.base import F32Array, ScalarType, U8Array, integer_levels


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q5_1`."""
    for b in range(raw.size // 24):
        d = read_f16(raw, 24 * b)
        m = read_f16(raw, 24 * b + 2)
        scale[2 * b : 2 * b + 2] = d
        offset[2 * b : 2 * b + 2] = m
        split_nibbles(raw[24 * b + 8 : 24 * b + 24], codes[32 * b : 32 * b + 32])
        add_fifth_bits(raw[24 * b + 4 : 24 * b + 8], codes[32 * b : 32 * b + 32])


# `quantize_row_q5_1_ref`: d = (max - min) / 31, code = int((x - min) / d + 0.5); d and min are rounded
# to f16 last.
_LOWER, _UPPER = range_cells(32)

Q5_1 = ScalarType(
    name="Q5_1",
    type_id=7,
    block_size=32,
    type_size=24,
    levels=integer_levels(32),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    rounds_scale_last=True,
    rounds_offset_last=True,
    refits_scale_with_imatrix=True,
    unpack=_unpack,
    noise=0.0782,
    relative_mse=0.0014,
)

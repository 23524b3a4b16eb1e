"""Q4_0: 32 weights, one f16 scale, 4-bit codes around zero.

Block: ``d`` f16, ``qs`` 16 bytes (weight j in the low nibble of byte j, weight j + 16 in the high one).
"""

from recover._jit import kernel
from recover.quants._float16 import read_f16
from recover.quants._legacy import extreme_code_cells, split_nibbles
from recover.quants.base import F32Array, ScalarType, U8Array, integer_levels


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q4_0`."""
    for b in range(raw.size // 18):
        d = read_f16(raw, 18 * b)
        scale[2 * b : 2 * b + 2] = d
        offset[2 * b : 2 * b + 2] = -0.0
        split_nibbles(raw[18 * b + 2 : 18 * b + 18], codes[32 * b : 32 * b + 32])


# `quantize_row_q4_0_ref`: d = max / -8, code = min(15, int(x / d + 8.5)), d is rounded to f16 last.
_LOWER, _UPPER = extreme_code_cells(16)

Q4_0 = ScalarType(
    name="Q4_0",
    type_id=2,
    block_size=32,
    type_size=18,
    levels=integer_levels(16, first=-8),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    rounds_scale_last=True,
    refits_scale_with_imatrix=True,
    unpack=_unpack,
    noise=0.0828,
    relative_mse=0.0074,
)

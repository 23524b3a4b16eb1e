"""Q5_0: 32 weights, one f16 scale, 5-bit codes around zero.

Block: ``d`` f16, ``qh`` 4 bytes (fifth bits, weight j in bit j), ``qs`` 16 bytes (as in Q4_0).
"""

from recover._jit import kernel
from recover.quants._float16 import read_f16
from recover.quants._legacy import add_fifth_bits, extreme_code_cells, split_nibbles
from recover.quants.base import F32Array, ScalarType, U8Array, integer_levels


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q5_0`."""
    for b in range(raw.size // 22):
        d = read_f16(raw, 22 * b)
        scale[2 * b : 2 * b + 2] = d
        offset[2 * b : 2 * b + 2] = -0.0
        split_nibbles(raw[22 * b + 6 : 22 * b + 22], codes[32 * b : 32 * b + 32])
        add_fifth_bits(raw[22 * b + 2 : 22 * b + 6], codes[32 * b : 32 * b + 32])


# `quantize_row_q5_0_ref`: d = max / -16, code = min(31, int(x / d + 16.5)), d is rounded to f16 last.
_LOWER, _UPPER = extreme_code_cells(32)

Q5_0 = ScalarType(
    name="Q5_0",
    type_id=6,
    block_size=32,
    type_size=22,
    levels=integer_levels(32, first=-16),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    rounds_scale_last=True,
    refits_scale_with_imatrix=True,
    unpack=_unpack,
    noise=0.0818,
    relative_mse=0.0018,
)

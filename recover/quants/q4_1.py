"""Q4_1: 32 weights, f16 scale and minimum, 4-bit codes.

Block: ``d`` f16, ``m`` f16, ``qs`` 16 bytes (as in Q4_0).
"""

from recover.quants._ranged_32 import ranged_type

# Mirrors `dequantize_row_q4_1`. Mirrors `quantize_q4_1`.
Q4_1 = ranged_type(
    "Q4_1",
    4,
    holds_integers=True,
    type_id=3,
    file_type=3,
    noise=0.0781,
    relative_mse=0.0061,
)

"""Q5_1: 32 weights, f16 scale and minimum, 5-bit codes.

Block: ``d`` f16, ``m`` f16, ``qh`` 4 bytes (as in Q5_0), ``qs`` 16 bytes (as in Q4_0).
"""

from recover.quants._ranged_32 import ranged_type

# Mirrors `dequantize_row_q5_1`. Mirrors `quantize_q5_1`.
Q5_1 = ranged_type(
    "Q5_1",
    5,
    holds_integers=False,
    type_id=7,
    file_type=9,
    noise=0.0782,
    relative_mse=0.0014,
)

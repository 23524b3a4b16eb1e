"""Q4_0: 32 weights, one f16 scale, 4-bit codes around zero.

Block: ``d`` f16, ``qs`` 16 bytes (weight j in the low nibble of byte j, weight j + 16 in the high
one).
"""

from recover.quants._signed_32 import signed_type

# Mirrors `dequantize_row_q4_0`. Mirrors `quantize_q4_0`.
Q4_0 = signed_type("Q4_0", 4, type_id=2, file_type=2, noise=0.0828, relative_mse=0.0074)

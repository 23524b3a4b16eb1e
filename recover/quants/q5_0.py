"""Q5_0: 32 weights, one f16 scale, 5-bit codes around zero.

Block: ``d`` f16, ``qh`` 4 bytes (fifth bits, weight j in bit j), ``qs`` 16 bytes (as in Q4_0).
"""

from recover.quants._signed_32 import signed_type

# Mirrors `dequantize_row_q5_0`. Mirrors `quantize_q5_0`.
Q5_0 = signed_type("Q5_0", 5, type_id=6, file_type=8, noise=0.0818, relative_mse=0.0018)

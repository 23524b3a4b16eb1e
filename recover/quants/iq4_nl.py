"""IQ4_NL: 32 weights, one f16 scale, 4-bit codes into a fixed code book.

Block: ``d`` f16, ``qs`` 16 bytes (as in Q4_0).
"""

from recover._jit import kernel
from recover.quants._float16 import read_f16
from recover.quants._iq4 import LEVELS, codebook_cells
from recover.quants._legacy import split_nibbles
from recover.quants.base import F32Array, ScalarType, U8Array


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_iq4_nl`."""
    for b in range(raw.size // 18):
        d = read_f16(raw, 18 * b)
        scale[2 * b : 2 * b + 2] = d
        offset[2 * b : 2 * b + 2] = -0.0
        split_nibbles(raw[18 * b + 2 : 18 * b + 18], codes[32 * b : 32 * b + 32])


# `quantize_row_iq4_nl_impl`: nearest entry of the code book for the final scale, rounded to f16 last.
_LOWER, _UPPER = codebook_cells()

IQ4_NL = ScalarType(
    name="IQ4_NL",
    type_id=20,
    block_size=32,
    type_size=18,
    levels=LEVELS,
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    rounds_scale_last=True,
    unpack=_unpack,
    noise=16.28,
    relative_mse=0.0058,
)

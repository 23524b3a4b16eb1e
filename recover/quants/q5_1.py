"""Q5_1: 32 weights, f16 scale and minimum, 5-bit codes.

Block: ``d`` f16, ``m`` f16, ``qh`` 4 bytes (as in Q5_0), ``qs`` 16 bytes (as in Q4_0).
"""

import numpy as np

from recover._compiled.jit import kernel
from recover.quants._legacy import range_cells
from recover.quants._marks import Marks, code_mark, marks_of_codes
from recover.quants._ranged_32 import quantize_ranged, unpack_ranged
from recover.quants._search import Steps
from recover.quants.base import F32Array, FromWeight, ScalarType, U8Array, integer_levels

_STEPS = Steps(32, np.float32(-0.9), np.float32(0.05), 36, False)


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q5_1`."""
    unpack_ranged(raw, 5, codes, scale, offset)


@kernel
def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_q5_1`."""
    quantize_ranged(x, imatrix, _STEPS, 5, raw)


_MARK = code_mark((0,), (31,), positive=True)


def _marks(blocks: U8Array) -> Marks:
    """`quantize_row_q5_1_ref`: d = (max - min) / 31, code 0 for min and 31 for max."""
    return marks_of_codes(blocks, _unpack, _MARK)


# `quantize_row_q5_1_ref`: d = (max - min) / 31, code = int((x - min) / d + 0.5); d and min are
# rounded to f16 last.
_LOWER, _UPPER = range_cells(32)

Q5_1 = ScalarType(
    name="Q5_1",
    type_id=7,
    block_size=32,
    type_size=24,
    levels=integer_levels(),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    rounds_scale_last=True,
    rounds_offset_last=True,
    refits_scale_with_imatrix=True,
    extremes=((0, 0), (31, 31)),
    unpack=_unpack,
    quantize=_quantize,
    file_type=9,
    marks=_marks,
    cells_need_marks=True,
    from_weight=FromWeight(at=2, divisor=1),
    comes_back=True,
    weighs_whole_rows=True,
    noise=0.0782,
    relative_mse=0.0014,
)

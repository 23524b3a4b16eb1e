"""Q4_1: 32 weights, f16 scale and minimum, 4-bit codes.

Block: ``d`` f16, ``m`` f16, ``qs`` 16 bytes (as in Q4_0).
"""

import numpy as np

from recover._compiled.jit import kernel
from recover.quants._legacy import range_cells
from recover.quants._marks import Marks, code_mark, marks_of_codes
from recover.quants._ranged_32 import pack_ranged, quantize_ranged, unpack_ranged
from recover.quants._search import Steps
from recover.quants.base import (
    F32Array,
    FromWeight,
    I8Array,
    Integers,
    ScalarType,
    U8Array,
    U16Array,
    integer_levels,
)

_STEPS = Steps(16, np.float32(-0.9), np.float32(0.05), 36, False)


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q4_1`."""
    unpack_ranged(raw, 4, codes, scale, offset)


@kernel
def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_q4_1`."""
    quantize_ranged(x, imatrix, _STEPS, 4, raw)


@kernel
def _pack_integers(integers: I8Array, d: U16Array, m: U16Array, group: int, raw: U8Array) -> None:
    """See `Integers`."""
    pack_ranged(integers, d, m, group, 4, raw)


_MARK = code_mark((0,), (15,), positive=True)


def _marks(blocks: U8Array) -> Marks:
    """`quantize_row_q4_1_ref`: d = (max - min) / 15, code 0 for min and 15 for max."""
    return marks_of_codes(blocks, _unpack, _MARK)


# `quantize_row_q4_1_ref`: d = (max - min) / 15, code = min(15, int((x - min) / d + 0.5)); d and min
# are rounded to f16 last.
_LOWER, _UPPER = range_cells(16)

Q4_1 = ScalarType(
    name="Q4_1",
    type_id=3,
    block_size=32,
    type_size=20,
    levels=integer_levels(),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    rounds_scale_last=True,
    rounds_offset_last=True,
    refits_scale_with_imatrix=True,
    extremes=((0, 0), (15, 15)),
    unpack=_unpack,
    quantize=_quantize,
    integers=Integers(lowest=0, highest=15, has_offset=True, pack=_pack_integers),
    file_type=3,
    marks=_marks,
    cells_need_marks=True,
    from_weight=FromWeight(at=2, divisor=1),
    comes_back=True,
    weighs_whole_rows=True,
    noise=0.0781,
    relative_mse=0.0061,
)

"""Q4_0: 32 weights, one f16 scale, 4-bit codes around zero.

Block: ``d`` f16, ``qs`` 16 bytes (weight j in the low nibble of byte j, weight j + 16 in the high
one).
"""

from recover._compiled.jit import kernel
from recover.quants._legacy import extreme_code_cells
from recover.quants._marks import Marks, code_mark, marks_of_codes
from recover.quants._signed_32 import pack_signed, quantize_signed, unpack_signed
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


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q4_0`."""
    unpack_signed(raw, 4, codes, scale, offset)


@kernel
def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_q4_0`."""
    quantize_signed(x, imatrix, 4, raw)


@kernel
def _pack_integers(integers: I8Array, d: U16Array, _m: U16Array, group: int, raw: U8Array) -> None:
    """See `Integers`."""
    pack_signed(integers, d, group, 4, raw)


_MARK = code_mark((0,), positive=False)


def _marks(blocks: U8Array) -> Marks:
    """`quantize_row_q4_0_ref`: d = max / -8, so that max is given code 0."""
    return marks_of_codes(blocks, _unpack, _MARK)


# `quantize_row_q4_0_ref`: d = max / -8, code = min(15, int(x / d + 8.5)), d is rounded to f16 last.
_LOWER, _UPPER = extreme_code_cells(16)

Q4_0 = ScalarType(
    name="Q4_0",
    type_id=2,
    block_size=32,
    type_size=18,
    levels=integer_levels(first=-8),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    rounds_scale_last=True,
    refits_scale_with_imatrix=True,
    extremes=((0, 0),),
    unpack=_unpack,
    quantize=_quantize,
    integers=Integers(lowest=-8, highest=7, pack=_pack_integers),
    file_type=2,
    marks=_marks,
    cells_need_marks=True,
    from_weight=FromWeight(at=0, divisor=-8),
    comes_back=True,
    weighs_whole_rows=True,
    noise=0.0828,
    relative_mse=0.0074,
)

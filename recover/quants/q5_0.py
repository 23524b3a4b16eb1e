"""Q5_0: 32 weights, one f16 scale, 5-bit codes around zero.

Block: ``d`` f16, ``qh`` 4 bytes (fifth bits, weight j in bit j), ``qs`` 16 bytes (as in Q4_0).
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
    """Mirrors `dequantize_row_q5_0`."""
    unpack_signed(raw, 5, codes, scale, offset)


@kernel
def _quantize(x: F32Array, imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_q5_0`."""
    quantize_signed(x, imatrix, 5, raw)


@kernel
def _pack_integers(integers: I8Array, d: U16Array, _m: U16Array, group: int, raw: U8Array) -> None:
    """See `Integers`."""
    pack_signed(integers, d, group, 5, raw)


_MARK = code_mark((0,), positive=False)


def _marks(blocks: U8Array) -> Marks:
    """`quantize_row_q5_0_ref`: d = max / -16, so that max is given code 0."""
    return marks_of_codes(blocks, _unpack, _MARK)


# `quantize_row_q5_0_ref`: d = max / -16, code = min(31, int(x / d + 16.5)), d is rounded to f16
# last.
_LOWER, _UPPER = extreme_code_cells(32)

Q5_0 = ScalarType(
    name="Q5_0",
    type_id=6,
    block_size=32,
    type_size=22,
    levels=integer_levels(first=-16),
    lower_levels=_LOWER,
    upper_levels=_UPPER,
    rounds_scale_last=True,
    refits_scale_with_imatrix=True,
    extremes=((0, 0),),
    unpack=_unpack,
    quantize=_quantize,
    integers=Integers(lowest=-16, highest=15, pack=_pack_integers),
    file_type=8,
    marks=_marks,
    cells_need_marks=True,
    from_weight=FromWeight(at=0, divisor=-16),
    comes_back=True,
    weighs_whole_rows=True,
    noise=0.0818,
    relative_mse=0.0018,
)

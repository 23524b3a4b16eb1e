"""Q8_0: 32 weights, one f16 scale, signed 8-bit codes.

Block: ``d`` f16, ``qs`` 32 signed bytes. Unpacked codes are shifted by 128 to be unsigned.
"""

import numpy as np

from recover._compiled.across import largest_lane
from recover._compiled.float16 import read_f16, write_f16
from recover._compiled.jit import kernel
from recover._compiled.lanes import load, load_bytes, round_away, store_bytes, truncate, where
from recover.quants._declared import coded, layout
from recover.quants._legacy import inverse, write_u16
from recover.quants._marks import Marks, code_mark, marks_of_codes
from recover.quants.base import (
    F32Array,
    FromWeight,
    I8Array,
    Integers,
    ScalarType,
    U8Array,
    U16Array,
    integer_levels,
    table,
)


@kernel
def _unpack(raw: U8Array, codes: U8Array, scale: F32Array, offset: F32Array) -> None:
    """Mirrors `dequantize_row_q8_0`."""
    for b in range(raw.size // 34):
        d = read_f16(raw, 34 * b)
        for g in range(2 * b, 2 * b + 2):
            scale[g] = d
            offset[g] = -0.0
        for i in range(0, 32, 16):
            store_bytes(codes, 32 * b + i, load_bytes(raw, 34 * b + 2 + i) ^ 128)


@kernel
def _quantize(x: F32Array, _imatrix: F32Array, raw: U8Array) -> None:
    """Mirrors `quantize_row_q8_0_ref`; an importance matrix changes nothing."""
    x = x.reshape(x.size)
    for b in range(x.size // 32):
        first, second = load(x, 32 * b), load(x, 32 * b + 16)
        larger = where(abs(second) > abs(first), abs(second), abs(first))
        d = largest_lane(larger) / np.float32(127)
        factor = inverse(d)
        write_f16(raw, 34 * b, d)
        store_bytes(raw, 34 * b + 2, truncate(round_away(first * factor)))
        store_bytes(raw, 34 * b + 18, truncate(round_away(second * factor)))


@kernel
def _pack_integers(integers: I8Array, d: U16Array, _m: U16Array, group: int, raw: U8Array) -> None:
    """Integers from -128 to 127: d = scale, q = integer."""
    stored = integers.view(np.uint8)
    for b in range(integers.size // 32):
        write_u16(raw, 34 * b, d[32 * b // group])
        for i in range(0, 32, 16):
            store_bytes(raw, 34 * b + 2 + i, load_bytes(stored, 32 * b + i))


_MARK = code_mark((1, 255), never=0, positive=True)  # codes count from -128


def _marks(blocks: U8Array) -> Marks:
    """`quantize_row_q8_0_ref`: d = max(abs) / 127."""
    return marks_of_codes(blocks, _unpack, _MARK)


def _cells() -> tuple[F32Array, F32Array]:
    # `quantize_row_q8_0_ref`: d = amax / 127, code = roundf(x / d), d is rounded to f16 last. No
    # weight is beyond 127 d; code -128 is never given, so it proves nothing.
    level = np.arange(-128, 128)
    lower, upper = level - 0.5, level + 0.5
    lower[1], upper[255] = -127, 127
    lower[0], upper[0] = -np.inf, np.inf
    return table(lower), table(upper)


# A scale of up to 2^-25 is rounded to 0 (a tie goes to the even number), after the codes were
# chosen with it: a weight is at most |q| + 1/2 times that. Where 1 / d overflows codes may be any,
# with the wrong sign as well, but weights are below 2^-120. Only the cells of code 0 are as narrow
# as 2^-26, and those of others reach to either side of 0 (see `recover.evidence.edges`).
Q8_0 = ScalarType(
    **layout("Q8_0", type_id=8, block_size=32, type_size=34),
    **coded(integer_levels(first=-128), _cells()),
    rounds_scale_last=True,
    zero_scale_tells=True,
    extremes=((1, 255),),
    unpack=_unpack,
    quantize=_quantize,
    integers=Integers(lowest=-128, highest=127, pack=_pack_integers),
    file_type=7,
    marks=_marks,
    marks_hold_with_imatrix=True,
    cells_need_marks=True,
    from_weight=FromWeight(at=0, divisor=127),
    comes_back=True,
    noise=0.081,
    relative_mse=3e-05,
)

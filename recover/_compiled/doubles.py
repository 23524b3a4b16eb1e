"""Sixteen float64 numbers at once, and rounding them to fewer digits once.

See `recover._compiled.lanes`. A float64 number that is rounded to float32 and that to 16 bits may
end a unit in the last place off. It does not if the float32 number in between is odd wherever it is
not exact: it is then no tie, and lies on the right side of every one (Boldo and Melquiond, "When
double rounding is odd", 2004).
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from recover._compiled.vectors import (
    LANES,
    f32_lanes,
    f64_lanes,
    i32_lanes,
    is_array,
    loading,
    mask_lanes,
    of_vector,
    pointer_to,
    storing,
)

_F32_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_F32_HALF = ir.VectorType(ir.FloatType(), LANES // 2)
_F64_VECTOR = ir.VectorType(ir.DoubleType(), LANES)
_F16_VECTOR = ir.VectorType(ir.HalfType(), LANES)
_I32_VECTOR = ir.VectorType(ir.IntType(32), LANES)
_I16_VECTOR = ir.VectorType(ir.IntType(16), LANES)
_WORD = ir.IntType(LANES)


@of_vector(f32_lanes, f64_lanes)
def to_f64(builder: Any, value: Any) -> Any:
    """A vector of float32 as float64; exact."""
    return builder.fpext(value, _F64_VECTOR)


@of_vector(f64_lanes, f32_lanes)
def nearest_f32(builder: Any, value: Any) -> Any:
    """The nearest float32, ties to even."""
    return builder.fptrunc(value, _F32_VECTOR)


@of_vector(i32_lanes, f32_lanes)
def from_bits(builder: Any, value: Any) -> Any:
    """The float32 with these bits."""
    return builder.bitcast(value, _F32_VECTOR)


@loading(types.float64, _F64_VECTOR, f64_lanes, align=8)
def load_f64(_builder: Any, value: Any) -> Any:
    """``array[at : at + 16]`` of a contiguous float64 array."""
    return value


@storing(types.float64, _F64_VECTOR, f64_lanes, align=8)
def store_f64(_builder: Any, value: Any) -> Any:
    """``array[at : at + 16] = value`` in a contiguous float64 array."""
    return value


@intrinsic
def load_two(_context: Any, array: Any, at: Any, other: Any) -> Any:
    """Eight elements of a contiguous float32 array from `at` on, and eight from `other` on."""
    if not (is_array(array, types.float32) and array.layout == "C"):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        halves = []
        for place, kind in zip(args[1:], sig.args[1:], strict=True):
            at = context.cast(builder, place, kind, types.intp)
            pointer = pointer_to(context, builder, sig.args[0], args[0], at, _F32_HALF)
            halves.append(builder.load(pointer, align=4))
        order = ir.Constant(_I32_VECTOR, list(range(LANES)))
        return builder.shuffle_vector(*halves, order)

    return f32_lanes(array, at, other), generate


@storing(types.uint16, _I16_VECTOR, i32_lanes, align=2)
def store_words(builder: Any, value: Any) -> Any:
    """``array[at : at + 16] = uint16(value)``: the lower half of every lane of integers."""
    return builder.trunc(value, _I16_VECTOR)


@of_vector(f32_lanes, f32_lanes)
def as_f16(builder: Any, value: Any) -> Any:
    """The nearest float16 of float32 numbers, ties to even, as float32."""
    return builder.fpext(builder.fptrunc(value, _F16_VECTOR), _F32_VECTOR)


@of_vector(mask_lanes, types.int64)
def n_true(builder: Any, mask: Any) -> Any:
    """In how many lanes a mask is true."""
    return builder.zext(builder.ctpop(builder.bitcast(mask, _WORD)), ir.IntType(64))

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

from recover._compiled.lanes import (
    LANES,
    f32_lanes,
    f64_lanes,
    i32_lanes,
    is_array,
    mask_lanes,
    pointer_to,
)

_F32_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_F32_HALF = ir.VectorType(ir.FloatType(), LANES // 2)
_F64_VECTOR = ir.VectorType(ir.DoubleType(), LANES)
_F16_VECTOR = ir.VectorType(ir.HalfType(), LANES)
_I32_VECTOR = ir.VectorType(ir.IntType(32), LANES)
_I16_VECTOR = ir.VectorType(ir.IntType(16), LANES)
_WORD = ir.IntType(LANES)


@intrinsic
def to_f64(_context: Any, value: Any) -> Any:
    """A vector of float32 as float64; exact."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fpext(args[0], _F64_VECTOR)

    return f64_lanes(f32_lanes), generate


@intrinsic
def nearest_f32(_context: Any, value: Any) -> Any:
    """The nearest float32, ties to even."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fptrunc(args[0], _F32_VECTOR)

    return f32_lanes(f64_lanes), generate


@intrinsic
def from_bits(_context: Any, value: Any) -> Any:
    """The float32 with these bits."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _F32_VECTOR)

    return f32_lanes(i32_lanes), generate


@intrinsic
def load_f64(_context: Any, array: Any, at: Any) -> Any:
    """``array[at : at + 16]`` of a contiguous float64 array."""
    if not (is_array(array, types.float64) and array.layout == "C"):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = context.cast(builder, args[1], sig.args[1], types.intp)
        pointer = pointer_to(context, builder, sig.args[0], args[0], at, _F64_VECTOR)
        return builder.load(pointer, align=8)

    return f64_lanes(array, at), generate


@intrinsic
def store_f64(_context: Any, array: Any, at: Any, value: Any) -> Any:
    """``array[at : at + 16] = value`` in a contiguous float64 array."""
    if not (is_array(array, types.float64) and array.layout == "C" and value == f64_lanes):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = context.cast(builder, args[1], sig.args[1], types.intp)
        pointer = pointer_to(context, builder, sig.args[0], args[0], at, _F64_VECTOR)
        builder.store(args[2], pointer, align=8)

    return types.void(array, at, value), generate


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


@intrinsic
def store_words(_context: Any, array: Any, at: Any, value: Any) -> Any:
    """``array[at : at + 16] = uint16(value)``: the lower half of every lane of integers."""
    if not (is_array(array, types.uint16) and array.layout == "C" and value == i32_lanes):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = context.cast(builder, args[1], sig.args[1], types.intp)
        pointer = pointer_to(context, builder, sig.args[0], args[0], at, _I16_VECTOR)
        builder.store(builder.trunc(args[2], _I16_VECTOR), pointer, align=2)

    return types.void(array, at, value), generate


@intrinsic
def as_f16(_context: Any, value: Any) -> Any:
    """The nearest float16 of float32 numbers, ties to even, as float32."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fpext(builder.fptrunc(args[0], _F16_VECTOR), _F32_VECTOR)

    return f32_lanes(f32_lanes), generate


@intrinsic
def n_true(_context: Any, mask: Any) -> Any:
    """In how many lanes a mask is true."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        n = builder.ctpop(builder.bitcast(args[0], _WORD))
        return builder.zext(n, ir.IntType(64))

    return types.int64(mask_lanes), generate

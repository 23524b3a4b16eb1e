"""Vectors of sixteen numbers as types of numba's: their operators, and how functions are made.

What kernels call is in `recover._compiled.lanes`, which says what vectors are for.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.codegen import get_host_cpu_features
from numba.core.typing import signature
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 16
HELD = 32 if "+avx512f" in get_host_cpu_features().split(",") else 8
"""Vectors that the registers of the CPU hold: 32 of 512 bits, 16 of 256 or 32 of 128."""

_F32 = ir.FloatType()
_F64 = ir.DoubleType()
_I32 = ir.IntType(32)
_I8 = ir.IntType(8)
_WORD = ir.IntType(LANES)
F32_VECTOR = ir.VectorType(_F32, LANES)
F64_VECTOR = ir.VectorType(_F64, LANES)
I32_VECTOR = ir.VectorType(_I32, LANES)
F16_VECTOR = ir.VectorType(ir.HalfType(), LANES)
I8_VECTOR = ir.VectorType(_I8, LANES)
_MASK_VECTOR = ir.VectorType(ir.IntType(1), LANES)


class _F32Lanes(types.Type):
    pass


class _F64Lanes(types.Type):
    pass


class _I32Lanes(types.Type):
    pass


class _MaskLanes(types.Type):
    pass


f32_lanes = _F32Lanes("f32_lanes")
f64_lanes = _F64Lanes("f64_lanes")
i32_lanes = _I32Lanes("i32_lanes")
mask_lanes = _MaskLanes("mask_lanes")

VECTORS = {
    f32_lanes: F32_VECTOR,
    f64_lanes: F64_VECTOR,
    i32_lanes: I32_VECTOR,
    mask_lanes: _MASK_VECTOR,
}
_SCALARS: dict[types.Type, tuple[type[types.Type], ...]] = {
    f32_lanes: (types.Float,),
    f64_lanes: (types.Float,),
    i32_lanes: (types.Integer,),
    mask_lanes: (),
}


def _register_model(lane_type: Any, vector: ir.VectorType) -> None:
    @register_model(lane_type)
    class _Model(models.PrimitiveModel):  # type: ignore[misc]
        def __init__(self, manager: Any, numba_type: Any) -> None:
            super().__init__(manager, numba_type, vector)


_register_model(_F32Lanes, F32_VECTOR)
_register_model(_F64Lanes, F64_VECTOR)
_register_model(_I32Lanes, I32_VECTOR)
_register_model(_MaskLanes, _MASK_VECTOR)


def mixes_with(lane_type: Any, other: Any) -> bool:
    """Whether `other` is the same kind of vector or a scalar that may stand in all of its lanes."""
    if other == lane_type:
        return True
    if lane_type == f32_lanes:
        return bool(other == types.float32)
    if lane_type == f64_lanes:
        return bool(other == types.float64)
    return lane_type == i32_lanes and isinstance(other, types.Integer)


def in_all_lanes(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    if value.type == vector:
        return value
    if isinstance(value.type, ir.IntType) and value.type != vector.element:
        resize = builder.trunc if value.type.width > vector.element.width else builder.sext
        value = resize(value, vector.element)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    zeros = ir.Constant(I32_VECTOR, [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def _define_binary(
    function: Callable[..., Any],
    lane_type: Any,
    result: Any,
    generate: Callable[[Any, Any, Any], Any],
) -> None:
    """Let kernels apply `function`, an operator, to two vectors or to a vector and a scalar."""

    @type_callable(function)
    def type_function(_context: Any) -> Any:
        def typer(left: Any, right: Any) -> Any:
            if lane_type not in (left, right):
                return None
            if not (mixes_with(lane_type, left) and mixes_with(lane_type, right)):
                return None
            return signature(result, left, right)

        return typer

    def lower(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        left, right = (in_all_lanes(builder, value, VECTORS[lane_type]) for value in args)
        return generate(builder, left, right)

    lower_builtin(function, lane_type, lane_type)(lower)
    for scalar in _SCALARS[lane_type]:
        lower_builtin(function, lane_type, scalar)(lower)
        lower_builtin(function, scalar, lane_type)(lower)


def _define_unary(
    function: Callable[..., Any], lane_type: Any, generate: Callable[[Any, Any], Any]
) -> None:
    @type_callable(function)
    def type_function(_context: Any) -> Any:
        def typer(value: Any) -> Any:
            return signature(lane_type, lane_type) if value == lane_type else None

        return typer

    @lower_builtin(function, lane_type)
    def lower(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return generate(builder, args[0])


def call_llvm(
    builder: Any,
    name: str,
    values: Sequence[Any],
    result: ir.Type = F32_VECTOR,
    flags: tuple[str, ...] = (),
) -> Any:
    """An LLVM intrinsic of float vectors."""
    kind = ir.FunctionType(result, [value.type for value in values])
    full_name = f"{name}.v{LANES}{'f64' if values[0].type == F64_VECTOR else 'f32'}"
    module = builder.module
    function = module.globals.get(full_name) or ir.Function(module, kind, name=full_name)
    return builder.call(function, values, fastmath=flags)


def _method(name: str, *before: str) -> Callable[..., Any]:
    """The instruction that a method of LLVM's builder adds."""

    def generate(builder: Any, *operands: Any) -> Any:
        return getattr(builder, name)(*before, *operands)

    return generate


def magnitude(builder: Any, value: Any) -> Any:
    return call_llvm(builder, "llvm.fabs", [value], value.type)


def _define_operators() -> None:
    for function, name in (
        (operator.add, "fadd"),
        (operator.sub, "fsub"),
        (operator.mul, "fmul"),
        (operator.truediv, "fdiv"),
    ):
        for lane_type in (f32_lanes, f64_lanes):
            _define_binary(function, lane_type, lane_type, _method(name))
    for function, symbol in (
        (operator.lt, "<"),
        (operator.gt, ">"),
        (operator.eq, "=="),
    ):
        for lane_type in (f32_lanes, f64_lanes):
            _define_binary(function, lane_type, mask_lanes, _method("fcmp_ordered", symbol))
        _define_binary(function, i32_lanes, mask_lanes, _method("icmp_signed", symbol))
    for lane_type in (f32_lanes, f64_lanes):
        _define_binary(operator.ne, lane_type, mask_lanes, _method("fcmp_unordered", "!="))
    _define_binary(operator.ne, i32_lanes, mask_lanes, _method("icmp_signed", "!="))
    for function, name in (
        (operator.add, "add"),
        (operator.sub, "sub"),
        (operator.and_, "and_"),
        (operator.or_, "or_"),
        (operator.lshift, "shl"),
        (operator.rshift, "lshr"),
        (operator.xor, "xor"),
    ):
        _define_binary(function, i32_lanes, i32_lanes, _method(name))
    _define_binary(operator.and_, mask_lanes, mask_lanes, _method("and_"))
    _define_binary(operator.or_, mask_lanes, mask_lanes, _method("or_"))
    _define_unary(operator.invert, mask_lanes, _method("not_"))
    _define_unary(operator.neg, f32_lanes, _method("fneg"))
    _define_unary(abs, f32_lanes, magnitude)
    _define_unary(abs, f64_lanes, magnitude)


_define_operators()


def pointer_to(context: Any, builder: Any, array_type: Any, array: Any, at: Any, to: Any) -> Any:
    """Address of element `at` of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), to.as_pointer())


def concatenate(builder: Any, first: Any, second: Any) -> Any:
    """The bits of two masks as one 32-bit integer."""
    low, high = (builder.zext(builder.bitcast(mask, _WORD), _I32) for mask in (first, second))
    return builder.or_(low, builder.shl(high, _I32(LANES)))


def is_array(value: Any, dtype: Any) -> bool:
    """Whether a numba type is that of arrays (n,) of `dtype`."""
    return isinstance(value, types.Array) and value.ndim == 1 and value.dtype == dtype


def of_vector(operand: Any, result: Any) -> Callable[[Callable[[Any, Any], Any]], Any]:
    """Decorate what adds the instructions for a vector: ``function(builder, value)``.

    Kernels call it with an `operand` and get a `result`, types of numba's.
    """

    def define(function: Callable[[Any, Any], Any]) -> Any:
        def typed(_context: Any, value: Any) -> Any:
            if value != operand:
                return None

            def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
                return function(builder, args[0])

            return result(value), generate

        return intrinsic(_named_as(function, typed))

    return define


def loading(
    dtype: Any, stored: ir.VectorType, result: Any, *, align: int
) -> Callable[[Callable[[Any, Any], Any]], Any]:
    """Decorate what makes a vector of sixteen elements of an array: ``function(builder, value)``.

    Kernels call it with a contiguous array of `dtype` and the place of the first element.
    """

    def define(function: Callable[[Any, Any], Any]) -> Any:
        def typed(_context: Any, array: Any, at: Any) -> Any:
            if not (is_array(array, dtype) and array.layout == "C"):
                return None

            def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                place = context.cast(builder, args[1], sig.args[1], types.intp)
                pointer = pointer_to(context, builder, sig.args[0], args[0], place, stored)
                return function(builder, builder.load(pointer, align=align))

            return result(array, at), generate

        return intrinsic(_named_as(function, typed))

    return define


def storing(
    dtype: Any, stored: ir.VectorType, operand: Any, *, align: int
) -> Callable[[Callable[[Any, Any], Any]], Any]:
    """Decorate what makes sixteen elements of a vector `operand`: the opposite of `loading`."""

    def define(function: Callable[[Any, Any], Any]) -> Any:
        def typed(_context: Any, array: Any, at: Any, value: Any) -> Any:
            if not (is_array(array, dtype) and array.layout == "C" and value == operand):
                return None

            def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                place = context.cast(builder, args[1], sig.args[1], types.intp)
                pointer = pointer_to(context, builder, sig.args[0], args[0], place, stored)
                builder.store(function(builder, args[2]), pointer, align=align)

            return types.void(array, at, value), generate

        return intrinsic(_named_as(function, typed))

    return define


def _named_as(function: Callable[..., Any], typed: Callable[..., Any]) -> Callable[..., Any]:
    """The second function with the name and docstring of the first."""
    for name in ("__name__", "__qualname__", "__doc__", "__module__"):
        setattr(typed, name, getattr(function, name))
    return typed

"""Sixteen numbers at once: explicit SIMD for kernels whose float32 arithmetic must keep its order.

A sum over the weights of a sub-block has to be added up one by one, as ggml does, so it cannot be
spread over SIMD lanes; but sixteen sub-blocks can be worked on at once, each in a lane of its own.
Left to itself the compiler does not find that. Here `float32`, `float64`, `int32` and truth values
come in vectors of `LANES` that numba kernels load, compute with and store. LLVM maps one vector to
whatever registers the machine has. Every operation is the IEEE operation on each lane; nothing is
fused or reordered. A scalar next to a vector stands in every lane; only float32 mixes with float32
vectors, so that nothing is promoted to float64 by accident. What else is done with float64 is in
`recover._compiled.doubles`.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing import signature
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 16

_F32 = ir.FloatType()
_F64 = ir.DoubleType()
_I32 = ir.IntType(32)
_I8 = ir.IntType(8)
_WORD = ir.IntType(LANES)
_F32_VECTOR = ir.VectorType(_F32, LANES)
_F64_VECTOR = ir.VectorType(_F64, LANES)
_I32_VECTOR = ir.VectorType(_I32, LANES)
_F16_VECTOR = ir.VectorType(ir.HalfType(), LANES)
_I8_VECTOR = ir.VectorType(_I8, LANES)
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

_VECTORS = {
    f32_lanes: _F32_VECTOR,
    f64_lanes: _F64_VECTOR,
    i32_lanes: _I32_VECTOR,
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


_register_model(_F32Lanes, _F32_VECTOR)
_register_model(_F64Lanes, _F64_VECTOR)
_register_model(_I32Lanes, _I32_VECTOR)
_register_model(_MaskLanes, _MASK_VECTOR)


def _mixes_with(lane_type: Any, other: Any) -> bool:
    """Whether `other` is the same kind of vector or a scalar that may stand in all of its lanes."""
    if other == lane_type:
        return True
    if lane_type == f32_lanes:
        return bool(other == types.float32)
    if lane_type == f64_lanes:
        return bool(other == types.float64)
    return lane_type == i32_lanes and isinstance(other, types.Integer)


def _splat(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    if value.type == vector:
        return value
    if isinstance(value.type, ir.IntType) and value.type != vector.element:
        resize = builder.trunc if value.type.width > vector.element.width else builder.sext
        value = resize(value, vector.element)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    zeros = ir.Constant(_I32_VECTOR, [0] * LANES)
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
            if not (_mixes_with(lane_type, left) and _mixes_with(lane_type, right)):
                return None
            return signature(result, left, right)

        return typer

    def lower(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        left, right = (_splat(builder, value, _VECTORS[lane_type]) for value in args)
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
    result: ir.Type = _F32_VECTOR,
    flags: tuple[str, ...] = (),
) -> Any:
    """An LLVM intrinsic of float vectors."""
    kind = ir.FunctionType(result, [value.type for value in values])
    full_name = f"{name}.v{LANES}{'f64' if values[0].type == _F64_VECTOR else 'f32'}"
    module = builder.module
    function = module.globals.get(full_name) or ir.Function(module, kind, name=full_name)
    return builder.call(function, values, fastmath=flags)


def _method(name: str, *before: str) -> Callable[..., Any]:
    """The instruction that a method of LLVM's builder adds."""

    def generate(builder: Any, *operands: Any) -> Any:
        return getattr(builder, name)(*before, *operands)

    return generate


def _magnitude(builder: Any, value: Any) -> Any:
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
    _define_unary(abs, f32_lanes, _magnitude)
    _define_unary(abs, f64_lanes, _magnitude)


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


@loading(types.float32, _F32_VECTOR, f32_lanes, align=4)
def load(_builder: Any, value: Any) -> Any:
    """``array[at : at + 16]`` of a contiguous float32 array."""
    return value


@storing(types.float32, _F32_VECTOR, f32_lanes, align=4)
def store(_builder: Any, value: Any) -> Any:
    """``array[at : at + 16] = value`` in a contiguous float32 array."""
    return value


@storing(types.uint16, _F16_VECTOR, f32_lanes, align=2)
def store_f16(builder: Any, value: Any) -> Any:
    """``array[at : at + 16] = value`` as the bits of float16 in a contiguous uint16 array."""
    return builder.fptrunc(value, _F16_VECTOR)


@storing(types.uint8, _I8_VECTOR, i32_lanes, align=1)
def store_bytes(builder: Any, value: Any) -> Any:
    """``array[at : at + 16] = uint8(value)``: the low byte of every lane of an integer vector."""
    return builder.trunc(value, _I8_VECTOR)


@loading(types.uint8, _I8_VECTOR, i32_lanes, align=1)
def load_bytes(builder: Any, value: Any) -> Any:
    """``array[at : at + 16]`` of a contiguous uint8 array as an integer vector."""
    return builder.zext(value, _I32_VECTOR)


@intrinsic
def bytes_of_words(_context: Any, low: Any, high: Any) -> Any:
    """The bytes of two uint64, from the lowest on, as an integer vector."""
    if low != types.uint64 or high != types.uint64:
        return None

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        words = ir.Constant(ir.VectorType(ir.IntType(64), 2), ir.Undefined)
        for i, word in enumerate(args):
            words = builder.insert_element(words, word, _I32(i))
        return builder.zext(builder.bitcast(words, _I8_VECTOR), _I32_VECTOR)

    return i32_lanes(low, high), generate


@intrinsic
def load_strided(_context: Any, array: Any, at: Any, stride: Any) -> Any:
    """``array[at : at + 16 * stride : stride]`` of a contiguous float32 array."""
    if not (is_array(array, types.float32) and array.layout == "C"):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = context.cast(builder, args[1], sig.args[1], types.intp)
        stride = context.cast(builder, args[2], sig.args[2], types.intp)
        vector = ir.Constant(_F32_VECTOR, ir.Undefined)
        for lane in range(LANES):
            pointer = pointer_to(context, builder, sig.args[0], args[0], at, _F32)
            vector = builder.insert_element(vector, builder.load(pointer, align=4), _I32(lane))
            at = builder.add(at, stride)
        return vector

    return f32_lanes(array, at, stride), generate


@intrinsic
def spread(_context: Any, array: Any, at: Any) -> Any:
    """A vector with ``array[at]`` of a contiguous float32 array in every lane; `at` is not < 0."""
    if not (is_array(array, types.float32) and array.layout == "C"):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = context.cast(builder, args[1], sig.args[1], types.intp)
        pointer = pointer_to(context, builder, sig.args[0], args[0], place, _F32)
        return _splat(builder, builder.load(pointer, align=4), _F32_VECTOR)

    return f32_lanes(array, at), generate


@intrinsic
def splat(_context: Any, value: Any) -> Any:
    """A vector with the float32 `value` in every lane."""
    if value != types.float32:
        return None

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return _splat(builder, args[0], _F32_VECTOR)

    return f32_lanes(value), generate


@intrinsic
def where(_context: Any, mask: Any, yes: Any, no: Any) -> Any:
    """In every lane `yes` where `mask` is true, otherwise `no`; either may be a scalar."""
    lane_type = i32_lanes if i32_lanes in (yes, no) else f32_lanes
    if mask != mask_lanes or not (_mixes_with(lane_type, yes) and _mixes_with(lane_type, no)):
        return None

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        yes, no = (_splat(builder, value, _VECTORS[lane_type]) for value in args[1:])
        return builder.select(args[0], yes, no)

    return lane_type(mask, yes, no), generate


@intrinsic
def fused(_context: Any, factor: Any, other: Any, summand: Any) -> Any:
    """``factor * other + summand``, rounded once where the CPU can; scalars may be mixed in."""
    operands = (factor, other, summand)
    if f32_lanes not in operands or not all(_mixes_with(f32_lanes, each) for each in operands):
        return None

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        vectors = [_splat(builder, value, _F32_VECTOR) for value in args]
        return call_llvm(builder, "llvm.fmuladd", vectors)

    return f32_lanes(*operands), generate


@intrinsic
def larger(_context: Any, one: Any, other: Any) -> Any:
    """The larger in every lane; neither may be NaN."""
    return _choose("llvm.maxnum", one, other)


@intrinsic
def smaller(_context: Any, one: Any, other: Any) -> Any:
    """The smaller in every lane; neither may be NaN."""
    return _choose("llvm.minnum", one, other)


def _choose(name: str, one: Any, other: Any) -> Any:
    if one != f32_lanes or other != f32_lanes:
        return None

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return call_llvm(builder, name, args, flags=("nnan",))

    return f32_lanes(one, other), generate


@of_vector(f32_lanes, f32_lanes)
def sqrt(builder: Any, value: Any) -> Any:
    """Correctly rounded square roots."""
    return call_llvm(builder, "llvm.sqrt", [value])


@of_vector(f32_lanes, f32_lanes)
def round_away(builder: Any, value: Any) -> Any:
    """C's `roundf`: to the nearest integer, halves away from zero."""
    return call_llvm(builder, "llvm.round", [value])


@of_vector(f32_lanes, i32_lanes)
def truncate(builder: Any, value: Any) -> Any:
    """C's conversion to int32 as x86-64 does it: -2**31 for what does not fit and for NaN."""
    limit = ir.Constant(_F32_VECTOR, [2.0**31] * LANES)
    lowest = ir.Constant(_I32_VECTOR, [-(2**31)] * LANES)
    fits = builder.fcmp_ordered("<", _magnitude(builder, value), limit)
    return builder.select(fits, builder.fptosi(value, _I32_VECTOR), lowest)


@of_vector(i32_lanes, f32_lanes)
def to_f32(builder: Any, value: Any) -> Any:
    """The integers of a vector as float32, rounded to nearest."""
    return builder.sitofp(value, _F32_VECTOR)


@of_vector(f32_lanes, i32_lanes)
def bits(builder: Any, value: Any) -> Any:
    """The bits of a float32 vector as integers."""
    return builder.bitcast(value, _I32_VECTOR)


@intrinsic
def gather(_context: Any, table: Any, index: Any) -> Any:
    """``table[index]`` in every lane, of a contiguous float32 array; indices are not checked."""
    if not (is_array(table, types.float32) and table.layout == "C" and index == i32_lanes):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        vector = ir.Constant(_F32_VECTOR, ir.Undefined)
        for lane in range(LANES):
            at = builder.zext(builder.extract_element(args[1], _I32(lane)), ir.IntType(64))
            value = builder.load(builder.gep(base, [at]))
            vector = builder.insert_element(vector, value, _I32(lane))
        return vector

    return f32_lanes(table, index), generate

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

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from recover._compiled.vectors import (
    F16_VECTOR,
    F32_VECTOR,
    I8_VECTOR,
    I32_VECTOR,
    VECTORS,
    call_llvm,
    f32_lanes,
    i32_lanes,
    in_all_lanes,
    is_array,
    loading,
    magnitude,
    mask_lanes,
    mixes_with,
    of_vector,
    pointer_to,
    storing,
)
from recover._compiled.vectors import (
    HELD as HELD,
)
from recover._compiled.vectors import (
    LANES as LANES,
)

_F32, _I32 = ir.FloatType(), ir.IntType(32)


@loading(types.float32, F32_VECTOR, f32_lanes, align=4)
def load(_builder: Any, value: Any) -> Any:
    """``array[at : at + 16]`` of a contiguous float32 array."""
    return value


@storing(types.float32, F32_VECTOR, f32_lanes, align=4)
def store(_builder: Any, value: Any) -> Any:
    """``array[at : at + 16] = value`` in a contiguous float32 array."""
    return value


@storing(types.uint16, F16_VECTOR, f32_lanes, align=2)
def store_f16(builder: Any, value: Any) -> Any:
    """``array[at : at + 16] = value`` as the bits of float16 in a contiguous uint16 array."""
    return builder.fptrunc(value, F16_VECTOR)


@storing(types.uint8, I8_VECTOR, i32_lanes, align=1)
def store_bytes(builder: Any, value: Any) -> Any:
    """``array[at : at + 16] = uint8(value)``: the low byte of every lane of an integer vector."""
    return builder.trunc(value, I8_VECTOR)


@loading(types.uint8, I8_VECTOR, i32_lanes, align=1)
def load_bytes(builder: Any, value: Any) -> Any:
    """``array[at : at + 16]`` of a contiguous uint8 array as an integer vector."""
    return builder.zext(value, I32_VECTOR)


@intrinsic
def bytes_of_words(_context: Any, low: Any, high: Any) -> Any:
    """The bytes of two uint64, from the lowest on, as an integer vector."""
    if low != types.uint64 or high != types.uint64:
        return None

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        words = ir.Constant(ir.VectorType(ir.IntType(64), 2), ir.Undefined)
        for i, word in enumerate(args):
            words = builder.insert_element(words, word, _I32(i))
        return builder.zext(builder.bitcast(words, I8_VECTOR), I32_VECTOR)

    return i32_lanes(low, high), generate


@intrinsic
def load_strided(_context: Any, array: Any, at: Any, stride: Any) -> Any:
    """``array[at : at + 16 * stride : stride]`` of a contiguous float32 array."""
    if not (is_array(array, types.float32) and array.layout == "C"):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = context.cast(builder, args[1], sig.args[1], types.intp)
        stride = context.cast(builder, args[2], sig.args[2], types.intp)
        vector = ir.Constant(F32_VECTOR, ir.Undefined)
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
        return in_all_lanes(builder, builder.load(pointer, align=4), F32_VECTOR)

    return f32_lanes(array, at), generate


@intrinsic
def splat(_context: Any, value: Any) -> Any:
    """A vector with the float32 `value` in every lane."""
    if value != types.float32:
        return None

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return in_all_lanes(builder, args[0], F32_VECTOR)

    return f32_lanes(value), generate


@intrinsic
def where(_context: Any, mask: Any, yes: Any, no: Any) -> Any:
    """In every lane `yes` where `mask` is true, otherwise `no`; either may be a scalar."""
    lane_type = i32_lanes if i32_lanes in (yes, no) else f32_lanes
    if mask != mask_lanes or not (mixes_with(lane_type, yes) and mixes_with(lane_type, no)):
        return None

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        yes, no = (in_all_lanes(builder, value, VECTORS[lane_type]) for value in args[1:])
        return builder.select(args[0], yes, no)

    return lane_type(mask, yes, no), generate


@intrinsic
def fused(_context: Any, factor: Any, other: Any, summand: Any) -> Any:
    """``factor * other + summand``, rounded once where the CPU can; scalars may be mixed in."""
    operands = (factor, other, summand)
    if f32_lanes not in operands or not all(mixes_with(f32_lanes, each) for each in operands):
        return None

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        vectors = [in_all_lanes(builder, value, F32_VECTOR) for value in args]
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
    limit = ir.Constant(F32_VECTOR, [2.0**31] * LANES)
    lowest = ir.Constant(I32_VECTOR, [-(2**31)] * LANES)
    fits = builder.fcmp_ordered("<", magnitude(builder, value), limit)
    return builder.select(fits, builder.fptosi(value, I32_VECTOR), lowest)


@of_vector(i32_lanes, f32_lanes)
def to_f32(builder: Any, value: Any) -> Any:
    """The integers of a vector as float32, rounded to nearest."""
    return builder.sitofp(value, F32_VECTOR)


@of_vector(f32_lanes, i32_lanes)
def bits(builder: Any, value: Any) -> Any:
    """The bits of a float32 vector as integers."""
    return builder.bitcast(value, I32_VECTOR)


@intrinsic
def gather(_context: Any, table: Any, index: Any) -> Any:
    """``table[index]`` in every lane, of a contiguous float32 array; indices are not checked."""
    if not (is_array(table, types.float32) and table.layout == "C" and index == i32_lanes):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        vector = ir.Constant(F32_VECTOR, ir.Undefined)
        for lane in range(LANES):
            at = builder.zext(builder.extract_element(args[1], _I32(lane)), ir.IntType(64))
            value = builder.load(builder.gep(base, [at]))
            vector = builder.insert_element(vector, value, _I32(lane))
        return vector

    return f32_lanes(table, index), generate

"""One number of all lanes of a vector: sums, the largest, and which are true.

See `recover._compiled.lanes`.
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from recover._compiled.vectors import (
    F32_VECTOR,
    I32_VECTOR,
    LANES,
    call_llvm,
    concatenate,
    f32_lanes,
    f64_lanes,
    is_array,
    mask_lanes,
    pointer_to,
)

_F32, _I32, _WORD = ir.FloatType(), ir.IntType(32), ir.IntType(LANES)


@intrinsic
def any_lane(_context: Any, mask: Any) -> Any:
    """Whether the mask is true in any lane."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = builder.bitcast(args[0], _WORD)
        return builder.icmp_unsigned("!=", word, _WORD(0))

    return types.boolean(mask_lanes), generate


@intrinsic
def mask_bits(_context: Any, first: Any, second: Any) -> Any:
    """Two masks as one unsigned integer: lane k is bit k of the first, bit 16 + k of the second."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return concatenate(builder, args[0], args[1])

    return types.uint32(mask_lanes, mask_lanes), generate


@intrinsic
def first_lane(_context: Any, first: Any, second: Any) -> Any:
    """The number of the first true lane of two masks, of which at least one is true."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = concatenate(builder, args[0], args[1])
        return builder.zext(builder.cttz(word, ir.IntType(1)(1)), ir.IntType(64))

    return types.int64(mask_lanes, mask_lanes), generate


@intrinsic
def largest_lane(_context: Any, value: Any) -> Any:
    """The largest of the lanes, none of which is NaN."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return call_llvm(builder, "llvm.vector.reduce.fmax", args, _F32, ("nnan",))

    return types.float32(f32_lanes), generate


@intrinsic
def add_up(_context: Any, value: Any) -> Any:
    """The sum of the lanes, added up one by one."""
    if value != f32_lanes:
        return None

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        total = builder.extract_element(args[0], _I32(0))
        for lane in range(1, LANES):
            total = builder.fadd(total, builder.extract_element(args[0], _I32(lane)))
        return total

    return types.float32(value), generate


@intrinsic
def sum_lanes(_context: Any, value: Any) -> Any:
    """The sum of the lanes, added up in pairs: faster than `add_up`, and no order of ggml's."""
    if value not in (f32_lanes, f64_lanes):
        return None
    number = types.float32 if value == f32_lanes else types.float64

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        total, n = args[0], LANES
        while n > 1:
            n //= 2
            unused = ir.Constant(total.type, ir.Undefined)
            halves = [
                builder.shuffle_vector(
                    total, unused, ir.Constant(ir.VectorType(_I32, n), list(range(at, at + n)))
                )
                for at in (0, n)
            ]
            total = builder.fadd(*halves)
        return builder.extract_element(total, _I32(0))

    return number(value), generate


@intrinsic
def sum_rows(_context: Any, array: Any, at: Any) -> Any:
    """In lane k the sum of ``array[at + 16 * k : at + 16 * (k + 1)]``, added up in pairs."""
    if not (is_array(array, types.float32) and array.layout == "C"):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place, rows = context.cast(builder, args[1], sig.args[1], types.intp), []
        for row in range(LANES):
            begin = builder.add(place, place.type(LANES * row))
            pointer = pointer_to(context, builder, sig.args[0], args[0], begin, F32_VECTOR)
            rows.append(builder.load(pointer, align=4))
        while (n := len(rows) // 2) > 0:  # a vector has sums of 2 * n lanes of LANES / (2 * n) rows
            chunks = range(0, LANES, 2 * n)
            low = [side + c + i for c in chunks for side in (0, LANES) for i in range(n)]
            orders = [ir.Constant(I32_VECTOR, [at + more for at in low]) for more in (0, n)]
            rows = [
                builder.fadd(*(builder.shuffle_vector(one, other, order) for order in orders))
                for one, other in zip(rows[:n], rows[n:], strict=True)
            ]
        return rows[0]

    return f32_lanes(array, at), generate

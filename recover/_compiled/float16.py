"""Conversions between float32 and the 16-bit formats, as single machine operations where possible.

numba has no float16 on the CPU, but LLVM has: the two half-precision intrinsics below become
`vcvtph2ps`/`vcvtps2ph` on x86-64 and `fcvt` on arm64, and are vectorised inside loops.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from recover._compiled.jit import inner, kernel
from recover._compiled.vectors import is_array, pointer_to


@intrinsic
def f16_to_f32(_context: Any, _bits: Any) -> Any:
    """`float32(float16 with these bits)`; exact."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def f32_to_f16(_context: Any, _value: Any) -> Any:
    """Bits of the float16 nearest to a float32, ties to even; too large becomes infinity."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
def f32_bits(_context: Any, _value: Any) -> Any:
    """Bits of a float32 as uint32."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def f32_from_bits(_context: Any, _bits: Any) -> Any:
    """The float32 with these uint32 bits."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@inner
def f32_to_bf16(value: np.float32) -> np.uint16:
    """Bits of the bfloat16 nearest to a float32, ties to even; NaN stays a (quiet) NaN.

    Mirrors `ggml_compute_fp32_to_bf16`.
    """
    bits = f32_bits(value)
    if (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        return np.uint16((bits >> np.uint32(16)) | np.uint32(64))
    rounding = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(np.uint32(bits + rounding) >> np.uint32(16))


@intrinsic
def read_f16(_context: Any, raw: Any, at: Any) -> Any:
    """The little-endian float16 at byte `at` of a contiguous uint8 array, as float32."""
    if not (is_array(raw, types.uint8) and raw.layout == "C"):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = context.cast(builder, args[1], sig.args[1], types.intp)
        pointer = pointer_to(context, builder, sig.args[0], args[0], at, ir.HalfType())
        return builder.fpext(builder.load(pointer, align=1), ir.FloatType())

    return types.float32(raw, at), generate


@intrinsic
def write_f16(_context: Any, raw: Any, at: Any, value: Any) -> Any:
    """Store the float16 nearest to a float32 at byte `at` of a contiguous uint8 array."""
    is_bytes = is_array(raw, types.uint8) and raw.layout == "C"
    if not (is_bytes and raw.mutable and value == types.float32):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = context.cast(builder, args[1], sig.args[1], types.intp)
        pointer = pointer_to(context, builder, sig.args[0], args[0], at, ir.HalfType())
        builder.store(builder.fptrunc(args[2], ir.HalfType()), pointer, align=1)

    return types.void(raw, at, value), generate


@kernel
def all_finite(values: np.ndarray) -> bool:
    """Whether no float32 of an array is infinite or NaN."""
    n_bad = 0
    for i in range(values.size):
        n_bad += (f32_bits(values[i]) & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    return n_bad == 0

"""The kernels of `recover.inputs.originals.requantized`: one group of a naive Q8_0 at a time.

The naive path takes integer codes c and a scale S to floats ``T[c] = chain(c * S)`` and encodes
these as Q8_0: per 32 weights, with k the largest code among them, ``d = f16(T[k] / 127)`` and
``q = roundf(T[c] * (1 / (T[k] / 127)))``.
"""

from math import ceil, floor, frexp
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.float16 import f16_to_f32, f32_from_bits, f32_to_bf16, f32_to_f16, read_f16
from recover._compiled.jit import inlined, inner, kernel
from recover.quants.base import F32Array, U8Array

MAX_CODE = 128
"""The largest magnitude of a code."""

F32, F16, BF16 = range(3)
"""Chains: what the products are rounded to before they are encoded."""

_TYPE_SIZE = 34
_SLACK = 1e-6


class Group(NamedTuple):
    """What was found of one group."""

    scale: float
    """A BF16 number, 0 for zeros, -1 if there is none."""
    n_unproven: int
    """Weights that another code would explain as well."""


class Tables(NamedTuple):
    """Memory of one thread."""

    floats: F32Array
    """(MAX_CODE + 1,) the chain's result for each code."""
    first: NDArray[np.int64]
    """(128,) the smallest code that is encoded as each q, in the block at hand; -1 if none is."""
    last: NDArray[np.int64]
    """(128,) the largest such code."""


def tables() -> Tables:
    """New memory for a thread."""
    first, last = np.empty((2, 128), np.int64)
    return Tables(np.empty(MAX_CODE + 1, np.float32), first, last)


@inlined
def through(product: float, chain: int) -> np.float32:
    """A product of a code and a BF16 scale as the chain rounds it."""
    value = np.float32(product)
    if chain == F16:
        return f16_to_f32(f32_to_f16(value))
    if chain == BF16:
        return f32_from_bits(np.uint32(f32_to_bf16(value)) << np.uint32(16))
    return value


@inlined
def _stored_scale(largest: np.float32) -> np.float32:
    """The scale that Q8_0 stores for a block with that largest magnitude."""
    return f16_to_f32(f32_to_f16(largest / np.float32(127)))


@inner
def _f16_bounds(d: float) -> tuple[float, float]:
    """The interval that is rounded to a positive F16 number, a little widened."""
    step = 2.0 ** max(frexp(d)[1] - 11, -24)
    return (d - step / 2) * (1 - _SLACK), (d + step / 2) * (1 + _SLACK)


@inlined
def _code_range(d: float, scale: float, chain: int) -> tuple[int, int]:
    """Largest codes that a block with this stored scale may have."""
    low, high = _f16_bounds(d)
    rounding = 2.0**-8 if chain == BF16 else 2.0**-11
    first = ceil(127 * low / scale * (1 - rounding) - 0.01)
    last = floor(127 * high / scale * (1 + rounding) + 0.01)
    return max(first, 1), min(last, MAX_CODE)


@inner
def _invert(k: int, found: Tables) -> None:
    """Which codes are encoded as each q, in a block whose largest code is k."""
    factor = np.float32(1) / (found.floats[k] / np.float32(127))
    found.first[:] = -1
    for code in range(k + 1):
        value = found.floats[code] * factor
        q = floor(value)
        q += value - np.float32(q) >= np.float32(0.5)  # roundf
        if found.first[q] < 0:
            found.first[q] = code
        found.last[q] = code


@inner
def _read_block(block: U8Array, k: int, found: Tables, codes: NDArray[np.int16]) -> int:
    """The codes of a block whose largest code is k; how many are not proven, -1 if one has none."""
    _invert(k, found)
    n_unproven, n_largest = 0, 0
    for i in range(32):
        signed = np.int64(np.int8(block[2 + i]))
        q = abs(signed)
        if found.first[q] < 0:
            return -1
        n_largest += q == 127
        n_unproven += q != 127 and found.first[q] != found.last[q]
        # Of several codes the smaller is a little more likely, but one weight has the largest.
        code = k if q == 127 else found.first[q]
        codes[i] = code if signed >= 0 else -code
    # One weight at least has the largest code.
    if n_largest > 1 and found.first[127] != found.last[127]:
        n_unproven += n_largest
    return n_unproven if n_largest else -1


@inner
def _read_blocks(
    raw: U8Array, scale: float, chain: int, found: Tables, codes: NDArray[np.int16]
) -> int:
    """The codes of a group for a scale; how many are not proven, -1 if the scale does not fit."""
    for code in range(MAX_CODE + 1):
        found.floats[code] = through(code * scale, chain)
    total = 0
    for b in range(raw.size // _TYPE_SIZE):
        block, of_block = raw[b * _TYPE_SIZE : (b + 1) * _TYPE_SIZE], codes[32 * b : 32 * b + 32]
        d = np.float64(read_f16(block, 0))
        if d == 0:
            of_block[:] = 0
            continue
        first, last = _code_range(d, scale, chain)
        n_unproven = -1
        for k in range(first, last + 1):
            if _stored_scale(found.floats[k]) != d:
                continue
            if n_unproven >= 0:
                n_unproven = 32  # two largest codes are possible
                break
            n_unproven = _read_block(block, k, found, of_block)
        if n_unproven < 0:
            return -1
        total += n_unproven
    return total


@inner
def _fits_scales(raw: U8Array, scale: float, chain: int) -> bool:
    """Whether every block's stored scale can come from a code times this scale."""
    for b in range(raw.size // _TYPE_SIZE):
        d = np.float64(read_f16(raw, b * _TYPE_SIZE))
        if d == 0:
            continue
        k, last = _code_range(d, scale, chain)
        while k <= last and _stored_scale(through(k * scale, chain)) != d:
            k += 1
        if k > last:
            return False
    return True


@inner
def read_group(
    raw: U8Array,
    chain: int,
    max_code: int,
    shift: float,
    found: Tables,
    codes: NDArray[np.int16],
) -> Group:
    """The coarsest BF16 scale that explains every byte of a group, and the codes.

    raw (n_blocks * 34,), codes (n_blocks * 32,); max_code limits the largest code of the group. A
    shift other than 0 takes, instead of the BF16 numbers, those so many of their steps above.
    """
    largest = 0.0
    for b in range(raw.size // _TYPE_SIZE):
        largest = max(largest, np.float64(read_f16(raw, b * _TYPE_SIZE)))
    if largest == 0:
        codes[:] = 0
        return Group(0.0, 0)
    low, high = _f16_bounds(largest)
    rounding = 2.0**-8 if chain == BF16 else 2.0**-11
    for k in range(1, max_code + 1):
        bound = 127 * high / k * (1 + rounding)
        scale = 127 * low / k * (1 - rounding)
        step = 2.0 ** (frexp(scale)[1] - 8)
        scale = (ceil(scale / step - shift) + shift) * step
        while scale <= bound:
            if _stored_scale(through(k * scale, chain)) == largest and _fits_scales(
                raw, scale, chain
            ):
                n_unproven = _read_blocks(raw, scale, chain, found, codes)
                if n_unproven >= 0:
                    return Group(scale, n_unproven)
            scale += step
    return Group(-1.0, 0)


@kernel
def is_naive(raw: U8Array) -> bool:
    """Whether every block has the marks of the naive encoder.

    The largest code of a block is 127 in magnitude, none is -128, its scale is not negative and not
    infinite; a block with the scale 0 holds nothing else.
    """
    for start in range(0, raw.size, _TYPE_SIZE):
        largest, lowest = np.int64(0), np.int64(0)
        for i in range(start + 2, start + _TYPE_SIZE):
            q = np.int64(np.int8(raw[i]))
            largest, lowest = max(largest, abs(q)), min(lowest, q)
        d = read_f16(raw, start)
        if not 0 <= d < np.inf or lowest < -127 or largest != (127 if d > 0 else 0):
            return False
    return True


@kernel
def read_groups(
    raw: U8Array,
    chain: int,
    max_code: int,
    shift: float,
    found: Tables,
    codes: NDArray[np.int16],
    scales: NDArray[np.float64],
) -> int:
    """Scales and codes of consecutive groups; how many codes are not proven.

    Stops at the first group that has no scale, and returns -1.
    """
    n_bytes, length = raw.size // scales.size, codes.size // scales.size
    total = 0
    for g in range(scales.size):
        part = codes[g * length : (g + 1) * length]
        group = read_group(
            raw[g * n_bytes : (g + 1) * n_bytes], chain, max_code, shift, found, part
        )
        if group.scale < 0:
            return -1
        scales[g] = group.scale
        total += group.n_unproven
    return total

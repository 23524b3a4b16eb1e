"""The cells of float types: which originals are rounded to a stored number."""

import numpy as np
from numpy.typing import NDArray

from recover._compiled.float16 import f16_to_f32, f32_from_bits
from recover._compiled.jit import inner, kernel
from recover.quants.base import F32Array

Bounds = tuple[F32Array, F32Array]

_SMALLEST_NORMAL = np.float32(2.0**-126)
_INFINITY = np.float32(np.inf)


@kernel
def narrow_exact(values: F32Array, lower: F32Array, upper: F32Array) -> None:
    """Intersect bounds with the points that F32 numbers are."""
    for i in range(values.size):
        lower[i] = max(lower[i], values[i]) if not np.isnan(values[i]) else lower[i]
        upper[i] = min(upper[i], values[i]) if not np.isnan(values[i]) else upper[i]


@inner
def _narrow(low: np.float32, high: np.float32, negative: bool, at: int, bounds: Bounds) -> None:
    """Intersect bounds number `at` with an interval, mirrored for a negative number."""
    lower, upper = bounds
    lower[at] = max(lower[at], -high if negative else low)
    upper[at] = min(upper[at], -low if negative else high)


@kernel
def narrow_f16(words: NDArray[np.uint16], lower: F32Array, upper: F32Array) -> None:
    """Intersect bounds with the numbers that are rounded to these: half-way to both neighbours."""
    half = np.float32(0.5)
    for i in range(words.size):
        magnitude = words[i] & np.uint16(0x7FFF)
        if magnitude > np.uint16(0x7C00):
            continue
        value = f16_to_f32(magnitude)
        low, high = -np.float32(2.0**-25), _INFINITY
        if magnitude > 0:
            below = f16_to_f32(np.uint16(magnitude - np.uint16(1)))
            low = (below + value) * half if magnitude < 0x7C00 else np.float32(65520)
        if magnitude < 0x7BFF:
            high = (value + f16_to_f32(np.uint16(magnitude + np.uint16(1)))) * half
        elif magnitude == 0x7BFF:
            high = np.float32(65520)
        _narrow(low, high, words[i] != magnitude, i, (lower, upper))


@kernel
def narrow_bf16(words: NDArray[np.uint16], lower: F32Array, upper: F32Array) -> None:
    """As `narrow_f16`; some encoders make subnormal numbers 0, so that these prove little."""
    half = np.uint32(0x8000)
    for i in range(words.size):
        magnitude = np.uint32(words[i] & np.uint16(0x7FFF)) << np.uint32(16)
        if magnitude > np.uint32(0x7F800000):
            continue
        low, high = -_SMALLEST_NORMAL, _SMALLEST_NORMAL
        if magnitude >= np.uint32(0x00800000):
            low = f32_from_bits(np.uint32(magnitude - half))
            high = _INFINITY
            if magnitude < np.uint32(0x7F800000):
                high = f32_from_bits(np.uint32(magnitude + half))
        _narrow(low, high, words[i] >= np.uint16(0x8000), i, (lower, upper))

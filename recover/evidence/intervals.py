"""The interval that each weight of the original lies in, from quantized and float inputs together.

Quantized inputs give the cells of `recover.evidence.cells`, or state intervals themselves. An F16
or BF16 number gives the interval of the numbers that are rounded to it, an F32 number is exact.
Types that confine no single weight give nothing. A NaN proves nothing, either.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from recover._compiled.float16 import f16_to_f32, f32_from_bits
from recover._compiled.jit import inner, kernel
from recover.containers.gguf.reader import Tensor
from recover.evidence.buffer import Evidence, EvidenceBuffer, Witness
from recover.evidence.cells import intersect_cells
from recover.quants import TILE, F32Array, FloatType, IntervalTensor, IntervalType, ScalarType

Bounds = tuple[F32Array, F32Array]

PART = 262_144
"""Weights whose evidence stays in a core's own cache."""


_SMALLEST_NORMAL = np.float32(2.0**-126)
_INFINITY = np.float32(np.inf)


class Intervals:
    """Bounds of one tensor's weights, part by part; memory for one thread, used again and again."""

    def __init__(self) -> None:
        self._lower, self._upper = np.empty((2, TILE), np.float32)
        self._witnesses: list[Witness] = []
        self._buffer = EvidenceBuffer([])
        self._confining: list[Tensor | IntervalTensor] = []
        self._floats: list[Tensor] = []

    def turn_to(self, sources: Sequence[Tensor | IntervalTensor]) -> None:
        """Look at a tensor from now on; `sources` are those inputs that confine its weights."""
        kinds = ScalarType, IntervalType
        self._confining = [each for each in sources if isinstance(each.type, kinds)]
        self._floats = [cast(Tensor, each) for each in sources if isinstance(each.type, FloatType)]
        witnesses = [Witness(each.type) for each in self._confining]
        if witnesses != self._witnesses:
            self._buffer, self._witnesses = EvidenceBuffer(witnesses), witnesses

    def bound(self, start: int, end: int) -> tuple[F32Array, F32Array]:
        """Bounds (n,) of weights `start` to `end`, at most `TILE` of them and whole blocks.

        Where the inputs contradict each other, the lower one is greater. The arrays are valid until
        the next call.
        """
        lower, upper = self._lower[: end - start], self._upper[: end - start]
        for first in range(start, end, PART):
            last = min(first + PART, end)
            part = slice(first - start, last - start)
            self._intersect(first, last, lower[part], upper[part])
        return lower, upper

    def evidence(self, start: int, end: int) -> Evidence | None:
        """The evidence alone, if the sources are all quantized; see `bound`."""
        if self._floats or not self._confining:
            return None
        return self._buffer.read(self._confining, start, end)

    def _intersect(self, start: int, end: int, lower: F32Array, upper: F32Array) -> None:
        if self._confining:
            intersect_cells(self._buffer.read(self._confining, start, end), lower, upper)
        else:
            lower[:] = -np.inf
            upper[:] = np.inf
        for tensor in self._floats:
            raw = tensor.part(start, end)
            match tensor.type.name:
                case "F32":
                    _narrow_exact(raw.view(np.float32), lower, upper)
                case "F16":
                    _narrow_f16(raw.view(np.uint16), lower, upper)
                case "BF16":
                    _narrow_bf16(raw.view(np.uint16), lower, upper)


@kernel
def _narrow_exact(values: F32Array, lower: F32Array, upper: F32Array) -> None:
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
def _narrow_f16(words: NDArray[np.uint16], lower: F32Array, upper: F32Array) -> None:
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
def _narrow_bf16(words: NDArray[np.uint16], lower: F32Array, upper: F32Array) -> None:
    """As `_narrow_f16`; some encoders make subnormal numbers 0, so that these prove little."""
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

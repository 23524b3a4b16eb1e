"""The interval that each weight of the original lies in, from quantized and float inputs together.

Quantized inputs give the cells of `recover.evidence.cells`, or state intervals themselves. An F16
or BF16 number gives the interval of the numbers that are rounded to it, an F32 number is exact.
Ternary types give those of their digits. Types that confine no single weight give nothing. A NaN
proves nothing, either.
"""

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from recover.containers.model import StoredTensor
from recover.evidence.buffer import Evidence, EvidenceBuffer, Source
from recover.evidence.cells import intersect_cells
from recover.quants import (
    TILE,
    F32Array,
    FloatType,
    IntervalTensor,
    IntervalType,
    ScalarType,
    VectorType,
)

Bounds = tuple[F32Array, F32Array]

PART = 262_144
"""Weights whose evidence stays in a core's own cache."""


class Intervals:
    """Bounds of one tensor's weights, part by part; memory for one thread, used again and again.

    Parameters
    ----------
    look : callable, optional
        Is given the evidence of each part that is bounded.
    """

    def __init__(self, look: Callable[[Evidence], None] | None = None) -> None:
        self._look = look
        self._lower, self._upper = np.empty((2, TILE), np.float32)
        self._sources: list[Source] = []
        self._buffer = EvidenceBuffer([])
        self._confining: list[StoredTensor | IntervalTensor] = []
        self._floats: list[StoredTensor] = []
        self._decoded: list[StoredTensor] = []

    def look_at(self, tensors: Sequence[StoredTensor | IntervalTensor]) -> None:
        """Look at a tensor from now on; `tensors` are those inputs that confine its weights."""
        kinds = ScalarType, IntervalType
        self._confining = [each for each in tensors if isinstance(each.type, kinds)]
        self._floats = [
            cast(StoredTensor, each) for each in tensors if isinstance(each.type, FloatType)
        ]
        self._decoded = [
            cast(StoredTensor, each) for each in tensors if isinstance(each.type, VectorType)
        ]
        # Files do not always say that an importance matrix was used; where it was, sub-blocks with
        # a scale of 0 prove nothing.
        sources = [
            Source(each.type, weighted=isinstance(each.type, ScalarType))
            for each in self._confining
        ]
        if sources != self._sources:
            self._buffer, self._sources = EvidenceBuffer(sources, proven=True), sources

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
        if self._floats or self._decoded or not self._confining:
            return None
        return self._buffer.read(self._confining, start, end)

    def _intersect(self, start: int, end: int, lower: F32Array, upper: F32Array) -> None:
        if self._confining:
            evidence = self._buffer.read(self._confining, start, end)
            intersect_cells(evidence, lower, upper)
            if self._look is not None:
                self._look(evidence)
        else:
            lower[:] = -np.inf
            upper[:] = np.inf
        for tensor in self._floats:
            assert isinstance(tensor.type, FloatType)
            if tensor.type.narrow is not None:
                tensor.type.narrow(tensor.part(start, end), lower, upper)
        for tensor in self._decoded:
            assert isinstance(tensor.type, VectorType)
            if tensor.type.narrow is not None:
                tensor.type.narrow(tensor.read(start, end), lower, upper)

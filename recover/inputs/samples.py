"""Runs of weights of a tensor, as one input tells them: what is looked at to compare inputs."""

from functools import cached_property
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from recover.containers.model import StoredTensor
from recover.evidence.intervals import Bounds, Intervals
from recover.inputs.matching import typical_error
from recover.quants import (
    F32Array,
    FloatType,
    IntervalTensor,
    IntervalType,
    Stated,
    TensorType,
    U8Array,
)

RUN = 4096
"""Weights of a run: whole superblocks."""

_LARGEST = np.float32(1e15)


def runs(n_weights: int, n_runs: int) -> list[tuple[int, int]]:
    """First and last weight of evenly spaced runs; all weights if they are few."""
    if n_weights <= n_runs * RUN:
        return [(start, min(start + RUN, n_weights)) for start in range(0, n_weights, RUN)]
    starts = np.linspace(0, n_weights - RUN, n_runs).astype(int) // 256 * 256
    return [(int(start), int(start) + RUN) for start in starts]


class Sample:
    """Some weights of a tensor: what they decode to, and their bounds.

    Parameters
    ----------
    tensor : StoredTensor
        Of any type that can be decoded.
    confines : bool
        Whether its numbers or codes prove bounds.
    start, end : int
        Which weights, whole blocks.
    intervals : Intervals
        Memory for the bounds.

    Attributes
    ----------
    type : TensorType
        How they are stored.
    raw : uint8 (n_bytes,)
        The stored bytes.
    values : float32 (n,)
        The decoded weights; 0 where a broken scale says nothing.
    lower, upper : float32 (n,)
        Bounds; infinite where nothing is proven.
    told : mapping of Sample to bool (n,)
        See `recover.inputs.told.telling`, which keeps what it found here.
    """

    def __init__(
        self, tensor: StoredTensor, confines: bool, start: int, end: int, intervals: Intervals
    ) -> None:
        self.type: TensorType = tensor.type
        self.told = WeakKeyDictionary[Sample, NDArray[np.bool_]]()
        self._tensor, self._start = tensor, start
        self.raw: U8Array = tensor.part(start, end)
        self.values: F32Array = tensor.read(start, end)
        intervals.look_at([tensor] if confines else [])
        lower, upper = intervals.bound(start, end)
        self.lower, self.upper = lower.copy(), upper.copy()
        broken = ~(np.abs(self.values) < _LARGEST)
        if broken.any():
            self.values[broken], self.lower[broken], self.upper[broken] = 0, -np.inf, np.inf

    def part(self, start: int, end: int) -> "Sample":
        """Some of the weights, whole blocks."""
        some = object.__new__(Sample)
        some.type, some.told = self.type, WeakKeyDictionary()
        some._tensor, some._start = self._tensor, self._start + start
        some.raw = self.raw[self.type.n_bytes(start) : self.type.n_bytes(end)]
        some.values = self.values[start:end]
        some.lower, some.upper = self.lower[start:end], self.upper[start:end]
        return some

    @property
    def bounds(self) -> Bounds:
        """Lower and upper bounds."""
        return self.lower, self.upper

    @property
    def is_float(self) -> bool:
        """Whether the weights are stored as numbers."""
        return isinstance(self.type, FloatType)

    @cached_property
    def width(self) -> F32Array:
        """Of the bounds, (n,); infinite where one of them is."""
        return np.where(self.upper < np.inf, self.upper - self.lower, np.float32(np.inf))

    @cached_property
    def spread(self) -> F32Array:
        """How wide the errors of the values are, (n,).

        Cells of an encoder that only seldom goes to their ends are wider than that: it is the width
        of the uniform distribution with the variance that the type states, if it states any. Where
        a bound is missing it is that of the error which is typical of the type.
        """
        typical = np.float32(np.sqrt(12 * self.noise))
        width = np.where(np.isfinite(self.width), self.width, typical)
        if not isinstance(self.type, IntervalType):
            return width
        stated = Stated(*np.empty((4, width.size), np.float32))
        tensor = cast(IntervalTensor, self._tensor)
        tensor.intervals(self._start, self._start + width.size, stated)
        return np.fmin(width, np.sqrt(12 * stated.variance))

    @cached_property
    def noise(self) -> float:
        """The mean square error that is typical of the type."""
        return typical_error(self.type) * float(np.mean(np.square(self.values, dtype=np.float64)))


class Sampler:
    """Reads samples of the tensors of several inputs, with memory for each input."""

    def __init__(self) -> None:
        self._intervals: dict[int, Intervals] = {}

    def read(
        self, number: int, tensor: StoredTensor, confines: bool, start: int, end: int
    ) -> Sample:
        """Weights `start` to `end` of a tensor of input `number`."""
        if number not in self._intervals:
            self._intervals[number] = Intervals()
        return Sample(tensor, confines, start, end, self._intervals[number])


TIES_AWAY = "BF16, ties away from zero"


def rounded(values: F32Array, name: str) -> NDArray[np.float32]:
    """Numbers rounded to the float type of that name; as they are if it is empty.

    Ties go to even, but for `TIES_AWAY`, as some converters round to BF16.
    """
    if name == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if name in ("BF16", TIES_AWAY):
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        half = np.uint32(0x7FFF) + odd if name == "BF16" else np.uint32(0x8000)
        nearest = (bits + half) & np.uint32(0xFFFF0000)
        return np.where(np.isnan(values), values, nearest.view(np.float32))
    return values

"""Tensors that are made of others' weights: part of one, several stacked, another shape."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from recover.containers.forwarding import Forwarded
from recover.containers.model import BlockTensor, StoredTensor
from recover.quants import F32Array, Stated, U8Array


class Span(NamedTuple):
    """Weights of a tensor that follow each other."""

    tensor: StoredTensor
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class View(BlockTensor):
    """Weights of other tensors of one type, one behind the other."""

    name: str
    """Name of the tensor."""
    dims: tuple[int, ...]
    """Row length first."""
    spans: tuple[Span, ...]
    """Where the weights are; whole rows of tensors without side scales, or one whole tensor."""

    type = Forwarded("_first")
    stored_type = Forwarded("_first")
    scales = Forwarded("_first")
    side_tensors = Forwarded("_first")
    is_original = Forwarded("_first")

    @property
    def n_bytes(self) -> int:
        """Number of stored bytes, of parts of tensors about."""
        return sum(
            span.tensor.n_bytes * (span.end - span.start) // span.tensor.n_weights
            for span in self.spans
        )

    @cached_property
    def has_cells(self) -> bool:
        """See `recover.quants.IntervalTensor`."""
        tensors: list[Any] = [span.tensor for span in self.spans]
        return all(tensor.has_cells for tensor in tensors)

    @property
    def _first(self) -> StoredTensor:
        return self.spans[0].tensor

    def part(self, start: int, end: int) -> U8Array:
        """See `recover.containers.model.StoredTensor.part`."""
        parts = [tensor.part(first, last) for tensor, first, last, _ in self._pieces(start, end)]
        if len(parts) == 1:
            return parts[0]
        joined = np.concatenate(parts)
        joined.flags.writeable = False  # as the bytes of files are: kernels are compiled for either
        return joined

    def read(self, start: int, end: int, out: F32Array | None = None) -> F32Array:
        """See `recover.containers.model.StoredTensor.read`."""
        out = np.empty(end - start, np.float32) if out is None else out
        for tensor, first, last, at in self._pieces(start, end):
            tensor.read(first, last, out[at : at + last - first])
        return out

    def intervals(self, start: int, end: int, out: Stated) -> None:
        """See `recover.quants.IntervalTensor`."""
        for tensor, first, last, at in self._pieces(start, end):
            stating: Any = tensor
            stating.intervals(first, last, out.part(at, at + last - first))

    def _pieces(self, start: int, end: int) -> Iterator[tuple[StoredTensor, int, int, int]]:
        """Tensors and ranges of them that make up a range, and where they are in it."""
        at = 0
        for tensor, first, last in self.spans:
            begin, stop = max(start, at), min(end, at + last - first)
            if begin < stop:
                yield tensor, first + begin - at, first + stop - at, begin - start
            at += last - first


def reshaped(tensor: StoredTensor, dims: tuple[int, ...]) -> StoredTensor:
    """The same weights in another shape of as many."""
    if tensor.dims == dims:
        return tensor
    return View(tensor.name, dims, (Span(tensor, 0, tensor.n_weights),))


def rows_of(tensor: StoredTensor, name: str, first: int, last: int) -> StoredTensor:
    """Some rows of a matrix, under another name."""
    length = tensor.dims[0]
    span = Span(tensor, first * length, last * length)
    return View(name, (length, last - first), (span,))


def stacked(name: str, tensors: Sequence[StoredTensor]) -> StoredTensor:
    """Matrices of one shape and type as a stack."""
    spans = tuple(Span(each, 0, each.n_weights) for each in tensors)
    return View(name, (*tensors[0].dims[:2], len(tensors)), spans)

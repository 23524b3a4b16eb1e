"""Where the weights of a tensor go in files that are written: places, and the pieces of a range.

A GGUF file has all weights of a tensor one behind the other. Folders have rows of heads in another
order, experts in tensors of their own, matrices transposed or two of them woven into one. All of
these are arrays with strides: a place says where in a file the weight with certain coordinates is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from recover.errors import PlanError
from recover.quants import TensorType, U8Array

_FARTHEST = 8
"""Woven numbers are written at once where less than one of so many is a tensor's own."""


@dataclass(frozen=True)
class FilePlan:
    """A file to be written."""

    path: Path
    """Where it appears."""
    header: bytes
    """How it begins, up to where the weights do."""
    n_bytes: int
    """Size of the file."""


class Axis(NamedTuple):
    """A dimension of weights as a file has them."""

    size: int
    stride: int
    """Bytes from one to the next."""


@dataclass(frozen=True)
class Place:
    """Where weights go that follow each other in a tensor."""

    file: int
    """Which of the files."""
    position: int
    """Byte of the first weight."""
    start: int
    end: int
    """The weights of the tensor."""
    axes: tuple[Axis, ...] = ()
    """What they are an array of, the slowest first; empty where they follow each other in the file,
    too. Otherwise their type has no blocks."""

    def to_record(self) -> list[Any]:
        """Plain data."""
        return [self.file, self.position, self.start, self.end, [list(each) for each in self.axes]]

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """The opposite of `to_record`."""
        file, position, start, end, axes = record
        return cls(file, position, start, end, tuple(Axis(*each) for each in axes))

    def extent(self, kind: TensorType) -> tuple[int, int]:
        """The first byte that belongs to it, and one past the last."""
        if not self.axes:
            return self.position, self.position + kind.n_bytes(self.end) - kind.n_bytes(self.start)
        last = sum((axis.size - 1) * axis.stride for axis in self.axes)
        return self.position, self.position + last + kind.type_size


class Piece(NamedTuple):
    """Numbers of a file that are written together."""

    position: int
    """Of the first byte."""
    start: int
    end: int
    """Bytes of the range, once they are in the order of `Pieces`."""
    size: int
    step: int
    """So many bytes at once, and from where they begin to where the next do; equal where nothing
    is between them."""


class Pieces(NamedTuple):
    """What a range of weights is cut into, to be written."""

    order: NDArray[np.int64] | None
    """Which numbers follow each other; None for all in their order."""
    pieces: list[Piece]

    def arranged(self, data: U8Array, kind: TensorType) -> U8Array:
        """The bytes of the range in the order of the pieces."""
        if self.order is None:
            return data
        size = kind.type_size
        taken: U8Array = data.view(f"u{size}")[self.order].view(np.uint8)
        return taken


class Writer(Protocol):
    """Something that takes the bytes of a file."""

    def write_at(self, position: int, data: bytes | memoryview, n_pieces: int = 1) -> None:
        """Write `data` at a byte position; from any thread.

        Where checksums are kept, each of so many pieces of one size has its own.
        """

    def weave_at(self, position: int, data: memoryview, size: int, step: int) -> None:
        """Write `size` bytes at a byte position, the next `step` bytes behind it, and so on.

        What is between stays as it is. From any thread.
        """


def put_all(
    targets: Sequence[tuple[Place, Writer]], kind: TensorType, start: int, end: int, data: U8Array
) -> None:
    """Write the bytes of weights `start` to `end` to the places that they have.

    Where tensors of one size follow each other in a file, they are written at once.
    """
    waiting: list[tuple[Writer, int, int, int]] = []  # file, position, and bytes from and to

    def flush() -> None:
        if waiting:
            file, position, begin, _ = waiting[0]
            file.write_at(position, data[begin : waiting[-1][3]].data, len(waiting))
        waiting.clear()

    for place, file in targets:
        first, last = max(start, place.start), min(end, place.end)
        if first >= last:
            continue
        begin, stop = kind.n_bytes(first - start), kind.n_bytes(last - start)
        if place.axes:
            put(pieces_of(place, kind, first, last), data[begin:stop], kind, file)
            continue
        piece = file, _position(place, kind, first), begin, stop
        if waiting and not _follows(waiting[-1], piece):
            flush()
        waiting.append(piece)
    flush()


def _position(place: Place, kind: TensorType, start: int) -> int:
    """Where a weight is in the file, if those of the place follow each other."""
    return place.position + kind.n_bytes(start) - kind.n_bytes(place.start)


def _follows(before: tuple[Writer, int, int, int], piece: tuple[Writer, int, int, int]) -> bool:
    """Whether a piece is as large as the one in front of it, and right behind it."""
    n_bytes = before[3] - before[2]
    return piece == (before[0], before[1] + n_bytes, before[3], before[3] + n_bytes)


def behind(place: Place, n_weights: int) -> Place:
    """The place of weights that have so many others in front of them."""
    start, end = place.start + n_weights, place.end + n_weights
    return Place(place.file, place.position, start, end, place.axes)


def put(pieces: Pieces, data: U8Array, kind: TensorType, writer: Writer) -> None:
    """Write the bytes of the range that was cut into these pieces."""
    arranged = pieces.arranged(data, kind)
    for piece in pieces.pieces:
        own = arranged[piece.start : piece.end].data
        if piece.size == piece.step:
            writer.write_at(piece.position, own)
        else:
            writer.weave_at(piece.position, own, piece.size, piece.step)


def pieces_of(place: Place, kind: TensorType, start: int, end: int) -> Pieces:
    """The pieces of weights `start` to `end`, all of which have that place.

    Parameters
    ----------
    place : Place
        Theirs.
    kind : TensorType
        How they are stored.
    start, end : int
        Whole blocks of the tensor.

    Returns
    -------
    Pieces
    """
    n_bytes = kind.n_bytes(end) - kind.n_bytes(start)
    if not place.axes:
        return Pieces(None, [Piece(_position(place, kind, start), 0, n_bytes, n_bytes, n_bytes)])
    first, last = start - place.start, end - place.start
    size, unit = kind.type_size, _unit(place.axes, kind.type_size)
    # Whole units, and what is in front of them and behind.
    low, high = -(-first // unit) * unit, last // unit * unit
    if low > high:
        cuts = [(first, last)]
    else:
        cuts = [each for each in ((first, low), (high, last)) if each[0] < each[1]]
    loose = [_numbers(place, size, begin, stop, 1) for begin, stop in cuts]
    whole = _numbers(place, size, low, high, unit) if low < high else np.empty(0, np.int64)
    offsets = np.concatenate([whole, *loose])
    sizes = np.concatenate([np.full(whole.size, unit), np.ones(offsets.size - whole.size, int)])
    begins = np.concatenate(
        [np.arange(low, high, unit) if low < high else whole]
        + [np.arange(begin, stop) for begin, stop in cuts]
    )
    return _joined(offsets, sizes * size, begins - first, size)


def _unit(axes: tuple[Axis, ...], size: int) -> int:
    """Weights that follow each other in the file as they do in the tensor."""
    unit = 1
    for axis in reversed(axes):
        if axis.stride != unit * size:
            break
        unit *= axis.size
    return unit


def _numbers(place: Place, size: int, first: int, last: int, unit: int) -> NDArray[np.int64]:
    """Where every unit of a range begins in the file."""
    rest = np.arange(first, last, unit)
    offsets = np.full(rest.size, place.position)
    for axis in reversed(place.axes):
        rest, index = np.divmod(rest, axis.size)
        offsets += index * axis.stride
    return offsets


def _joined(
    offsets: NDArray[np.int64], n_bytes: NDArray[np.int64], begins: NDArray[np.int64], size: int
) -> Pieces:
    """Pieces in the order of the file: units that adjoin are one, and so are woven ones."""
    by_offset = np.argsort(offsets, kind="stable")
    offsets, n_bytes, begins = offsets[by_offset], n_bytes[by_offset], begins[by_offset]
    counts = n_bytes // size
    if (counts == 1).all():
        order = begins
    else:
        ends = np.cumsum(counts)
        order = np.arange(ends[-1]) + np.repeat(begins - (ends - counts), counts)
    gaps = np.diff(offsets) - n_bytes[:-1]
    step = _step(offsets, n_bytes, gaps)
    breaks = np.flatnonzero(gaps if step is None else np.diff(offsets) != step) + 1
    edges = [0, *breaks.tolist(), offsets.size]
    at = np.concatenate([[0], np.cumsum(n_bytes)])
    pieces = []
    for low, high in pairwise(edges):
        begin, stop = int(at[low]), int(at[high])
        own = stop - begin
        woven = step is not None and high - low > 1
        one = int(n_bytes[low]) if woven else own
        pieces.append(Piece(int(offsets[low]), begin, stop, one, step if woven and step else one))
    return Pieces(order, pieces)


def _step(
    offsets: NDArray[np.int64], n_bytes: NDArray[np.int64], gaps: NDArray[np.int64]
) -> int | None:
    """From one woven number to the next, if single units lie close to each other; else None."""
    if not gaps.size or (gaps == 0).any() or (n_bytes != n_bytes[0]).any():
        return None
    step = int(np.diff(offsets).min())
    return step if step < _FARTHEST * int(n_bytes[0]) else None


def whole_place(file: int, position: int, n_weights: int) -> tuple[Place, ...]:
    """Of a tensor whose weights follow each other."""
    return (Place(file, position, 0, n_weights),)


def within(places: tuple[Place, ...], start: int, end: int) -> Iterator[tuple[Place, int, int]]:
    """The places of a range of weights, and the part of the range that each has."""
    for place in places:
        first, last = max(start, place.start), min(end, place.end)
        if first < last:
            yield place, first, last


def rows_behind(
    places: tuple[Place, ...], first: int, n: int, kind: TensorType
) -> tuple[Place, ...]:
    """The places of `n` weights of a tensor from one on, as those of a tensor of their own.

    Raises
    ------
    PlanError
        If some of them do not follow each other in the file.
    """
    if first == 0 and n == max(place.end for place in places):
        return places
    found = []
    for place, start, end in within(places, first, first + n):
        if place.axes:
            raise PlanError("rows that follow others are put in another order")
        position = place.position + kind.n_bytes(start) - kind.n_bytes(place.start)
        found.append(Place(place.file, position, start - first, end - first))
    return tuple(found)

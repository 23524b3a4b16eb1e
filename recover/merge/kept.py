"""What a journal says of a tensor that is complete, and whether the bytes on the disk agree.

Of every tile that is written there is a CRC-32; an entry has one digest over those of a tensor, and
of its standard deviations. A journal and the file beside it may come from anywhere: an entry whose
sums cannot be those of a merge, or whose bytes are others, counts as not written.
"""

import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recover.containers.places import Piece, Place, pieces_of, whole_place, within
from recover.execution.output import OutputFile
from recover.execution.tiles import Tile, available_cores, for_each_tile
from recover.merge.plan import MergePlan, TensorPlan
from recover.merge.sums import NUMBERS, Sums
from recover.quants import TILE, TensorType, type_by_name

Digests = dict[int, tuple[int, int]]
"""By position in a file, of what was written there: number of bytes, and CRC-32."""

_LARGEST_ERROR = 1.2e77  # of one weight, squared: larger ones are no float32
_SQUARES = ("difference", "difference_expected")
_STEP = 1 << 20  # zeros written at once


class Span(NamedTuple):
    """Where bytes of one tile go."""

    file: int
    """Index of the output file; -1 is that of standard deviations."""
    piece: Piece


def spans(plan: MergePlan, index: int, tile: Tile | None = None) -> Iterator[Span]:
    """Where the bytes of a tensor's tiles go, or those of one of them, in order."""
    tensor = plan.tensors[index]
    starts = range(0, tensor.n_weights, TILE) if tile is None else [tile.start]
    wanted = _places(plan, tensor)
    for start in starts:
        for places, kind in wanted:
            for place, first, last in within(places, start, min(start + TILE, tensor.n_weights)):
                for piece in pieces_of(place, kind, first, last).pieces:
                    yield Span(place.file, piece)


def _places(plan: MergePlan, tensor: TensorPlan) -> list[tuple[tuple[Place, ...], TensorType]]:
    """The places of a tensor's weights, and of their standard deviations."""
    places = [(tensor.places, type_by_name(tensor.outtype))]
    if plan.uncertainty is not None and tensor.action != "copy":
        position = plan.uncertainty.positions[tensor.name]
        places.append((whole_place(-1, position, tensor.n_weights), type_by_name("BF16")))
    return places


def digest(plan: MergePlan, index: int, digests: Sequence[Digests]) -> str | None:
    """Take the digest of a tensor's bytes; None if some of them were not written as one tile."""
    whole = hashlib.sha256()
    for span in spans(plan, index):
        n_bytes, checksum = digests[span.file].pop(span.piece.position, (-1, 0))
        if n_bytes != span.piece.end - span.piece.start:
            return None
        whole.update(checksum.to_bytes(4, "little"))
    return whole.hexdigest()[:16]


def read_sums(plan: MergePlan, index: int, record: Any) -> Sums:
    """The sums of an entry.

    Raises
    ------
    OverflowError, ValueError
        If no merge of that tensor has such sums.
    """
    tensor, sums = plan.tensors[index], Sums.from_record(record)
    n_inputs, tally = len(tensor.used), sums.estimated
    is_estimated = tensor.action != "copy" and not tensor.is_known
    if tally is None and is_estimated:
        raise ValueError("there are no sums of what is estimated")
    largest = tensor.n_weights * _LARGEST_ERROR
    # Each of the merge's own counts a weight once, or once for each input.
    counted = tensor.n_weights * (n_inputs + len(tensor.compared))
    limits = [
        (getattr(sums, name), 0.0, largest * n_inputs if name in _SQUARES else counted)
        for name in NUMBERS
    ]
    if tally is not None:
        if tally.n_inputs != n_inputs:
            raise ValueError("these are the sums of other inputs")
        limits += [(float(each), 0.0, largest * n_inputs) for each in tally.alone]
        limits.append((tally.variance, -largest, largest))  # less what certain weights are not off
        limits.append((tally.n_conflicts, 0.0, tensor.n_weights))
    if not all(low <= each <= high for each, low, high in limits):
        raise ValueError("sums out of range")
    return sums


def read_seconds(seconds: Any) -> float:
    """The time of an entry.

    Raises
    ------
    ValueError
        If it is no time.
    """
    if type(seconds) not in (int, float) or not (0 <= seconds < 1e10):
        raise ValueError("this is no time")
    return float(seconds)


def damaged(plan: MergePlan, paths: Sequence[Path], expected: dict[int, str]) -> set[int]:
    """The tensors whose bytes are not those that were written.

    Parameters
    ----------
    plan : MergePlan
        The merge.
    paths : sequence of Path
        Where its output files lie now.
    expected : dict of int to str
        By index of a tensor, its digest.

    Returns
    -------
    set of int

    Raises
    ------
    OSError
        If a file cannot be opened.
    """
    with ExitStack() as stack:
        descriptors = []
        for path in paths:
            flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
            descriptors.append(os.open(path, flags))
            stack.callback(os.close, descriptors[-1])
        found: list[Digests] = [{} for _ in descriptors]

        def work(tile: Tile) -> None:
            for span in spans(plan, tile.tensor, tile):
                with suppress(OSError):  # what the disk cannot read is damaged, too
                    data = _read(descriptors[span.file], span.piece)
                    found[span.file][span.piece.position] = len(data), zlib.crc32(data)

        sizes = [t.n_weights if i in expected else 0 for i, t in enumerate(plan.tensors)]
        for_each_tile(sizes, [work] * available_cores())
    return {index for index, value in expected.items() if digest(plan, index, found) != value}


def _read(descriptor: int, piece: Piece) -> bytes:
    """What stands where a piece was written."""
    n = (piece.end - piece.start) // piece.size
    data = os.pread(descriptor, (n - 1) * piece.step + piece.size, piece.position)
    if piece.size == piece.step:
        return data
    padded = np.frombuffer(data.ljust(n * piece.step, b"\0"), np.uint8)
    return padded.reshape(n, piece.step)[:, : piece.size].tobytes()


def clear_gaps(plan: MergePlan, outputs: Sequence[OutputFile]) -> None:
    """Write zeros where no tensor is: what was there before may be anything."""
    ends = [len(file.header) for file in plan.files]
    filled: list[list[tuple[int, int]]] = [[] for _ in plan.files]
    for index in range(len(plan.tensors)):
        for places, kind in _places(plan, plan.tensors[index]):
            for place in places:
                filled[place.file].append(place.extent(kind))
    for output, end, pieces in zip(outputs, ends, filled, strict=True):
        at = end
        for start, stop in [*sorted(pieces), (output.n_bytes, output.n_bytes)]:
            for position in range(at, start, _STEP):
                output.write_at(position, bytes(min(_STEP, start - position)))
            at = max(at, stop)

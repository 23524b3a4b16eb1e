"""What was written of a tensor, and whether the bytes on the disk agree.

Of every piece that is written there is a CRC-32; a journal has one digest over those of a tensor.
A journal and the file beside it may come from anywhere: a tensor whose bytes are others counts as
not written.
"""

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recover.containers.places import FilePlan, Piece
from recover.execution.output import OutputFile
from recover.execution.tiles import Tile, available_cores, for_each_tile
from recover.execution.work import Unit

Digests = dict[int, tuple[int, int]]
"""By position in a file, of what was written there: number of bytes, and CRC-32."""

_STEP = 1 << 20  # zeros written at once


class Span(NamedTuple):
    """Where bytes of one tile go."""

    file: int
    """Index of the output file."""
    piece: Piece


def spans(unit: Unit, tile: Tile | None = None) -> Iterator[Span]:
    """Where the bytes of a tensor's tiles go, or those of one of them, in order."""
    starts = range(0, unit.n_weights, unit.step) if tile is None else [tile.start]
    for start in starts:
        for stretch in unit.written:
            for file, piece in stretch.pieces(start, min(start + unit.step, unit.n_weights)):
                yield Span(file, piece)


def digest(unit: Unit, digests: Sequence[Digests]) -> str | None:
    """Take the digest of a tensor's bytes; None if some of them were not written as one tile."""
    whole = hashlib.sha256()
    for span in spans(unit):
        n_bytes, checksum = digests[span.file].pop(span.piece.position, (-1, 0))
        if n_bytes != span.piece.end - span.piece.start:
            return None
        whole.update(checksum.to_bytes(4, "little"))
    return whole.hexdigest()[:16]


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


def damaged(units: Sequence[Unit], paths: Sequence[Path], expected: Mapping[int, str]) -> set[int]:
    """The tensors whose bytes are not those that were written.

    Parameters
    ----------
    units : sequence of Unit
        All tensors.
    paths : sequence of Path
        Where the output files lie now.
    expected : mapping of int to str
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
            for span in spans(units[tile.tensor], tile):
                with suppress(OSError):  # what the disk cannot read is damaged, too
                    data = _read(descriptors[span.file], span.piece)
                    found[span.file][span.piece.position] = len(data), zlib.crc32(data)

        sizes = [unit.n_weights if i in expected else 0 for i, unit in enumerate(units)]
        steps = [unit.step for unit in units]
        for_each_tile(sizes, [work] * available_cores(), steps=steps)
    return {index for index, value in expected.items() if digest(units[index], found) != value}


def _read(descriptor: int, piece: Piece) -> bytes:
    """What stands where a piece was written."""
    n = (piece.end - piece.start) // piece.size
    data = os.pread(descriptor, (n - 1) * piece.step + piece.size, piece.position)
    if piece.size == piece.step:
        return data
    padded = np.frombuffer(data.ljust(n * piece.step, b"\0"), np.uint8)
    return padded.reshape(n, piece.step)[:, : piece.size].tobytes()


def clear_gaps(
    units: Sequence[Unit], files: Sequence[FilePlan], outputs: Sequence[OutputFile]
) -> None:
    """Write zeros where no tensor is: what was there before may be anything."""
    ends = [len(file.header) for file in files]
    filled: list[list[tuple[int, int]]] = [[] for _ in files]
    for unit in units:
        for stretch in unit.written:
            for file, start, stop in stretch.extents():
                filled[file].append((start, stop))
    for output, end, pieces in zip(outputs, ends, filled, strict=True):
        at = end
        for start, stop in [*sorted(pieces), (output.n_bytes, output.n_bytes)]:
            for position in range(at, start, _STEP):
                output.write_at(position, bytes(min(_STEP, start - position)))
            at = max(at, stop)

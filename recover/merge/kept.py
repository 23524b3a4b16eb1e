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

from recover.execution.output import OutputFile
from recover.execution.tiles import Tile, available_cores, for_each_tile
from recover.merge.plan import MergePlan
from recover.merge.sums import NUMBERS, Sums
from recover.quants import TILE, type_by_name

Digests = dict[int, tuple[int, int]]
"""By position in a file, of what was written there: number of bytes, and CRC-32."""

_LARGEST_ERROR = 1.2e77  # of one weight, squared: larger ones are no float32
_SQUARES = ("difference", "difference_expected")
_STEP = 1 << 20  # zeros written at once


class Span(NamedTuple):
    """Where the bytes of one tile go."""

    file: int
    """Index of the output file; -1 is that of standard deviations."""
    position: int
    n_bytes: int


def spans(plan: MergePlan, index: int, tile: Tile | None = None) -> Iterator[Span]:
    """Where the bytes of a tensor's tiles go, or those of one of them, in order."""
    tensor = plan.tensors[index]
    starts = range(0, tensor.n_weights, TILE) if tile is None else [tile.start]
    places = [(tensor.part, tensor.position, type_by_name(tensor.outtype))]
    if plan.uncertainty is not None and tensor.action != "copy":
        places.append((-1, plan.uncertainty.positions[tensor.name], type_by_name("BF16")))
    for start in starts:
        end = min(start + TILE, tensor.n_weights)
        for file, position, kind in places:
            yield Span(
                file, position + kind.n_bytes(start), kind.n_bytes(end) - kind.n_bytes(start)
            )


def digest(plan: MergePlan, index: int, digests: Sequence[Digests]) -> str | None:
    """Take the digest of a tensor's bytes; None if some of them were not written as one tile."""
    whole = hashlib.sha256()
    for span in spans(plan, index):
        n_bytes, checksum = digests[span.file].pop(span.position, (-1, 0))
        if n_bytes != span.n_bytes:
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
                    data = os.pread(descriptors[span.file], span.n_bytes, span.position)
                    found[span.file][span.position] = len(data), zlib.crc32(data)

        sizes = [t.n_weights if i in expected else 0 for i, t in enumerate(plan.tensors)]
        for_each_tile(sizes, [work] * available_cores())
    return {index for index, value in expected.items() if digest(plan, index, found) != value}


def clear_gaps(plan: MergePlan, outputs: Sequence[OutputFile]) -> None:
    """Write zeros where no tensor is: what was there before may be anything."""
    ends = [len(file.header) for file in plan.files]
    filled: list[list[tuple[int, int]]] = [[] for _ in plan.files]
    for index in range(len(plan.tensors)):
        for span in spans(plan, index):
            filled[span.file].append((span.position, span.position + span.n_bytes))
    for output, end, pieces in zip(outputs, ends, filled, strict=True):
        at = end
        for start, stop in [*sorted(pieces), (output.n_bytes, output.n_bytes)]:
            for position in range(at, start, _STEP):
                output.write_at(position, bytes(min(_STEP, start - position)))
            at = max(at, stop)

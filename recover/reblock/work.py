"""Doing the tasks of a re-blocking: a tile is encoded, written, read back and compared."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted
from recover.containers.places import FilePlan, whole_place
from recover.errors import ReblockError
from recover.execution.planned import PlannedWork, ReadableWriter, Replanning
from recover.execution.tasks import Record, Task
from recover.execution.tiles import Tile
from recover.execution.work import Stretch, Unit
from recover.quants import F32Array, U8Array, dequantize, types_of_integers
from recover.reblock.dispatch import open_original
from recover.reblock.integers import Request
from recover.reblock.plan import ReblockPlan, plan_reblock
from recover.reblock.source import OriginalTensor

F64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass
class Compared:
    """What the comparison of a tensor's tiles adds up to.

    Attributes
    ----------
    n_compared, n_different : int
        Weights.
    squared_error, squared_weight, max_error : float
        Of tensors that need not be exact: sums of squares, and the largest error.
    example : str
        The first weight that differs.
    """

    n_compared: int = 0
    n_different: int = 0
    squared_error: float = 0.0
    squared_weight: float = 0.0
    max_error: float = 0.0
    example: str = ""

    def __iadd__(self, other: Any) -> Self:
        self.n_compared += other.n_compared
        self.n_different += other.n_different
        self.squared_error += other.squared_error
        self.squared_weight += other.squared_weight
        self.max_error = max(self.max_error, other.max_error)
        self.example = self.example or other.example
        return self

    def to_record(self) -> Record:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """The opposite of `to_record`; a `TypeError` if it is no such record."""
        return cls(**record)

    def add(
        self, first: int, decoded: F32Array | F64Array, expected: F64Array, same: BoolArray
    ) -> None:
        """Count a tile of a tensor that is to be exact, from its weight `first` on."""
        n_different = same.size - int(np.count_nonzero(same))
        self.n_compared += same.size
        self.n_different += n_different
        if n_different and not self.example:
            at = int(np.argmin(same))
            self.example = (
                f"weight {first + at} is {decoded[at]:.9g} instead of {expected[at]:.17g}"
            )

    def measure(self, decoded: F32Array | F64Array, expected: F64Array) -> None:
        """Add a tile's errors."""
        error = np.abs(decoded - expected)
        self.squared_error += float(np.square(error).sum())
        self.squared_weight += float(np.square(expected).sum())
        self.max_error = max(self.max_error, float(error.max()))

    @property
    def relative_rmse(self) -> float:
        """Error relative to the weights, both as root mean square."""
        if self.squared_weight == 0:
            return 0.0 if self.squared_error == 0 else float("inf")
        return float(np.sqrt(self.squared_error / self.squared_weight))


class Reblocking(PlannedWork):
    """The work of a re-blocking.

    Parameters
    ----------
    plan : ReblockPlan
        The re-blocking.
    verify : bool
        Read every tile back, decode it and compare it with the source.
    """

    command = "reblock"
    sums = Compared

    def __init__(self, plan: ReblockPlan, *, verify: bool) -> None:
        self.plan = plan
        self.asked = {**plan.asked, "verify": verify}
        self.verify = verify
        self.output = plan.output
        self.inputs = plan.source.parts
        self.files = [FilePlan(plan.output, plan.header, plan.n_bytes)]
        self.units = [
            Unit(
                tensor.name,
                tensor.n_weights,
                (Stretch(whole_place(0, position, tensor.n_weights), tensor.outtype),),
                step,
            )
            for tensor, position, step in zip(
                plan.source.tensors, plan.positions, plan.tile_sizes, strict=True
            )
        ]

    def details(self) -> Any:
        """See `PlannedWork.details`."""
        tensors = [
            [each.name, each.dims, each.stored_as, each.outtype.name, each.group, each.exact]
            for each in self.plan.source.tensors
        ]
        return [self.verify, tensors]

    def worker(self) -> "Worker":
        """See `PlannedWork.worker`."""
        return Worker(self)


def _again(asked: Record) -> Reblocking:
    told = dict(asked)
    verify, output = told.pop("verify"), told.pop("output")
    request = Request(outtype=told.pop("outtype"), allow_inexact=told.pop("allow_inexact"))
    paths = {name: told.pop(name) for name in ("path", "hparams", "like")}
    path, hparams, like = (None if each is None else Path(each) for each in paths.values())
    assert path is not None
    source = open_original(path, request, hparams=hparams, like=like, n_threads=1, **told)
    return Reblocking(plan_reblock(source, output), verify=verify)


carry_out = Replanning(_again).carry_out
"""Does a task in a process that has nothing else."""


def _with_scales_beside(
    tensor: OriginalTensor, tile: Tile, decoded: F32Array
) -> F32Array | F64Array:
    """Decoded weights times the scale of their matrix, if there is one; exact in float64."""
    if tensor.beside is None:
        return decoded
    n_each = tensor.n_weights // tensor.beside.size
    first, last = tile.start // n_each, -(-tile.end // n_each)
    ends = np.minimum(np.arange(first + 1, last + 1) * n_each, tile.end)
    counts = np.diff(ends, prepend=tile.start)
    return decoded * np.repeat(tensor.beside[first:last].astype(np.float64), counts)


class Worker:
    """One thread's part: encode a tile, write it, read it back, compare."""

    def __init__(self, work: Reblocking) -> None:
        self._plan = work.plan
        self._index = work.index
        self._verify = work.verify
        self._encoded = np.empty(0, np.uint8)

    def work(self, task: Task, files: Mapping[Path, ReadableWriter]) -> Record:
        """Write and check one tile."""
        tensor = self._plan.source.tensors[self._index[task.tensors[0]]]
        tile = Tile(0, task.start, task.end)
        (target,) = task.outputs
        file, compared = files[target.path], Compared()
        n_bytes = tensor.outtype.n_bytes(tile.end - tile.start)
        if self._encoded.size < n_bytes:
            self._encoded = np.empty(n_bytes, np.uint8)
        encoded = self._encoded[:n_bytes]
        tensor.encode(tile.start, tile.end, encoded)
        position = target.place.position + tensor.outtype.n_bytes(tile.start)
        file.write_at(position, encoded.data)
        if self._verify or not tensor.exact:
            written = np.frombuffer(file.read_at(position, n_bytes), np.uint8)
            self._check(tile, tensor, written, compared)
        return {"sums": [compared]}

    def _check(self, tile: Tile, tensor: OriginalTensor, written: U8Array, tally: Compared) -> None:
        """Compare what stands in the file with the source."""
        if tensor.reference is None:
            expected_bytes = np.empty(written.size, np.uint8)
            tensor.encode(tile.start, tile.end, expected_bytes)
            if not np.array_equal(written, expected_bytes):
                raise ReblockError(f"tensor {quoted(tensor.name)}: the file holds other bytes")
            tally.n_compared += tile.end - tile.start
            return
        decoded = _with_scales_beside(tensor, tile, dequantize(written, tensor.outtype))
        expected = tensor.reference(tile.start, tile.end)
        integers = types_of_integers().get(tensor.outtype.name)
        if integers is not None and integers.has_offset:
            # d, m and d * q are exact, but decoders add them in float32: rounded once.
            same = decoded == expected.astype(np.float32)
        else:
            same = decoded == expected
        tally.add(tile.start, decoded, expected, same)
        if not tensor.exact:
            tally.measure(decoded, expected)

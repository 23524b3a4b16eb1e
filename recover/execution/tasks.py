"""Tasks: pieces of a plan's work that a thread, a process or another machine can do alone.

A task names what it needs: inputs by path and fingerprint, a tensor, a range of its weights, and
where in which files the bytes go. Small tensors that are alike are one task (see
`recover.execution.stacks`). It is small, goes to JSON and back, and pickles. No array does:
who does a task maps the inputs and writes its own range of the output. What a task gives is plain
data, too.

Who plans and who adds up stay where they are; an `Executor` brings tasks to those who do them.
"""

import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from recover._files import write_all
from recover._text import printable
from recover.errors import OutputError

Record = dict[str, Any]
"""Plain data that JSON can hold."""

Take = Callable[["Task", Record], None]
"""Called with a task that is done, and what it gave; from any thread."""

Watch = Callable[[int], None]
"""Called now and then with the number of weights done."""


class Recordable(Protocol):
    """What goes to plain data."""

    def to_record(self) -> Record:
        """Plain data that JSON can hold."""


def _record_of(value: Recordable | Record) -> Record:
    return value if isinstance(value, dict) else value.to_record()


class Target(NamedTuple):
    """Where the bytes of a task go, in one file: those of each tensor."""

    path: Path
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """What is done to a range of one tensor's weights, or to several tensors that are alike.

    Attributes
    ----------
    plan : str
        Digest of the plan that it is a piece of.
    tensors : tuple of str
        Names of the tensors.
    start, end : int
        The weights of each: whole tiles, but for the end of the tensor; all, if there are several
        tensors.
    inputs : tuple of Input, or of their records
        The inputs that take part (see `recover.inputs.recorded.Input`).
    outputs : tuple of Target
        Where the bytes go. The files are there already, as large as they become.
    job : Recordable or dict
        What is done, as those who planned it tell those who do it; or its record.
    """

    plan: str
    tensors: tuple[str, ...]
    start: int
    end: int
    inputs: tuple[Recordable | Record, ...]
    outputs: tuple[Target, ...]
    job: Recordable | Record

    @property
    def n_weights(self) -> int:
        """How many weights something is done to."""
        return (self.end - self.start) * len(self.tensors)

    def to_record(self) -> Record:
        """Plain data."""
        return vars(self) | {
            "tensors": list(self.tensors),
            "inputs": [_record_of(each) for each in self.inputs],
            "outputs": [[str(each.path), list(each.positions)] for each in self.outputs],
            "job": _record_of(self.job),
        }

    def __reduce__(self) -> tuple[Callable[[Record], Self], tuple[Record]]:
        return type(self).from_record, (self.to_record(),)

    @classmethod
    def from_record(cls, record: Record) -> Self:
        """From what `to_record` gave, perhaps by way of JSON."""
        outputs = tuple(Target(Path(path), tuple(each)) for path, each in record["outputs"])
        told = {name: tuple(record[name]) for name in ("tensors", "inputs")}
        return cls(**record | told | {"outputs": outputs})


class Executor(Protocol):
    """Whoever has tasks done, in whatever order and wherever."""

    def run(self, tasks: Iterable[Task], take: Take, watch: Watch | None = None) -> None:
        """Have all tasks done; return when they are.

        Parameters
        ----------
        tasks : iterable of Task
            Made as they are asked for: there may be millions.
        take : callable
            Gets each task when its bytes are written, and what it gave.
        watch : callable, optional
            To be called from this thread while it waits.
        """


class Writer(Protocol):
    """Something that takes the bytes of a file."""

    def write_at(self, position: int, data: bytes | memoryview, n_pieces: int = 1) -> None:
        """Write `data` at a byte position; from any thread.

        Where checksums are kept, each of so many pieces of one size has its own.
        """


def write_pieces(file: Writer, positions: Sequence[int], data: memoryview) -> None:
    """Write pieces of one size, that lie one behind the other in `data`, to their positions."""
    n_bytes = data.nbytes // len(positions)
    first = 0
    for i, position in enumerate(positions, 1):
        if i == len(positions) or positions[i] != position + n_bytes:
            file.write_at(positions[first], data[first * n_bytes : i * n_bytes], i - first)
            first = i


def checksums(
    position: int, data: bytes | memoryview, n_pieces: int
) -> Iterator[tuple[int, int, int]]:
    """Position, number of bytes, and CRC-32 of pieces of one size that were written there."""
    view = memoryview(data)
    n_bytes = view.nbytes // n_pieces
    if n_pieces == 1:
        yield position, n_bytes, zlib.crc32(view)
        return
    view = view.cast("B")
    for at in range(0, n_pieces * n_bytes, n_bytes):
        yield position + at, n_bytes, zlib.crc32(view[at : at + n_bytes])


class PlacedFile:
    """A file that another process has created: bytes are put at their places in it.

    It is open only while bytes are written, so that network file systems pass them on at once.

    Parameters
    ----------
    path : Path
        The file.

    Attributes
    ----------
    written : list of (int, int, int)
        What was: position, number of bytes, and CRC-32.
    """

    def __init__(self, path: Path) -> None:
        self.written: list[tuple[int, int, int]] = []
        self._path = path

    def write_at(self, position: int, data: bytes | memoryview, n_pieces: int = 1) -> None:
        """Write `data`, so many pieces of one size, at a byte position.

        Raises
        ------
        OutputError
            If the file is not there, or too small, or cannot be written.
        """
        n_bytes = memoryview(data).nbytes
        try:
            flags = os.O_WRONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(self._path, flags)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_size < position + n_bytes:
                    raise OutputError(
                        f"{printable(self._path)}: is not the file that the work was planned for;"
                        f" it has {status.st_size:,} bytes, and bytes {position:,} to"
                        f" {position + n_bytes:,} are to be written"
                    )
                write_all(descriptor, data, position)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OutputError(
                f"{printable(self._path)}: cannot be written: {error.strerror}"
            ) from None
        self.written += checksums(position, data, n_pieces)

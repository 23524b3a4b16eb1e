"""Tasks: pieces of a plan's work that a thread, a process or another machine can do alone.

A task names what it needs: inputs by path and fingerprint, a tensor, a range of its weights, and
where in which files the bytes go. Small tensors that are alike are one task (see
`recover.execution.stacks`). It is small, goes to JSON and back, and pickles. No array does:
who does a task maps the inputs and writes its own range of the output. What a task gives is plain
data, too.

Who plans and who adds up stay where they are; an `Executor` brings tasks to those who do them.
"""

import importlib
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol, Self

from recover._files import read_all, write_all
from recover._text import printable, quoted
from recover.containers.places import Place
from recover.errors import OutputError, PlanError
from recover.execution.locks import locked_range
from recover.execution.pieces import checksums, weave

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


_MODULE = re.compile(r"recover(\.[a-z_]+)+")
WEIGHTS, DEVIATIONS = "weights", "deviations"


class Target(NamedTuple):
    """Where weights of a task's tensors go, in one file."""

    path: Path
    place: Place
    """Of weights of its tensors one behind the other, perhaps of more than the task's; the number
    of its file means nothing."""
    what: str = WEIGHTS
    """These, or their ``deviations``."""


@dataclass(frozen=True)
class Task:
    """What is done to a range of one tensor's weights, or to several tensors that are alike.

    Attributes
    ----------
    does : str
        Module of this package whose `carry_out` does it in a process that has nothing else.
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

    does: str
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
            "outputs": [
                [str(each.path), each.place.to_record(), each.what] for each in self.outputs
            ],
            "job": _record_of(self.job),
        }

    def __reduce__(self) -> tuple[Callable[[Record], Self], tuple[Record]]:
        return type(self).from_record, (self.to_record(),)

    @classmethod
    def from_record(cls, record: Record) -> Self:
        """From what `to_record` gave, perhaps by way of JSON."""
        outputs = tuple(
            Target(Path(path), Place.from_record(place), what)
            for path, place, what in record["outputs"]
        )
        told = {name: tuple(record[name]) for name in ("tensors", "inputs")}
        return cls(**record | told | {"outputs": outputs})


def carry_out(record: Record) -> Record:
    """Do a task of whatever kind, in a process that has nothing but its record.

    Parameters
    ----------
    record : dict
        What `Task.to_record` gave, perhaps by way of JSON.

    Returns
    -------
    dict
        ``sums``: what is summed up of each tile, as plain data; ``written``: for each file, by
        path, the position, number of bytes and CRC-32 of all that was written there.

    Raises
    ------
    RecoverError
        As of whoever does it.
    """
    if not _MODULE.fullmatch(record["does"]):
        raise PlanError(f"{quoted(record['does'])} does no tasks")
    gave: Record = importlib.import_module(record["does"]).carry_out(record)
    return gave


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


_WEAVING = Lock()  # of the threads of a process; others wait for the range


class PlacedFile:
    """A file that another process has created: bytes are put at their places in it.

    It is open only while bytes are written, so that network file systems pass them on at once, and
    the range is locked, so that they pass on nothing else of the pages that it shares with others.

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
        with (
            self._opened(position, n_bytes) as descriptor,
            locked_range(descriptor, position, n_bytes),
        ):
            write_all(descriptor, data, position)
        self.written += checksums(position, data, n_pieces)

    def read_at(self, position: int, n_bytes: int) -> bytes:
        """What stands at a byte position now; errors as of `write_at`."""
        with self._opened(position, n_bytes) as descriptor:
            return read_all(descriptor, position, n_bytes)

    def weave_at(self, position: int, data: memoryview, size: int, step: int) -> None:
        """Write `size` bytes at a byte position, the next `step` bytes behind it, and so on.

        What is between stays as it is, also if other processes write there in the same way.

        Raises
        ------
        OutputError
            As `write_at` does.
        """
        n_bytes = (data.nbytes // size - 1) * step + size
        with (
            _WEAVING,
            self._opened(position, n_bytes) as descriptor,
            locked_range(descriptor, position, n_bytes),
        ):
            weave(descriptor, position, data, size, step)
        self.written.append((position, data.nbytes, zlib.crc32(data)))

    @contextmanager
    def _opened(self, position: int, n_bytes: int) -> Iterator[int]:
        """The descriptor of the file, if it can hold bytes there."""
        try:
            flags = os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(self._path, flags)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_size < position + n_bytes:
                    raise OutputError(
                        f"{printable(self._path)}: is not the file that the work was planned for;"
                        f" it has {status.st_size:,} bytes, and bytes {position:,} to"
                        f" {position + n_bytes:,} are to be written"
                    )
                yield descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OutputError(
                f"{printable(self._path)}: cannot be written: {error.strerror}"
            ) from None

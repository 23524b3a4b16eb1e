"""Work: a plan as pieces that do not depend on each other, whatever is done to its tensors.

All that executors, journals and processes that share the work need to know of a command.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypedDict

from recover.containers.places import FilePlan, Piece, Place, Writer, pieces_of, within
from recover.execution.tasks import Executor, Task
from recover.execution.tiles import Progress, available_cores
from recover.quants import TILE, TensorType


class Stretch(NamedTuple):
    """Bytes that are written for a tensor."""

    places: tuple[Place, ...]
    """Where they go; the number of the file is that in `Work.files`."""
    kind: TensorType
    """How they are stored."""
    row_length: int = 0
    """Of types that are stored by rows, in one place from the first row on."""

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, Piece]]:
        """The numbers of files, and where in them the bytes of a range go."""
        for place, first, last in within(self.places, start, end):
            if self.kind.is_by_rows:
                at, stop = (self.kind.position(n, self.row_length) for n in (first, last))
                yield place.file, Piece(place.position + at, 0, stop - at, stop - at, stop - at)
                continue
            for piece in pieces_of(place, self.kind, first, last).pieces:
                yield place.file, piece

    def extents(self) -> Iterator[tuple[int, int, int]]:
        """Numbers of files, the first byte in each, and one past the last."""
        for place in self.places:
            if self.kind.is_by_rows:
                n_bytes = self.kind.position(place.end, self.row_length)
                yield place.file, place.position, place.position + n_bytes
            else:
                yield place.file, *place.extent(self.kind)


class Unit(NamedTuple):
    """A tensor, as far as it matters to those who do not know what is done to it."""

    name: str
    n_weights: int
    written: tuple[Stretch, ...]
    step: int = TILE
    """Weights of a tile; the last one may have fewer."""


class Summed(Protocol):
    """What is summed up over the tiles of a tensor; plain data in both directions."""

    def to_record(self) -> Any:
        """Plain data that JSON can hold."""

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """The opposite of `to_record`; a `ValueError` if it is no such record."""

    def __iadd__(self, other: Any) -> Self: ...


class Nothing:
    """The sums of what sums up nothing."""

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """Nothing."""
        if record is not None:
            raise ValueError("these are no sums of nothing")
        return cls()

    def to_record(self) -> Any:
        """None."""

    def __iadd__(self, other: Any) -> Self:
        return self


class Work(ABC):
    """The work of a plan.

    Attributes
    ----------
    command : str
        What people call it.
    sums : type
        What is summed up over the tiles of a tensor.
    output : Path
        What people know the output by.
    files : sequence of FilePlan
        All files to be written.
    inputs : sequence of Path
        All files that are read.
    units : sequence of Unit
        The tensors.
    is_folder : bool
        Whether the files make a folder of their own, `output`; others come behind them.
    n_parts : int
        So many of the files, from the first on, are parts of one.
    """

    command: ClassVar[str]
    sums: ClassVar[type[Summed]]
    output: Path
    files: Sequence[FilePlan]
    inputs: Sequence[Path]
    units: Sequence[Unit]
    is_folder: bool = False
    n_parts: int = 1

    @abstractmethod
    def fingerprint(self) -> Mapping[str, str]:
        """Digests of all that decides on the bytes and sums, by what they are digests of."""

    def prepare(self, indices: Sequence[int], how: "HowToWork") -> None:  # noqa: B027
        """Find out what the tasks of some tensors need, and no plan knows from the headers.

        Called once before them.
        """

    def complete(self, index: int, sums: Any) -> Any:
        """The sums of a tensor of which all tiles are written, with what `prepare` found."""
        return sums

    @abstractmethod
    def tasks(self, indices: Sequence[int], places: Sequence[Path]) -> Iterator[Task]:
        """The tasks of some tensors.

        Parameters
        ----------
        indices : sequence of int
            Which.
        places : sequence of Path
            Where the bytes of the files are written, in their order.
        """

    @abstractmethod
    def threads(self, files: Mapping[Path, Writer], n_threads: int) -> Executor:
        """Who does the tasks in this process.

        Parameters
        ----------
        files : mapping of Path to Writer
            What takes the bytes, by where they are written.
        n_threads : int
            How many threads.
        """

    def is_inside(self, path: Path) -> bool:
        """Whether a file belongs to the folder that is made."""
        return self.is_folder and path.resolve().parent == self.output.resolve()

    def read_sums(self, index: int, record: Any) -> Summed:
        """The sums of a tensor out of a file of any origin.

        Raises
        ------
        OverflowError, ValueError
            If they are no such sums.
        """
        return self.sums.from_record(record)

    @property
    def n_weights(self) -> int:
        """Of all tensors."""
        return sum(unit.n_weights for unit in self.units)


class Means(TypedDict, total=False):
    """The keywords of functions that carry out a plan: fields of `HowToWork`."""

    n_threads: int | None
    progress: Progress | None
    executor: Executor | None


class HowToWork(NamedTuple):
    """Who does the tasks of a command, and who hears of it.

    Attributes
    ----------
    n_threads : int or None
        Threads of this process; default: the cores that it may use.
    progress : Progress or None
        See `recover.execution.tiles`.
    executor : Executor or None
        Who does the tasks elsewhere; default: threads of this process.
    """

    n_threads: int | None = None
    progress: Progress | None = None
    executor: Executor | None = None

    def without_progress(self) -> "HowToWork":
        """The same, and nobody hears of it."""
        return self._replace(progress=None)

    def executor_of(self, work: Work, files: Mapping[Path, Writer]) -> Executor:
        """Who does the tasks."""
        return self.executor or work.threads(files, self.n_threads or available_cores())

"""Going on with an interrupted merge: what is complete of it is written down in a journal.

The output so far lies beside its final name, as a hidden file that is always called the same, and
next to it the journal: first a fingerprint of the plan, then the tensors that are complete, each
with a digest of their bytes (see `recover.execution.kept`) and the sums that the report needs.
Their bytes are on the disk before the journal names them. Tensors whose bytes have changed since
are made again.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from recover._text import printable, quoted, some
from recover.containers.gguf.parts import whole_path
from recover.execution.folder import finish_earlier_folder
from recover.execution.journal import Journal
from recover.execution.kept import clear_gaps, damaged, read_seconds
from recover.execution.output import OutputFiles, partial_path
from recover.execution.publish import finish_earlier
from recover.execution.saving import EVERY, Saver
from recover.merge.merging import Merging, fingerprint
from recover.merge.plan import MergePlan
from recover.merge.sums import Totals

Tell = Callable[[str], None]
"""Called with a line for people."""

_FORMAT = "recover.merge.journal/3"
_SECONDS = EVERY
_DAMAGED = "its journal is damaged"


class Unfinished:
    """What is complete of a merge, kept beside its output until all is.

    Parameters
    ----------
    plan : MergePlan
        The merge.
    tell : callable, optional
        Hears what is taken over, and what is kept.

    Attributes
    ----------
    done : dict of int to Sums
        The tensors that are complete on the disk, by index.
    seconds : float
        What they took, in all processes that were at it before.
    share : None
        No other process is at it now.

    Raises
    ------
    OutputError
        If another process is at it, or the journal cannot be written.
    """

    def __init__(self, plan: MergePlan, tell: Tell | None = None) -> None:
        self.done: Totals = {}
        self.seconds = 0.0
        self.share = None
        self._digests: dict[int, str] = {}
        self._outputs: OutputFiles | None = None
        self._plan = plan
        self._tell = tell
        self._key = str(whole_path(plan.output.resolve()))
        path = partial_path(Path(self._key), self._key).with_suffix(".journal")
        self._journal = Journal(path, plan.output)
        self._work = Merging(plan)
        self._start = time.perf_counter()

    def __enter__(self) -> Self:
        """Take over what is there, if it belongs to this plan; otherwise start over."""
        with ExitStack() as stack:
            stack.enter_context(self._journal)
            with suppress(OSError):  # a set of files that a dead process was giving their names
                if self._plan.is_folder:
                    finish_earlier_folder(self._plan.output.resolve())
                else:
                    finish_earlier(self._plan.files[0].path.resolve())
            self._take_over()
            stack.pop_all()
        return self

    def partial(self, path: Path) -> Path:
        """Where an output file lies until all are complete."""
        if self._plan.is_folder and path.resolve().parent == self._plan.output.resolve():
            return self.partial_folder / path.name
        return partial_path(path, self._key)

    @property
    def keeps(self) -> bool:
        """Whether anything is complete."""
        return bool(self.done)

    @property
    def partial_folder(self) -> Path:
        """Where the files of a folder lie until all are complete."""
        return partial_path(self._plan.output, self._key)

    def _take_over(self) -> None:
        first = {
            "format": _FORMAT,
            "fingerprint": fingerprint(self._plan),
            "files": [str(file.path.resolve()) for file in self._plan.files],
        }
        reason = self._reason(first)
        if reason is None and self.done:
            self._drop_damaged()
            self._say(f"going on with what is there: {self._amount()}")
            return
        if reason is not None:
            self._say(f"starting over: {reason}")
        self.done, self.seconds = {}, 0.0
        self._remove_partials([file.path for file in self._plan.files])
        with suppress(LookupError, TypeError):  # the files of the other merge
            self._remove_partials(map(Path, self._journal.records[0]["files"]))
        self._journal.restart(first)

    def _reason(self, first: Mapping[str, Any]) -> str | None:
        """Why what is there cannot be taken over, if there is anything; otherwise take it."""
        if len(self._journal.records) < 2 and self._journal.is_damaged:
            return _DAMAGED
        if not self._journal.records:
            return None
        before, *records = self._journal.records
        if before != first:
            return f"what is there belongs to another merge ({_difference(before, first)})"
        try:
            for record in records:
                self.seconds = read_seconds(record["seconds"])
                for index, sums, told in record["tensors"]:
                    if type(index) is not int or not 0 <= index < len(self._plan.tensors):
                        return _DAMAGED
                    self.done[index] = self._work.read_sums(index, sums)
                    self._digests[index] = str(told)
        except (LookupError, TypeError, ValueError, OverflowError):
            return _DAMAGED
        for file in self._plan.files if self.done else ():
            partial = self.partial(file.path)
            try:
                size = partial.stat().st_size
            except OSError:
                return f"{printable(partial)} is missing"
            if size != file.n_bytes:
                return f"{printable(partial)} has {size:,} instead of {file.n_bytes:,} bytes"
        return None

    def _drop_damaged(self) -> None:
        """Look at the bytes of what is complete: what is not as it was written is to be redone."""
        paths = [self.partial(file.path) for file in self._plan.files]
        expected = {index: self._digests[index] for index in self.done}
        try:
            lost = damaged(self._work.units, paths, expected)
        except OSError:
            lost = set(expected)
        for index in lost:
            del self.done[index]
        if lost:
            names = [quoted(self._plan.tensors[index].name) for index in sorted(lost)]
            self._say(f"damaged on the disk, and made again: {some(names)}")

    def _remove_partials(self, paths: Iterable[Path]) -> None:
        for path in paths:
            with suppress(OSError, ValueError):
                self.partial(path).unlink()

    def _amount(self) -> str:
        sizes = [tensor.n_weights for tensor in self._plan.tensors]
        share = sum(sizes[index] for index in self.done) / sum(sizes)
        return f"{len(self.done)} of {len(sizes)} tensors, {share:.0%} of the weights"

    def _say(self, what: str) -> None:
        if self._tell is not None:
            self._tell(f"{printable(self._plan.output)}: {what}")

    @contextmanager
    def saving(
        self, outputs: OutputFiles, finished: Callable[[], Totals]
    ) -> Iterator[Callable[[], None]]:
        """Write down what is complete now and then, and at the end.

        Parameters
        ----------
        outputs : OutputFiles
            Where the bytes are written.
        finished : callable
            Gives the tensors whose bytes were written since it was called last.

        Yields
        ------
        callable
            To be called often; most of the time it does nothing.
        """
        self._outputs = outputs
        clear_gaps(self._work.units, self._plan.files, outputs.files)
        saver = Saver(
            *(self._work, self._journal, outputs.files, finished),
            before=self.seconds + time.perf_counter() - self._start,
            every=_SECONDS,
            keep=outputs.keep,
        )
        try:
            with saver.saving() as save_if_due:
                yield save_if_due
        finally:
            self.done |= saver.done

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the journal, or keep it if there was an error before the files got their names."""
        if self._outputs is not None and self._outputs.are_in_place:
            self._journal.__exit__(None, None, None)
            return
        self._journal.__exit__(kind, value, traceback)
        if kind is not None and self.done:
            self._say(f"kept for the same command with --resume: {self._amount()}")


def _difference(before: Any, now: Mapping[str, Any]) -> str:
    """What is different in two first records."""
    try:
        names = [
            name
            for name, digest in now["fingerprint"].items()
            if before["fingerprint"][name] != digest
        ]
        if before["format"] != now["format"]:
            names = ["version"]
    except (LookupError, TypeError):
        names = ["version"]
    return f"other {', '.join(names or ['files'])}"

"""Writing down what is complete, while the work goes on."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from recover.errors import InputError, OutputError
from recover.execution.gathering import Totals
from recover.execution.journal import Journal
from recover.execution.kept import digest
from recover.execution.output import OutputFile
from recover.execution.work import Work

EVERY = 1.0
"""Seconds, at least, between two entries."""


class Saver:
    """Writes the tensors that are complete into a journal; their bytes are on the disk before.

    Parameters
    ----------
    work : Work
        Whose tensors they are.
    journal : Journal
        Where to.
    outputs : sequence of OutputFile
        Where the bytes are written.
    finished : callable
        Gives the tensors whose bytes were written since it was called last.
    before : float
        Seconds that earlier processes took.
    every : float
        Seconds, at least, between two entries.
    keep : callable, optional
        Called when something is written down.

    Attributes
    ----------
    done : dict of int to Summed
        Those that are written down.
    """

    def __init__(
        self,
        work: Work,
        journal: Journal,
        outputs: Sequence[OutputFile],
        finished: Callable[[], Totals],
        before: float = 0.0,
        every: float = EVERY,
        keep: Callable[[], None] | None = None,
    ) -> None:
        self.done: Totals = {}
        self._work = work
        self._journal = journal
        self._outputs = outputs
        self._finished = finished
        self._every = every
        self._keep = keep
        self._pending: Totals = {}
        self._has_failed = False
        self._last = time.perf_counter()
        self._start = self._last - before

    @property
    def seconds(self) -> float:
        """What all took until now."""
        return time.perf_counter() - self._start

    @contextmanager
    def saving(self) -> Iterator[Callable[[], None]]:
        """Save now and then, and at the end.

        Yields
        ------
        callable
            To be called often; most of the time it does nothing.
        """
        try:
            yield self._save_if_due
        except BaseException:
            with suppress(OutputError, InputError):
                self._save()
            raise
        self._save()

    def _save_if_due(self) -> None:
        if time.perf_counter() - self._last >= self._every:
            self._save()

    def _save(self) -> None:
        self._pending.update(self._finished())
        self._last = time.perf_counter()
        if not self._pending or self._has_failed:
            return
        for output in self._outputs:
            output.check_inputs()
        digests, units = [output.digests for output in self._outputs], self._work.units
        tensors = [
            [i, sums.to_record(), digest(units[i], digests)] for i, sums in self._pending.items()
        ]
        try:
            for output in self._outputs:
                output.sync()
            self._journal.append({"seconds": self.seconds, "tensors": tensors})
        except OutputError:
            self._has_failed = True  # after that, a flush that succeeds proves nothing
            raise
        if self._keep is not None:
            self._keep()
        self.done |= self._pending
        self._pending = {}
        self._last = time.perf_counter()

"""Tasks done by other processes of this machine, each of which has nothing but a task's record."""

import multiprocessing
import signal
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from recover import _stopping as stopping
from recover.errors import ExecutionError
from recover.execution.batches import Batch, batches, do_batch
from recover.execution.tasks import Record, Take, Task, Watch
from recover.execution.tiles import available_cores

_POLL_SECONDS = 0.1
_AHEAD = 2  # batches for each process, so that none waits


class Processes:
    """An `Executor` (see `recover.execution.tasks`) with fresh processes.

    Parameters
    ----------
    n_processes : int, optional
        How many; default: the cores that this process may use.
    """

    def __init__(self, n_processes: int | None = None) -> None:
        self._n = n_processes or available_cores()

    def run(self, tasks: Iterable[Task], take: Take, watch: Watch | None = None) -> None:
        """Have all tasks done, in about their order.

        Raises
        ------
        Exception
            The first that a task raises; the others stop after the tasks at hand.
        ExecutionError
            If a process was killed.
        Stopped
            If somebody asked for the end.
        """
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self._n, context, initializer=_begin)
        left, n_done = batches(tasks), 0
        pending: dict[Future[list[Record]], Batch] = {}
        try:
            while True:
                while len(pending) < _AHEAD * self._n and (batch := next(left, None)) is not None:
                    pending[pool.submit(do_batch, batch.records)] = batch
                if not pending:
                    break
                finished, _ = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
                for future in finished:
                    batch = pending.pop(future)
                    batch.give(future.result(), take)
                    n_done += batch.n_weights
                stopping.check()
                if watch is not None:
                    watch(n_done)
        except BrokenProcessPool:
            raise ExecutionError(
                "a process that did a part of the work was killed; is there enough memory?"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Leave signals of the terminal to the process that has the work done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

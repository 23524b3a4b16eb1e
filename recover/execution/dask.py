"""Tasks done by the workers of a Dask cluster.

Workers map the inputs and write their ranges into the files, which lie on a file system that they
and this process have in common. Of a task nothing but its record goes to them, and nothing but sums
and checksums comes back. A task whose worker dies is done by another one: to do it again writes the
same bytes.

No other module knows of Dask, and none imports this one but the command line, if it is asked to.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from socket import gethostname
from typing import Any

from recover import _stopping as stopping
from recover._text import printable, shortened
from recover.errors import ExecutionError, RecoverError
from recover.execution.batches import Batch, batches, do_batch
from recover.execution.tasks import Record, Take, Task, Watch
from recover.execution.tiles import available_cores

try:
    import distributed
    from distributed.scheduler import KilledWorker
    from distributed.utils import silence_logging_cmgr
except ImportError as error:
    raise ExecutionError(
        "a Dask cluster needs the package distributed: pip install 'recover-weights[distributed]'"
        f" ({error})"
    ) from None

LOCAL = "local"
"""Instead of an address: a cluster on this machine, for as long as it is needed."""

_AHEAD = 3  # batches for each thread of the cluster, so that none waits
_POLL_SECONDS = 0.2
_COUNT_SECONDS = 1.0  # from one look at who is there to the next
_CONNECT_SECONDS = 30


class Dask:
    """An `Executor` (see `recover.execution.tasks`) with a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        The cluster.
    tell : callable, optional
        Called with a line for people.
    """

    def __init__(self, client: Any, tell: Callable[[str], None] | None = None) -> None:
        self._client = client
        self._tell = tell
        self._n_threads = 0
        self._counted = -_COUNT_SECONDS

    def run(self, tasks: Iterable[Task], take: Take, watch: Watch | None = None) -> None:
        """Have all tasks done, in about their order.

        Raises
        ------
        Exception
            The first that a task raises.
        ExecutionError
            If the cluster is lost, or one task kills several workers.
        Stopped
            If somebody asked for the end.
        """
        left, n_done, n_sent = batches(tasks), 0, 0
        pending: dict[Any, Batch] = {}
        done: SimpleQueue[Any] = SimpleQueue()
        try:
            while True:
                while len(pending) < _AHEAD * max(1, self._count_threads()):
                    if (batch := next(left, None)) is None:
                        break
                    n_sent += 1
                    future = self._client.submit(
                        _do_there, batch.records, pure=False, priority=-n_sent
                    )
                    pending[future] = batch
                    future.add_done_callback(done.put)
                if not pending:
                    return
                for future in _finished(done):
                    batch = pending.pop(future)
                    batch.give(future.result(), take)
                    n_done += batch.n_weights
                stopping.check()
                if watch is not None:
                    watch(n_done)
        except KilledWorker as error:
            raise ExecutionError(
                "workers of the Dask cluster died one after the other with the same task; is there"
                f" enough memory? ({shortened(str(error), 300)})"
            ) from None
        except (OSError, CancelledError) as error:
            raise ExecutionError(
                f"the Dask cluster is lost: {shortened(str(error), 300)}"
            ) from None
        finally:
            if pending and self._client.status == "running":
                self._client.cancel(list(pending))

    def _count_threads(self) -> int:
        """How many threads the cluster has now, or had lately: workers come and go."""
        if self._client.scheduler is None:
            raise CancelledError("the scheduler is gone")
        if time.monotonic() - self._counted >= _COUNT_SECONDS:
            before, self._n_threads = self._n_threads, sum(self._client.nthreads().values())
            is_first = self._counted < 0
            self._counted = time.monotonic()
            if not self._n_threads and (before or is_first) and self._tell is not None:
                self._tell("the Dask cluster has no workers now; they are waited for")
        return self._n_threads


def _do_there(records: list[Record]) -> list[Record]:
    """See `do_batch`; errors say where: a path may lead to something on one machine alone."""
    try:
        return do_batch(records)
    except RecoverError as error:
        raise type(error)(f"{error} (a worker of the Dask cluster, on {gethostname()})") from None


def _finished(done: SimpleQueue[Any]) -> Iterator[Any]:
    """The futures that are done, after a while if none is."""
    with suppress(Empty):
        yield done.get(timeout=_POLL_SECONDS)
        while True:
            yield done.get_nowait()


@contextmanager
def cluster(
    address: str,
    n_workers: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> Iterator[Dask]:
    """An executor with the cluster of a scheduler.

    Parameters
    ----------
    address : str
        Of the scheduler, like ``tcp://host:8786``; or the file that it has written its address
        into; or ``local``.
    n_workers : int, optional
        Processes of a local cluster; default: the cores that this process may use.
    tell : callable, optional
        Called with a line for people.

    Raises
    ------
    ExecutionError
        If nobody answers there.
    """
    with ExitStack() as stack:
        stack.enter_context(silence_logging_cmgr(logging.CRITICAL, "distributed.client"))
        try:
            if address == LOCAL:
                local = distributed.LocalCluster(
                    n_workers=n_workers or available_cores(),
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=":0",
                    silence_logs=logging.CRITICAL,
                )
                stack.enter_context(local)
                client = distributed.Client(local, set_as_default=False)
            elif Path(address).is_file():
                client = distributed.Client(
                    scheduler_file=address, timeout=_CONNECT_SECONDS, set_as_default=False
                )
            else:
                client = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ExecutionError(
                f"no Dask scheduler answers at {printable(address)}: {shortened(str(error), 300)}"
            ) from None
        stack.enter_context(client)
        yield Dask(client, tell)

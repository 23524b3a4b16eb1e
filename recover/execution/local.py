"""Tasks done by threads of this process."""

from collections.abc import Callable, Iterable, Sequence

from recover.execution.tasks import Record, Take, Task, Watch
from recover.execution.tiles import for_each


class Threads:
    """An `Executor` (see `recover.execution.tasks`) with one thread for each worker.

    Parameters
    ----------
    workers : sequence of callables
        Each does one task at a time, from its own thread, and returns what it gave.
    """

    def __init__(self, workers: Sequence[Callable[[Task], Record]]) -> None:
        self._workers = tuple(workers)

    def run(self, tasks: Iterable[Task], take: Take, watch: Watch | None = None) -> None:
        """Have all tasks done, in about their order.

        Raises
        ------
        Exception
            As of `recover.execution.tiles.for_each_tile`.
        """

        def taking(work: Callable[[Task], Record]) -> Callable[[Task], None]:
            return lambda task: take(task, work(task))

        for_each(tasks, [taking(work) for work in self._workers], watch)

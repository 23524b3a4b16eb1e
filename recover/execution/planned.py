"""Work whose plan other processes make again, from what was asked for.

Tasks of such work name a tensor and a range of it, and what the plan was made from. Who does one
makes the plan again, once in a process, and refuses if it is another one.
"""

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from recover._text import printable
from recover.containers.mapping import check_faults, check_unchanged, faults
from recover.containers.places import Place, Writer
from recover.errors import PlanError
from recover.execution.fingerprints import digest_of, digest_of_files, version_of_program
from recover.execution.local import Threads
from recover.execution.tasks import PlacedFile, Record, Target, Task
from recover.execution.work import Work


class ReadableWriter(Writer, Protocol):
    """Something that takes the bytes of a file, and gives them back."""

    def read_at(self, position: int, n_bytes: int) -> bytes:
        """What stands at a byte position now."""


class Worker(Protocol):
    """One thread's part of a work."""

    def work(self, task: Task, files: Mapping[Path, Any]) -> Record:
        """Do a task: ``sums`` has what is summed up of each tile, in their order."""


class PlannedWork(Work):
    """Work that is planned again where its tasks are done.

    Attributes
    ----------
    asked : dict
        What the plan was made from: plain data, paths that hold everywhere.
    """

    asked: Record

    @abstractmethod
    def details(self) -> Any:
        """Plain data that decides on bytes and sums, apart from files and their headers."""

    @abstractmethod
    def worker(self) -> Worker:
        """A new one."""

    @cached_property
    def _inputs_and_version(self) -> Mapping[str, str]:
        return {"version": version_of_program(), "inputs": digest_of_files(self.inputs)}

    def fingerprint(self) -> Mapping[str, str]:
        """See `Work.fingerprint`."""
        headers = [file.header.hex() for file in self.files]
        options = {"options": digest_of([self.details(), headers])}
        return {**self._inputs_and_version, **options}

    @cached_property
    def digest(self) -> str:
        """Of what a task depends on."""
        return digest_of([self._inputs_and_version, self.details()])

    def job(self, index: int) -> Record:
        """What whoever does a task of a tensor has to know."""
        return {"asked": self.asked}

    def tasks(self, indices: Sequence[int], places: Sequence[Path]) -> Iterator[Task]:
        """See `Work.tasks`."""
        for index in indices:
            unit, job = self.units[index], self.job(index)
            targets = [
                Target(places[place.file], place, str(number))
                for number, stretch in enumerate(unit.written)
                for place in stretch.places
            ]
            for start in range(0, unit.n_weights, unit.step):
                end = min(start + unit.step, unit.n_weights)
                yield Task(
                    does=type(self).__module__,
                    plan=self.digest,
                    tensors=(unit.name,),
                    start=start,
                    end=end,
                    inputs=(),
                    outputs=tuple(each for each in targets if _overlaps(each.place, start, end)),
                    job=job,
                )

    def threads(self, files: Mapping[Path, Writer], n_threads: int) -> Threads:
        """See `Work.threads`."""
        return Threads([partial(self.worker().work, files=files) for _ in range(n_threads)])

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Numbers of the tensors, by name."""
        return {unit.name: i for i, unit in enumerate(self.units)}


def _overlaps(place: Place, start: int, end: int) -> bool:
    return place.start < end and start < place.end


class Replanning:
    """Does tasks in a process that has nothing but their records.

    Parameters
    ----------
    plan : callable
        Makes the work from what was asked for.
    """

    def __init__(self, plan: Callable[[Record], PlannedWork]) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._work: PlannedWork | None = None
        self._own = threading.local()

    def carry_out(self, record: Record) -> Record:
        """Do a task; see `recover.merge.work.carry_out`, which does those of a merge.

        Raises
        ------
        PlanError
            If what it was planned from is something else by now.
        RecoverError
            As of whoever works.
        """
        task = Task.from_record(record)
        with self._lock:
            if self._work is None or self._work.digest != task.plan:
                work = self._plan(record["job"]["asked"])
                if work.digest != task.plan:
                    raise PlanError(
                        f"{printable(work.output)}: its inputs, or this program, were changed since"
                        " the work was planned, or are others here; plan it again"
                    )
                self._work = work
            work = self._work
        if getattr(self._own, "plan", None) != task.plan:
            self._own.worker, self._own.plan = work.worker(), task.plan
        files = {output.path: PlacedFile(output.path) for output in task.outputs}
        before = faults()
        gave = self._own.worker.work(task, files)
        check_faults(before)
        check_unchanged(work.inputs)
        return {
            "sums": [each.to_record() for each in gave["sums"]],
            "written": {str(path): file.written for path, file in files.items()},
        }

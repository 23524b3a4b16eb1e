"""Doing the tasks of bounds: a tile is bounded, measured and written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recover.bounds.checks import SourceCheck
from recover.bounds.measuring import mark_conflicts, measure, round_outward
from recover.bounds.plan import BoundsPlan, check_tensors, header_with, plan_bounds, with_checks
from recover.containers.places import FilePlan, Writer, whole_place
from recover.evidence.intervals import Intervals
from recover.execution.gathering import Totals
from recover.execution.output import OutputFiles
from recover.execution.planned import PlannedWork, Replanning
from recover.execution.tasks import Record, Task
from recover.execution.work import HowToWork, Stretch, Unit
from recover.quants import type_by_name

LOWER, UPPER = "0", "1"
CONFLICTS = 1
"""Of a row: two-sided weights, conflicts, sum of widths, largest width."""


@dataclass
class Measured:
    """What is known of the bounds of some tiles, and of the inputs of their tensor.

    Attributes
    ----------
    rows : list of list of float
        For each tile what `recover.bounds.measuring.measure` gives.
    checks : tuple of SourceCheck
        Of a whole tensor, what was checked.
    """

    rows: list[list[float]] = field(default_factory=list)
    checks: tuple[SourceCheck, ...] = ()

    def __iadd__(self, other: Any) -> Self:
        self.rows += other.rows
        return self

    def to_record(self) -> Record:
        """Plain data."""
        return {"rows": self.rows, "checks": [each.to_json() for each in self.checks]}

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """The opposite of `to_record`; a `ValueError` if it is no such record."""
        rows = [[float(each) for each in row] for row in record["rows"]]
        if any(len(row) != 4 for row in rows):
            raise ValueError("these are no figures of bounds")
        return cls(rows, tuple(SourceCheck(**each) for each in record["checks"]))


class Bounding(PlannedWork):
    """The work of bounds that are written.

    Parameters
    ----------
    plan : BoundsPlan
        With an output; with checks or without.
    """

    command = "bounds"
    sums = Measured

    def __init__(self, plan: BoundsPlan) -> None:
        assert plan.output is not None
        self.plan = plan
        self.asked = plan.asked
        self.output = plan.output
        self.inputs = [part for model in plan.models for part in model.parts]
        self.files = [FilePlan(plan.output, plan.header, plan.n_bytes)]
        kind = type_by_name(plan.dtype.upper())
        self.units = [
            Unit(
                tensor.name,
                tensor.n_weights,
                tuple(
                    Stretch(whole_place(0, position, tensor.n_weights), kind)
                    for position in tensor.positions
                ),
            )
            for tensor in plan.tensors
        ]

    def details(self) -> Any:
        """See `PlannedWork.details`; what is checked follows from the inputs."""
        tensors = [[each.name, each.dims, each.types, each.left_out] for each in self.plan.tensors]
        return [self.plan.dtype, tensors]

    def prepare(self, indices: Sequence[int], how: HowToWork) -> None:
        """Check the inputs of tensors of which they are not checked yet."""
        left = [i for i in indices if self.plan.tensors[i].kept is None]
        found: dict[int, tuple[SourceCheck, ...]] = {}
        if how.executor is None:
            tensors = [self.plan.tensors[i] for i in left]
            checks = check_tensors(tensors, self.plan.models, how.n_threads)
            found = dict(zip(left, checks, strict=True))
        else:

            def take(task: Task, gave: Record) -> None:
                (measured,) = gave["sums"]
                found[self.index[task.tensors[0]]] = Measured.from_record(measured).checks

            how.executor.run((self._check(i) for i in left), take)
        self.plan = with_checks(self.plan, found)

    def _check(self, index: int) -> Task:
        """The task that checks the inputs of a tensor."""
        unit = self.units[index]
        job = {"asked": self.asked, "kept": None}
        return Task(__name__, self.digest, (unit.name,), 0, unit.n_weights, (), (), job)

    def complete(self, index: int, sums: Measured) -> Measured:
        """The figures with what was checked."""
        return Measured(sums.rows, self.plan.tensors[index].checks)

    def job(self, index: int) -> Record:
        """See `PlannedWork.job`."""
        return {"asked": self.asked, "kept": list(self.plan.tensors[index].kept or ())}

    def worker(self) -> "Worker":
        """See `PlannedWork.worker`."""
        return Worker(self)

    def with_found(self, totals: Totals) -> BoundsPlan:
        """The plan with what was checked of all tensors, in whatever process."""
        unknown = {i: totals[i].checks for i, t in enumerate(self.plan.tensors) if t.kept is None}
        return with_checks(self.plan, unknown)

    def conclude(self, outputs: OutputFiles, totals: Totals) -> None:
        """Write the header, which names the tensors whose bounds are not certified."""
        plan = self.with_found(totals)
        failed = [
            tensor.name
            for i, tensor in enumerate(plan.tensors)
            if tensor.failures or any(row[CONFLICTS] for row in totals[i].rows)
        ]
        outputs.files[0].write_at(0, header_with(plan, failed))


carry_out = Replanning(lambda asked: Bounding(plan_bounds(**asked))).carry_out
"""Does a task in a process that has nothing else."""


class Worker:
    """One thread's part."""

    def __init__(self, work: Bounding) -> None:
        self._work = work
        self._intervals = Intervals()
        self._at = ""

    def work(self, task: Task, files: Mapping[Path, Writer]) -> Record:
        """Bound the weights of one tile; or check the inputs of a tensor."""
        (name,) = task.tensors
        plan, index = self._work.plan, self._work.index[name]
        job: Any = task.job
        if job["kept"] is None:
            (checks,) = check_tensors([plan.tensors[index]], plan.models, 1)
            return {"sums": [Measured(checks=checks)]}
        if name != self._at:
            sources = plan.tensors[index].sources
            if plan.tensors[index].kept is None:
                sources = tuple(sources[i] for i in job["kept"])
            self._intervals.look_at(sources)
            self._at = name
        lower, upper = self._intervals.bound(task.start, task.end)
        row = [float(each) for each in measure(lower, upper)]
        mark_conflicts(lower, upper)
        for target in task.outputs:
            bounds = lower if target.what == LOWER else upper
            position = target.place.position + task.start * plan.item_size
            if plan.dtype == "f32":
                files[target.path].write_at(position, bounds.data)
                continue
            words: NDArray[np.uint16] = np.empty(bounds.size, np.uint16)
            round_outward(bounds, target.what == UPPER, words)
            files[target.path].write_at(position, words.data)
        return {"sums": [Measured([row])]}

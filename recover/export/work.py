"""Doing the tasks of an export: tiles are decoded, and their weights put at their places."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recover._text import printable, quoted
from recover.containers.places import Writer, put_all
from recover.errors import PlanError
from recover.execution.planned import PlannedWork, Replanning
from recover.execution.tasks import Record, Task
from recover.execution.work import Stretch, Unit
from recover.export.plan import ExportedTensor, ExportPlan, plan_export
from recover.quants import TILE, U8Array
from recover.quants.rounding import Rounding


class Exporting(PlannedWork):
    """The work of an export, as its plan says."""

    command = "export"
    sums = Rounding

    def __init__(self, plan: ExportPlan) -> None:
        self.plan = plan
        self.asked = plan.asked
        self.output = plan.output
        self.is_folder = True
        self.inputs = plan.parts
        self.files = plan.layout.files
        self.units = [
            Unit(each.name, each.n_weights, (Stretch(plan.layout.places[each.name], each.kind),))
            for each in plan.tensors
        ]

    def details(self) -> Any:
        """See `PlannedWork.details`."""
        return [[each.name, each.kind.name, each.shift, each.arrays] for each in self.plan.tensors]

    def worker(self) -> "Worker":
        """See `PlannedWork.worker`."""
        return Worker(self)


carry_out = Replanning(lambda asked: Exporting(plan_export(**asked))).carry_out
"""Does a task in a process that has nothing else."""


class Worker:
    """One thread's part: scratch memory."""

    def __init__(self, work: Exporting) -> None:
        self._plan = work.plan
        self._index = work.index
        self._encoded = np.empty(TILE * 4, np.uint8)

    def work(self, task: Task, files: Mapping[Path, Writer]) -> Record:
        """Write the weights of one tile."""
        tensor = self._plan.tensors[self._index[task.tensors[0]]]
        start, end = task.start, task.end
        if tensor.is_copied:
            data, rounding = tensor.source.part(start, end), Rounding()
        else:
            data, rounding = self._encode(tensor, start, end)
        targets = [(each.place, files[each.path]) for each in task.outputs]
        put_all(targets, tensor.kind, start, end, data)
        return {"sums": [rounding]}

    def _encode(self, tensor: ExportedTensor, start: int, end: int) -> tuple[U8Array, Rounding]:
        encoded = self._encoded[: tensor.kind.n_bytes(end - start)]
        rounding = tensor.source.round_to(tensor.kind, start, end, encoded, tensor.shift)
        if not rounding.fits:
            raise self._unfit(tensor, start, end)
        return encoded, rounding

    def _unfit(self, tensor: ExportedTensor, start: int, end: int) -> PlanError:
        """Say why a tile cannot be stored."""
        weights = tensor.source.read(start, end)
        what = f"{printable(self._plan.path)}: tensor {quoted(tensor.name)}"
        if not np.isfinite(weights).all():
            return PlanError(f"{what} holds NaN or infinite weights")
        largest = float(np.abs(weights).max())
        assert math.isfinite(largest)
        return PlanError(
            f"{what}: a weight of {largest:.6g} is beyond the range of {tensor.kind.name} (65504"
            " for F16); use --outtype bf16 or --outtype f32"
        )

"""A merge as work: tasks, and sums, as far as it matters to those who share it."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from recover.containers.places import FilePlan, Writer, whole_place
from recover.execution.fingerprints import digest_of, version_of_program
from recover.execution.local import Threads
from recover.execution.tasks import Task
from recover.execution.work import Stretch, Unit, Work
from recover.inputs.recorded import OpenInputs
from recover.merge.kept import read_sums
from recover.merge.plan import MergePlan, TensorPlan
from recover.merge.sums import Sums
from recover.merge.tasks import tasks_of
from recover.merge.work import Worker
from recover.quants import type_by_name


class Merging(Work):
    """The work of a merge, as its plan says."""

    command = "merge"
    sums = Sums

    def __init__(self, plan: MergePlan) -> None:
        self.plan = plan
        self.output = plan.output
        self.is_folder = plan.is_folder
        self.n_parts = 1 if plan.is_folder else len(plan.parts)
        self.inputs = [part for model in plan.models for part in model.parts]

    @property
    def files(self) -> Sequence[FilePlan]:  # type: ignore[override]
        """All files to be written."""
        return self.plan.files

    @cached_property
    def units(self) -> Sequence[Unit]:  # type: ignore[override]
        """The tensors."""
        return [
            Unit(each.name, each.n_weights, tuple(self._written(each)))
            for each in self.plan.tensors
        ]

    def _written(self, tensor: TensorPlan) -> Iterator[Stretch]:
        yield Stretch(tensor.places, type_by_name(tensor.outtype))
        second = self.plan.uncertainty
        if second is not None and tensor.action != "copy":
            position, file = second.positions[tensor.name], len(self.files) - 1
            yield Stretch(whole_place(file, position, tensor.n_weights), type_by_name("BF16"))

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of all that decides on the bytes."""
        return fingerprint(self.plan)

    def tasks(self, indices: Sequence[int], places: Sequence[Path]) -> Iterator[Task]:
        """See `Work.tasks`."""
        return tasks_of(self.plan, indices, places)

    def threads(self, files: Mapping[Path, Writer], n_threads: int) -> Threads:
        """Who does the tasks in this process: with its open inputs, and its output files."""
        opened = OpenInputs(zip(self.plan.inputs, self.plan.models, strict=True))
        return Threads([partial(Worker(opened).work, files=files) for _ in range(n_threads)])

    def read_sums(self, index: int, record: Any) -> Sums:
        """See `Work.read_sums`."""
        return read_sums(self.plan, index, record)


def fingerprint(plan: MergePlan) -> dict[str, str]:
    """Digests of all that decides on the bytes of a merge.

    Parameters
    ----------
    plan : MergePlan
        The merge.

    Returns
    -------
    dict of str to str
        By what they are digests of.
    """
    options = {
        "method": plan.method,
        "estimate": plan.estimate,
        "source_format": plan.source_format,
        "snaps": plan.snaps,
        "tensors": [tensor.to_json() for tensor in plan.tensors],
        "headers": [file.header.hex() for file in plan.files],
    }
    calibration = None if plan.calibration is None else plan.calibration.to_bytes().decode()
    densities = None if plan.densities is None else sorted(plan.densities.items())
    return {
        "version": version_of_program(),
        "inputs": digest_of([each.fingerprint for each in plan.inputs]),
        "options": digest_of(options),
        "calibration": digest_of(calibration),
        "densities": digest_of(densities),
    }

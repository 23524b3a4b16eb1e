"""The tasks of a merge: what is done to a tensor, apart from the plan of all of it."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from recover._version import __version__
from recover.containers.model import StoredTensor
from recover.containers.places import behind, whole_place
from recover.errors import PlanError
from recover.estimators.error_calibration import ErrorCalibration
from recover.evidence.buffer import Source
from recover.execution.stacks import can_be_stacked, stacks
from recover.execution.tasks import DEVIATIONS, Record, Target, Task
from recover.merge.certain import Snapping, snapping_of
from recover.merge.compare import confines_of
from recover.merge.plan import MergePlan, TensorPlan
from recover.merge.records import (
    error_calibration_record,
    plain,
    read_error_calibration,
    read_source,
    source_record,
    tuples,
)
from recover.quants import TILE

_DOES = "recover.merge.work"


@dataclass(frozen=True)
class Job:
    """What is done to the weights of a tensor, or of each of several that are alike.

    Fields that are not described are those of `recover.merge.plan.TensorPlan`.
    """

    action: str
    outtype: str
    method: str
    estimate: str
    """As of `recover.merge.plan.MergePlan`."""
    is_known: bool
    n_weights: int
    """Of the whole tensor."""
    n_used: int
    """So many of a task's inputs take part, the finest first; the others are compared."""
    sources: tuple[Source, ...]
    error_calibration: ErrorCalibration | None
    confines: tuple[bool, ...]
    """Where inputs are compared, whether the first one's and theirs prove bounds."""
    noises: tuple[float | None, ...]
    """As of their sources (see `recover.merge.compare.compare`)."""
    snapping: Snapping | None
    """How weights are set to numbers of the source's format; None if they cannot be."""
    shift: float

    @classmethod
    def of(cls, plan: MergePlan, tensor: TensorPlan) -> Self:
        """What a plan has done to a tensor."""
        return cls(
            action=tensor.action,
            outtype=tensor.outtype,
            method=tensor.method,
            estimate=plan.estimate,
            is_known=tensor.is_known,
            n_weights=tensor.n_weights,
            n_used=len(tensor.used),
            sources=tensor.sources,
            error_calibration=tensor.error_calibration,
            confines=confines_of(tensor),
            noises=tensor.compared_noises,
            snapping=snapping_of(plan, tensor),
            shift=tensor.shift,
        )

    def to_record(self) -> Record:
        """Plain data."""
        record: Record = vars(self) | {
            "version": __version__,
            "sources": [source_record(each) for each in self.sources],
            "error_calibration": error_calibration_record(self.error_calibration),
            "snapping": None if self.snapping is None else asdict(self.snapping),
        }
        return {name: plain(value) for name, value in record.items()}

    @classmethod
    def from_record(cls, record: Record, tensors: Sequence[StoredTensor]) -> Self:
        """From what `to_record` gave, perhaps by way of JSON; `tensors` are those of the inputs.

        Raises
        ------
        PlanError
            If another version of this program planned it, or for other tensors.
        """
        if record["version"] != __version__:
            raise PlanError(
                f"a task was planned by version {record['version']} of this program, which is"
                f" {__version__}; use one version everywhere"
            )
        told, snapping = record["sources"], record["snapping"]
        kinds = [tensor.type for tensor in tensors[: len(told)]]
        known = {
            "sources": tuple(read_source(*each) for each in zip(told, kinds, strict=True)),
            "error_calibration": read_error_calibration(record["error_calibration"]),
            "snapping": None if snapping is None else Snapping(**snapping),
        }
        return cls(**{each.name: tuples(record[each.name]) for each in fields(cls)} | known)


def tasks_of(
    plan: MergePlan, indices: Sequence[int], files: Sequence[Path], n_tiles: int = 1
) -> Iterator[Task]:
    """The tasks of some tensors, in about their order.

    Parameters
    ----------
    plan : MergePlan
        The merge.
    indices : sequence of int
        Of the tensors.
    files : sequence of Path
        Where the bytes of its files are written, in the order of `MergePlan.files`.
    n_tiles : int
        So many tiles are one task.
    """
    told = ((i, plan.tensors[i].n_weights, kind_of(plan, plan.tensors[i])) for i in indices)
    for stack in stacks(told):
        tensors = [plan.tensors[index] for index in stack]
        first = tensors[0]
        job, n_weights = Job.of(plan, first), first.n_weights
        inputs = tuple(plan.inputs[i].of_tensor(first.name) for i in (*first.used, *first.compared))
        places = [
            Target(files[place.file], behind(place, number * n_weights))
            for number, tensor in enumerate(tensors)
            for place in tensor.places
        ]
        if plan.uncertainty is not None and first.action != "copy":
            for number, tensor in enumerate(tensors):
                position = plan.uncertainty.positions[tensor.name]
                (second,) = whole_place(0, position, n_weights)
                places.append(Target(files[-1], behind(second, number * n_weights), DEVIATIONS))
        for start in range(0, n_weights, n_tiles * TILE):
            end = min(start + n_tiles * TILE, n_weights)
            upto = start + (end - start) * len(tensors)
            yield Task(
                does=_DOES,
                plan=plan.digest,
                tensors=tuple(each.name for each in tensors),
                start=start,
                end=end,
                inputs=inputs,
                outputs=tuple(
                    each for each in places if each.place.start < upto and start < each.place.end
                ),
                job=job,
            )


def kind_of(plan: MergePlan, tensor: TensorPlan) -> Hashable:
    """What tensors have in common that are one task; None of one that is a task of its own."""
    inputs, is_copied = (*tensor.used, *tensor.compared), tensor.action == "copy"
    for i in inputs:
        if tensor.name in plan.inputs[i].made:
            return None
        stored = plan.models[i].tensors[tensor.name]
        if not can_be_stacked(stored, is_copied=is_copied and not tensor.compared):
            return None
    return (
        tensor.part,
        tensor.shift,
        tensor.action,
        tensor.outtype,
        tensor.method,
        tensor.is_known,
        inputs,
        len(tensor.used),
        tensor.types,
        tensor.sources,
        tensor.confining,
        tensor.compared_noises,
        tensor.name in plan.undecided,
    )

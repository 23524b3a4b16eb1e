"""Carrying out an export: its tasks are done by threads or others; what they round is summed up."""

from dataclasses import dataclass
from typing import Any, Unpack

from recover.execution.shares import Shard
from recover.execution.sharing import PartResult, Tell
from recover.execution.whole import Finished, execute, execute_part
from recover.execution.work import HowToWork, Means
from recover.export.plan import ExportedTensor, ExportPlan
from recover.export.work import Exporting
from recover.quants.rounding import Rounding


@dataclass(frozen=True)
class ExportResult:
    """What an export did."""

    plan: ExportPlan
    """What was carried out."""
    seconds: float
    """Wall time of the execution."""
    roundings: tuple[Rounding, ...]
    """Of each tensor, what was rounded."""

    @property
    def n_exact(self) -> int:
        """Tensors of which every weight is what the model says."""
        return sum(not each.n_rounded for each in self.roundings)

    def to_json(self) -> dict[str, Any]:
        """The document that ``recover export --json`` prints."""
        plan = self.plan
        return {
            "source": str(plan.path),
            "output": str(plan.output),
            "architecture": plan.architecture,
            "outtype": plan.outtype,
            "n_weights": plan.n_weights,
            "n_bytes": plan.n_bytes,
            "seconds": self.seconds,
            "weights_per_second": plan.n_weights / self.seconds,
            "exact": self.n_exact == len(plan.tensors),
            "files": [file.path.name for file in plan.layout.files],
            "left_out": list(plan.left_out),
            "warnings": list(plan.warnings),
            "tensors": [
                {
                    "name": tensor.name,
                    "arrays": list(tensor.arrays),
                    "shape": list(tensor.source.dims),
                    "from": label_of(tensor),
                    "to": tensor.kind.name,
                    "exact": not rounding.n_rounded,
                    "n_rounded": rounding.n_rounded,
                    "relative_rms_rounding": rounding.relative_rms,
                }
                for tensor, rounding in zip(plan.tensors, self.roundings, strict=True)
            ],
        }


def label_of(tensor: ExportedTensor) -> str:
    """How a tensor is stored in the model, for people."""
    label: str = getattr(tensor.source, "label", tensor.source.type.name)
    return label


def execute_export(
    plan: ExportPlan,
    **means: Unpack[Means],
) -> ExportResult:
    """Carry out a plan.

    Parameters
    ----------
    plan : ExportPlan
        From `recover.export.plan.plan_export`.
    **means
        Who does the tasks: ``n_threads``, ``progress`` and ``executor``, see
        `recover.execution.work.HowToWork`.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    PlanError
        If a weight is not finite, or too large for its type.
    """
    how = HowToWork(**means)
    return _result(plan, execute(Exporting(plan), how, replaces=plan.replaces))


def execute_export_part(
    plan: ExportPlan,
    shard: Shard,
    *,
    force: bool = False,
    tell: Tell | None = None,
    **means: Unpack[Means],
) -> ExportResult | PartResult:
    """Carry out a part of a plan; parameters and errors as of `execute_merge_part`.

    The plan is one with `force`: whoever repeats a part finds the folder in its place.

    Returns
    -------
    ExportResult or PartResult
        Of all parts from the process that ends last.
    """
    how = HowToWork(**means)
    done = execute_part(Exporting(plan), shard, how, tell, replaces=force)
    return done if isinstance(done, PartResult) else _result(plan, done)


def _result(plan: ExportPlan, finished: Finished) -> ExportResult:
    roundings = tuple(finished.totals[i] for i in range(len(plan.tensors)))
    return ExportResult(plan, finished.seconds, roundings)

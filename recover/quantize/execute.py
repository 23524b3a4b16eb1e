"""Carrying out a plan: its tasks are done by threads or others."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Unpack

from recover._brief import Brief
from recover.execution.shares import Shard
from recover.execution.sharing import PartResult, Tell
from recover.execution.whole import execute, execute_part
from recover.execution.work import HowToWork, Means
from recover.quantize.plan import QuantizePlan
from recover.quantize.work import Quantizing


@dataclass(frozen=True, repr=False)
class QuantizeResult(Brief):
    """What a quantization did.

    Attributes
    ----------
    plan : QuantizePlan
        What was carried out.
    seconds : float
        Wall time of the execution.
    """

    plan: QuantizePlan
    seconds: float

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "output", self.plan.output.name
        yield "outtype", self.plan.outtype
        yield "weights", self.plan.n_weights
        yield "bits_per_weight", self.plan.bits_per_weight
        yield "seconds", self.seconds

    def to_json(self) -> dict[str, Any]:
        """The document that ``recover quantize --json`` prints."""
        plan, n_weights = self.plan, self.plan.n_weights
        return {
            "output": str(plan.output),
            "type": plan.outtype,
            "input": str(plan.model.path),
            "imatrix": None if plan.imatrix_path is None else str(plan.imatrix_path),
            "n_weights": n_weights,
            "n_bytes": plan.n_bytes,
            "bits_per_weight": plan.bits_per_weight,
            "seconds": self.seconds,
            "weights_per_second": n_weights / self.seconds,
            "warnings": list(plan.warnings),
            "tensors": [
                {
                    "name": tensor.name,
                    "shape": list(tensor.dims),
                    "action": tensor.action,
                    "from": tensor.type,
                    "to": tensor.outtype,
                    "uses_imatrix": tensor.uses_imatrix,
                }
                for tensor in plan.tensors
            ],
        }


def execute_quantize(
    plan: QuantizePlan,
    **means: Unpack[Means],
) -> QuantizeResult:
    """Carry out a plan.

    Parameters
    ----------
    plan : QuantizePlan
        From `plan_quantize`.
    **means
        Who does the tasks: ``n_threads``, ``progress`` and ``executor``, see
        `recover.execution.work.HowToWork`.

    Raises
    ------
    OutputError
        If the output cannot be written.
    PlanError
        If a weight is not finite, or too large for its type.
    """
    finished = execute(Quantizing(plan), HowToWork(**means))
    return QuantizeResult(plan, finished.seconds)


def execute_quantize_part(
    plan: QuantizePlan,
    shard: Shard,
    *,
    tell: Tell | None = None,
    **means: Unpack[Means],
) -> QuantizeResult | PartResult:
    """Carry out a part of a plan; parameters and errors as of `execute_merge_part`.

    Returns
    -------
    QuantizeResult or PartResult
        Of all parts from the process that ends last.
    """
    how = HowToWork(**means)
    done = execute_part(Quantizing(plan), shard, how, tell)
    return done if isinstance(done, PartResult) else QuantizeResult(plan, done.seconds)

"""Carrying out a plan: its tasks are done by threads or others."""

from dataclasses import dataclass
from typing import Any

from recover.execution.shares import Shard
from recover.execution.sharing import PartResult, Tell
from recover.execution.tasks import Executor
from recover.execution.tiles import Progress
from recover.execution.whole import execute, execute_part
from recover.execution.work import HowToWork
from recover.quantize.plan import QuantizePlan
from recover.quantize.work import Quantizing


@dataclass(frozen=True)
class QuantizeResult:
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
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> QuantizeResult:
    """Carry out a plan.

    Parameters
    ----------
    plan : QuantizePlan
        From `plan_quantize`.
    n_threads, progress : optional
        See `recover.execution.tiles`.
    executor : Executor, optional
        Who has the tasks done; default: threads of this process.

    Returns
    -------
    QuantizeResult

    Raises
    ------
    OutputError
        If the output cannot be written.
    PlanError
        If a weight is not finite, or too large for its type.
    """
    finished = execute(Quantizing(plan), HowToWork(n_threads, progress, executor))
    return QuantizeResult(plan, finished.seconds)


def execute_quantize_part(
    plan: QuantizePlan,
    shard: Shard,
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
    tell: Tell | None = None,
) -> QuantizeResult | PartResult:
    """Carry out a part of a plan; parameters and errors as of `execute_merge_part`.

    Returns
    -------
    QuantizeResult or PartResult
        Of all parts from the process that ends last.
    """
    how = HowToWork(n_threads, progress, executor)
    done = execute_part(Quantizing(plan), shard, how, tell)
    return done if isinstance(done, PartResult) else QuantizeResult(plan, done.seconds)

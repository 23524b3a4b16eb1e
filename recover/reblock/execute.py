"""Carrying out a re-blocking: tiles are encoded, written, read back and compared."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Unpack

from recover._brief import Brief
from recover._text import quoted
from recover.errors import ReblockError
from recover.execution.gathering import Totals
from recover.execution.output import OutputFile, OutputFiles
from recover.execution.shares import Shard
from recover.execution.sharing import PartResult, Tell
from recover.execution.whole import Finished, execute, execute_part
from recover.execution.work import HowToWork, Means
from recover.reblock.plan import ReblockPlan
from recover.reblock.source import OriginalTensor
from recover.reblock.work import Compared, Reblocking


@dataclass(frozen=True)
class TensorResult:
    """What became of a tensor."""

    tensor: OriginalTensor
    """What was written."""
    verified: bool
    """Whether every written weight was decoded again and compared with the source."""
    exact: bool
    """Whether every weight is what the source means: measured if `verified`, else as the source
    promises."""
    n_different: int
    """Weights that differ from the source, if `verified`."""
    relative_rmse: float
    """Root mean square error relative to that of the weights, if `verified`."""
    max_error: float
    """Largest error of a weight, if `verified`."""

    @property
    def reason(self) -> str:
        """Why it is exact or not, and how large the error is."""
        if self.exact or not self.verified or not self.n_different:
            return self.tensor.reason
        error = (
            f"{self.n_different} of {self.tensor.n_weights} weights differ,"
            f" relative rms error {self.relative_rmse:.3g}, at most {self.max_error:.3g}"
        )
        return "; ".join(filter(None, (self.tensor.reason, error)))

    def to_json(self) -> dict[str, Any]:
        """One entry of the document that ``recover reblock --json`` prints."""
        return {
            "name": self.tensor.name,
            "from": self.tensor.stored_as,
            "to": self.tensor.outtype.name,
            "group": self.tensor.group,
            "exact": self.exact,
            "reason": self.reason,
        }


@dataclass(frozen=True, repr=False)
class ReblockResult(Brief):
    """What a re-blocking did.

    Attributes
    ----------
    plan : ReblockPlan
        What was carried out.
    tensors : tuple of TensorResult
        In output order.
    seconds : float
        Wall time, verification included.
    """

    plan: ReblockPlan
    tensors: tuple[TensorResult, ...]
    seconds: float

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "output", self.plan.output.name
        yield "tensors", len(self.tensors)
        yield "exact", self.exact
        yield "weights", self.plan.n_weights
        yield "seconds", self.seconds

    @property
    def exact(self) -> bool:
        """Whether every weight of every tensor is what the source means."""
        return all(tensor.exact for tensor in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """The document that ``recover reblock --json`` prints."""
        document = {
            "source": str(self.plan.source.path),
            "output": str(self.plan.output),
            "exact": self.exact,
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }
        warnings = list(self.plan.source.warnings)
        return document | ({"warnings": warnings} if warnings else {})

    def report(self) -> dict[str, Any]:
        """The document beside the output: what is proven, how, and under which conditions."""
        entries = [
            tensor.to_json()
            | {
                "shape": list(tensor.tensor.dims),
                "n_weights": tensor.tensor.n_weights,
                "verified": tensor.verified,
            }
            | (
                {
                    "n_different": tensor.n_different,
                    "relative_rmse": tensor.relative_rmse,
                    "max_error": tensor.max_error,
                }
                if tensor.verified
                else {}
            )
            for tensor in self.tensors
        ]
        return self.to_json() | {
            "n_bytes": self.plan.n_bytes,
            "conditions": list(self.plan.source.conditions),
            "left_out": list(self.plan.source.left_out),
            "verification": (
                "every written tensor was read back, decoded and compared with code x scale in"
                " float64 (tensors that are copied: byte by byte)"
                if all(tensor.verified for tensor in self.tensors)
                else "none: what is said here follows from the formats, nothing was decoded again"
            ),
            "tensors": entries,
        }


def execute_reblock(
    plan: ReblockPlan,
    *,
    verify: bool = True,
    **means: Unpack[Means],
) -> ReblockResult:
    """Carry out a plan; the output and its report appear only when all of it holds.

    Parameters
    ----------
    plan : ReblockPlan
        From `plan_reblock`.
    verify : bool
        Read every tile back, decode it and compare it with the source. Tensors that are not exact
        are always measured.
    **means
        Who does the tasks: ``n_threads``, ``progress`` and ``executor``, see
        `recover.execution.work.HowToWork`.

    Raises
    ------
    OutputError
        If the output cannot be written.
    ReblockError
        If a tensor that was to be exact is not, or cannot be stored.
    """
    work = Reblocking(plan, verify=verify)
    results: list[ReblockResult] = []
    inputs = plan.source.parts
    start = time.perf_counter()
    with OutputFile(plan.report, 0, inputs) as report:

        def conclude(_outputs: OutputFiles, totals: Totals) -> None:
            seconds = time.perf_counter() - start
            results.append(_result(plan, Finished(totals, seconds)))
            report.write_at(0, _text_of(results[0]))

        execute(work, HowToWork(**means), conclude=conclude)
    return results[0]


def execute_reblock_part(
    plan: ReblockPlan,
    shard: Shard,
    *,
    verify: bool = True,
    tell: Tell | None = None,
    **means: Unpack[Means],
) -> ReblockResult | PartResult:
    """Carry out a part of a plan; parameters and errors as of `execute_merge_part`.

    Returns
    -------
    ReblockResult or PartResult
        Of all parts from the process that ends last, which writes the report.
    """
    work, how = Reblocking(plan, verify=verify), HowToWork(**means)

    def judge(_outputs: OutputFiles, totals: Totals) -> None:
        _result(plan, Finished(totals, 0.0))

    done = execute_part(work, shard, how, tell, conclude=judge)
    if isinstance(done, PartResult):
        return done
    result = _result(plan, done)
    text = _text_of(result)
    if not plan.report.exists() or plan.report.read_bytes() != text:
        with OutputFile(plan.report, 0, plan.source.parts) as report:
            report.write_at(0, text)
    return result


def _result(plan: ReblockPlan, finished: Finished) -> ReblockResult:
    tallies = [finished.totals[i] for i in range(len(plan.source.tensors))]
    results = tuple(map(_judge, plan.source.tensors, tallies))
    return ReblockResult(plan, results, finished.seconds)


def _text_of(result: ReblockResult) -> bytes:
    return json.dumps(result.report(), indent=2).encode()


def _judge(tensor: OriginalTensor, tally: Compared) -> TensorResult:
    """The result of a tensor; a broken promise is an error."""
    verified = tally.n_compared == tensor.n_weights
    exact = (tally.n_different == 0 if verified else tensor.exact) and tensor.proven
    if tensor.exact and not exact:
        raise ReblockError(
            f"tensor {quoted(tensor.name)}: {tally.n_different} of {tensor.n_weights} weights are"
            f" not what the source means ({tally.example}); nothing was written"
        )
    return TensorResult(
        tensor, verified, exact, tally.n_different, tally.relative_rmse, tally.max_error
    )

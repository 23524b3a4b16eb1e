"""Carrying out a plan: its tasks are done by threads or others, and their sums added up."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from recover._brief import Brief
from recover._text import path_text, quoted, some, tensors_of
from recover.errors import UsageError
from recover.evidence.buffer import tells_errors
from recover.execution.gathering import Gathering, do_tasks
from recover.execution.homes import outputs_of, write_headers
from recover.execution.kept import clear_gaps
from recover.execution.shares import Shard
from recover.execution.sharing import PartResult, Sharing
from recover.execution.tasks import Executor
from recover.execution.tiles import Progress
from recover.execution.work import HowToWork
from recover.merge.certain import find_withdrawal, to_estimate_again, without_certainty
from recover.merge.checks import (
    broken_inputs,
    check_broken,
    check_relations,
    contradicted,
    with_finest_alone,
)
from recover.merge.exact import warnings_of
from recover.merge.merging import Merging
from recover.merge.plan import MergePlan, TensorPlan
from recover.merge.redundant import errors_alone
from recover.merge.resume import Tell, Unfinished
from recover.merge.savings import Saving, savings, share_not_served
from recover.merge.sums import Totals
from recover.quants import GROUP


@dataclass(frozen=True, repr=False)
class TensorResult(Brief):
    """What a merge expects of one tensor; None where it makes no claim."""

    plan: TensorPlan
    """What was done."""
    expected_rmse: float | None
    conflict_fraction: float | None
    """The error to expect, and the share of weights on which the inputs contradict each other."""
    n_rounded: int = 0
    """Weights of a single input that the output's type does not hold exactly."""

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "name", self.plan.name
        yield "action", self.plan.action
        yield "types", " ".join(self.plan.types)
        yield "expected_rmse", self.expected_rmse
        yield "conflict_fraction", self.conflict_fraction


@dataclass(frozen=True, repr=False)
class MergeResult(Brief):
    """What a merge did.

    Attributes
    ----------
    plan : MergePlan
        What was carried out.
    seconds : float
        Wall time of the execution; of one that was interrupted, up to its last entry.
    expected_mse_ratio : float or None
        Expected mean square error over that of the best single input, predicted without the truth.
        Of the tensors of which a claim can be made; None if there is none.
    conflict_fraction : float or None
        Share of the merged weights on which the inputs contradict each other; None if the method
        does not look.
    n_exact : int
        Weights that are certain: their bounds hold a single number of the source's format.
    tensors : tuple of TensorResult
        In output order.
    warnings : tuple of str
        What is wrong with the inputs, for people.
    """

    plan: MergePlan
    seconds: float
    expected_mse_ratio: float | None
    conflict_fraction: float | None
    n_exact: int
    tensors: tuple[TensorResult, ...]
    warnings: tuple[str, ...] = ()

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "output", self.plan.output
        yield "method", self.plan.method
        yield "weights", self.n_weights
        yield "seconds", self.seconds
        yield "expected_mse_ratio", self.expected_mse_ratio
        yield "conflict_fraction", self.conflict_fraction
        yield "warnings", len(self.warnings)

    def rows(self) -> Iterator[Sequence[object]]:
        """See `recover._brief.Brief`."""
        yield "tensor", "action", "inputs", "expected rmse", "conflicts"
        for each in self.tensors:
            types = " ".join(each.plan.types)
            told = each.expected_rmse, each.conflict_fraction
            yield (each.plan.name, each.plan.action, types, *told)

    @property
    def n_weights(self) -> int:
        """Weights in the output."""
        return sum(tensor.n_weights for tensor in self.plan.tensors)

    @property
    def n_without_claim(self) -> int:
        """Tensors whose error nothing tells, though they are estimated."""
        estimated = [each.plan.sources for each in self.tensors if each.plan.action != "copy"]
        return sum(bool(sources) and not tells_errors(sources) for sources in estimated)

    @property
    def savings(self) -> tuple[Saving, ...]:
        """What other methods are expected to save of the error."""
        estimated = (
            (each.plan.sources, each.plan.n_weights, each.expected_rmse**2)
            for each in self.tensors
            if each.expected_rmse is not None
        )
        return savings(estimated, self.plan.method)

    @property
    def share_not_served(self) -> float:
        """Share of the estimated weights that got the default method's estimate."""
        estimated = (
            (each.plan.sources, each.plan.n_weights)
            for each in self.tensors
            if each.expected_rmse is not None
        )
        return share_not_served(estimated, self.plan.method)

    def to_json(self) -> dict[str, Any]:
        """The document that ``recover merge --json`` prints."""
        return {
            "output": str(self.plan.output),
            "method": self.plan.method,
            "inputs": [path_text(model.path) for model in self.plan.models],
            "n_weights": self.n_weights,
            "seconds": self.seconds,
            "weights_per_second": self.n_weights / self.seconds,
            "expected_mse_ratio": self.expected_mse_ratio,
            "conflict_fraction": self.conflict_fraction,
            "tensors": [
                {
                    "name": tensor.plan.name,
                    "shape": list(tensor.plan.dims),
                    "action": tensor.plan.action,
                    "types": list(tensor.plan.types),
                    "expected_rmse": tensor.expected_rmse,
                    "conflict_fraction": tensor.conflict_fraction,
                }
                for tensor in self.tensors
            ],
        }


def execute_merge(
    plan: MergePlan,
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
    resume: bool = False,
    tell: Tell | None = None,
    executor: Executor | None = None,
) -> MergeResult:
    """Carry out a plan.

    Parameters
    ----------
    plan : MergePlan
        From `plan_merge`.
    n_threads : int, optional
        Default: the cores that this process may use.
    progress : callable, optional
        ``progress(n_weights_done, n_weights)``, called from this thread.
    force : bool
        Write the output even if the inputs contradict each other, and replace a model's folder that
        is there already.
    resume : bool
        After an error or a signal, keep what is complete, beside the output; go on with what an
        interrupted execution of the same plan has kept.
    tell : callable, optional
        Called with a line for people on what `resume` takes over and keeps.
    executor : Executor, optional
        Who has the tasks done, perhaps by `recover.merge.work.carry_out` in other processes.
        Default: threads of this one.

    Returns
    -------
    MergeResult

    Raises
    ------
    OutputError
        If the output cannot be written.
    PlanError
        If a weight is not finite in any input, or does not fit into the output type, or the inputs
        contradict each other on more weights of a tensor than chance allows.
    UsageError
        If it was planned without an output.
    """
    start = time.perf_counter()
    how = HowToWork(n_threads, progress, executor)
    if not plan.parts:
        raise UsageError("the merge was planned without an output")
    if not force:
        check_relations(plan)
    with ExitStack() as stack:
        unfinished = stack.enter_context(Unfinished(plan, tell)) if resume else None
        before = 0.0 if unfinished is None else unfinished.seconds
        work = Merging(plan)
        gathering = Gathering(work, {} if unfinished is None else unfinished.done)
        indices = [i for i in range(len(plan.tensors)) if i not in gathering.done]
        outputs = stack.enter_context(outputs_of(work, unfinished, replaces=force))
        write_headers(work, outputs)
        save_if_due = None
        if unfinished is not None:
            save_if_due = stack.enter_context(unfinished.saving(outputs, gathering.take_finished))
        do_tasks(work, indices, outputs.files, gathering, how, save_if_due)
        plan, again, warnings = _conclude(plan, gathering.totals, force=force)
        if again:
            do_tasks(Merging(plan), again, outputs.files, gathering, how.without_progress())
    seconds = before + time.perf_counter() - start
    return _result(plan, seconds, gathering.totals, warnings)


def execute_merge_part(
    plan: MergePlan,
    shard: Shard,
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
    tell: Tell | None = None,
    executor: Executor | None = None,
) -> MergeResult | PartResult:
    """Carry out a part of a plan, and what is left if all other parts are done.

    Processes on any machines with a common file system do the parts, in any order; what they have
    done stays after an error or a signal, for the same part again.

    Parameters
    ----------
    plan : MergePlan
        From `plan_merge`, with the same parameters everywhere.
    shard : Shard
        Which part.
    n_threads, progress, force, tell, executor : optional
        As of `execute_merge`.

    Returns
    -------
    MergeResult or PartResult
        Of the whole merge from the process that ends last; the bytes, and the sums, are those of
        `execute_merge`. Others say what is missing.

    Raises
    ------
    OutputError
        If the output cannot be written, or another plan is carried out there.
    PlanError
        As of `execute_merge`; what is wrong with all of the weights is found at the end.
    """
    if not plan.parts:
        raise UsageError("the merge was planned without an output")
    work, how = Merging(plan), HowToWork(n_threads, progress, executor)
    if not force:
        check_relations(plan)
    with Sharing(work, shard, tell, replaces=force) as sharing:
        if sharing.is_complete:
            force, told = sharing.notes["force"], sharing.notes["again"]
            plan, _, warnings = _conclude(plan, sharing.totals, force=force)
            redone = {i: Merging(plan).read_sums(i, sums) for i, sums in told}
        elif (part := sharing.carry_out(how)) is not None:
            return part
        else:
            plan, again, warnings = _conclude(plan, sharing.totals, force=force)
            with outputs_of(work, sharing, replaces=force) as outputs:
                clear_gaps(work.units, work.files, outputs.files)
                write_headers(work, outputs)
                gathering, changed = Gathering(work, {}), Merging(plan)
                do_tasks(changed, again, outputs.files, gathering, how.without_progress())
                redone = gathering.totals
                told = [[i, sums.to_record()] for i, sums in redone.items()]
                sharing.announce(outputs.files, force=force, again=told)
    return _result(plan, sharing.seconds, sharing.totals | redone, warnings)


def _conclude(
    plan: MergePlan, totals: Totals, *, force: bool
) -> tuple[MergePlan, list[int], list[str]]:
    """What the sums of all tensors say: the plan for those that are done again, and warnings."""
    if not force:
        check_broken(plan, totals)
    names, warnings = contradicted(plan, totals, force=force)
    withdrawal = find_withdrawal(totals)
    warnings += withdrawal.warnings(plan)
    again = set(to_estimate_again(withdrawal, totals))
    plan, alone = with_finest_alone(without_certainty(plan, withdrawal), names)
    return plan, sorted(again | alone), warnings


def _broken_warnings(plan: MergePlan, totals: Totals) -> list[str]:
    """What people should know of tensors of which an input is broken, and others are not."""
    indices = [i for i, sums in sorted(totals.items()) if sums.broken]
    broken: dict[str, list[int]] = {}
    for index, paths in broken_inputs(plan, indices).items():
        broken.setdefault(some(paths), []).append(index)
    return [
        f"{tensors_of([quoted(plan.tensors[i].name) for i in own], 'holds', 'hold')} NaN or"
        f" infinite weights in {paths}: on {GROUP * sum(totals[i].broken for i in own):,} weights"
        " only the other inputs were taken"
        for paths, own in broken.items()
    ]


def _result(plan: MergePlan, seconds: float, totals: Totals, warnings: list[str]) -> MergeResult:
    """Turn the sums into what people read."""
    results: list[TensorResult] = []
    warnings = [*warnings, *warnings_of(plan, totals)]
    expected, n_merged, n_conflicts, n_exact = 0.0, 0, 0.0, 0
    alone = [0.0] * len(plan.models)
    warnings += _broken_warnings(plan, totals)
    for index, tensor in enumerate(plan.tensors):
        sums, n_weights, merged = totals[index], tensor.n_weights, tensor.action == "merge"
        contradicted = sums.conflicts / n_weights if tensor.compared or merged else None
        if sums.estimated is None:
            results.append(TensorResult(tensor, None, contradicted, sums.rounded))
            continue
        n_exact, tally = n_exact + sums.certain, sums.estimated
        n_merged += n_weights * merged
        n_conflicts += sums.conflicts * merged
        if not tells_errors(tensor.sources):
            results.append(TensorResult(tensor, None, contradicted, sums.rounded))
            continue
        expected += tally.variance
        of_input = dict(zip(tensor.used, tally.alone.tolist(), strict=True))
        errors = errors_alone(tensor.duplicate_of, tensor.descents, of_input)
        alone = [total + each for total, each in zip(alone, errors, strict=True)]
        rmse = math.sqrt(max(tally.variance, 0) / n_weights)
        results.append(TensorResult(tensor, rmse, contradicted, sums.rounded))
    best = min(alone)
    return MergeResult(
        plan=plan,
        seconds=seconds,
        expected_mse_ratio=expected / best if best > 0 else None,
        conflict_fraction=n_conflicts / n_merged if n_merged else None,
        n_exact=n_exact,
        tensors=tuple(results),
        warnings=tuple(warnings),
    )

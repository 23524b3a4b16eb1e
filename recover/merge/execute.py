"""Carrying out a plan: threads take tiles, estimate their weights and write their bytes."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._text import printable, quoted, some
from recover.errors import PlanError, QuantError
from recover.estimators import FIRST_ALONE, Tally, TileEstimator
from recover.estimators.error_calibration import Claims, find_claims
from recover.evidence.buffer import Evidence, Witness
from recover.execution.output import OutputFile, OutputFiles
from recover.execution.tiles import Progress, Tile, available_cores, for_each_tile
from recover.merge.certain import (
    Snapper,
    find_withdrawal,
    to_estimate_again,
    without_certainty,
)
from recover.merge.checks import check_relations, contradicted
from recover.merge.compare import (
    compare,
    compare_unproven,
    count_conflicts,
    step_for,
)
from recover.merge.exact import count_rounded, rounded_away, warnings_of
from recover.merge.finite import n_broken, n_not_finite
from recover.merge.plan import MergePlan, TensorPlan, with_finest_alone
from recover.merge.redundant import errors_alone
from recover.merge.resume import Tell, Unfinished
from recover.merge.sums import (
    BROKEN,
    CERTAIN,
    CONFLICTS,
    LIKENESS,
    N_OWN,
    NOT_FINITE,
    ROUNDED,
)
from recover.merge.tallies import Tallies
from recover.quants import (
    GROUP,
    TILE,
    F32Array,
    U8Array,
    quantize,
    type_by_name,
)

_FLOAT32_ROUNDING, _SMALLEST_NORMAL = np.float32(2.0**-24), np.float32(2.0**-126)


@dataclass(frozen=True)
class TensorResult:
    """What a merge expects of one tensor; None where it makes no claim.

    Attributes
    ----------
    plan : TensorPlan
        What was done.
    expected_rmse, conflict_fraction : float or None
        The error to expect, and the share of weights on which the inputs contradict each other.
    n_rounded : int
        Weights of a single input that the output's type does not hold exactly.
    """

    plan: TensorPlan
    expected_rmse: float | None
    conflict_fraction: float | None
    n_rounded: int = 0


@dataclass(frozen=True)
class MergeResult:
    """What a merge did.

    Attributes
    ----------
    plan : MergePlan
        What was carried out.
    seconds : float
        Wall time of the execution; of one that was interrupted, up to its last entry.
    expected_mse_ratio : float or None
        Expected mean square error over that of the best single input, predicted without the truth.
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

    @property
    def n_weights(self) -> int:
        """Weights in the output."""
        return sum(tensor.n_weights for tensor in self.plan.tensors)

    def to_json(self) -> dict[str, Any]:
        """The document that ``recover merge --json`` prints."""
        return {
            "output": str(self.plan.output),
            "method": self.plan.method,
            "inputs": [str(model.path) for model in self.plan.models],
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
        Write the output even if the inputs contradict each other.
    resume : bool
        After an error or a signal, keep what is complete, beside the output; go on with what an
        interrupted execution of the same plan has kept.
    tell : callable, optional
        Called with a line for people on what `resume` takes over and keeps.

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
    """
    start = time.perf_counter()
    if not force:
        check_relations(plan)
    with ExitStack() as stack:
        unfinished = stack.enter_context(Unfinished(plan, tell)) if resume else None
        before = 0.0 if unfinished is None else unfinished.seconds
        tallies = Tallies(plan, {} if unfinished is None else unfinished.done)
        sizes = [0 if i in tallies.done else t.n_weights for i, t in enumerate(plan.tensors)]
        outputs = stack.enter_context(_outputs(plan, unfinished))
        for file, output in zip(plan.files, outputs.files, strict=True):
            output.write_at(0, file.header)
        save_if_due = None
        if unfinished is not None:
            save_if_due = stack.enter_context(unfinished.saving(outputs, tallies.take_finished))
        n_workers, claims = n_threads or available_cores(), _claims(plan, sizes)
        workers = [_Worker(plan, claims, outputs, tallies) for _ in range(n_workers)]
        watch = _watch(plan, sum(sizes), progress, save_if_due)
        for_each_tile(sizes, [worker.work for worker in workers], watch)
        names, warnings = contradicted(plan, tallies.totals, force=force)
        withdrawal = find_withdrawal(tallies.totals)
        warnings += withdrawal.warnings(plan)
        again = set(to_estimate_again(withdrawal, tallies.totals))
        plan, alone = with_finest_alone(without_certainty(plan, withdrawal), names)
        if again := again | alone:
            sizes = [t.n_weights if i in again else 0 for i, t in enumerate(plan.tensors)]
            claims = _claims(plan, sizes)
            workers = [_Worker(plan, claims, outputs, tallies) for _ in workers]
            for_each_tile(sizes, [worker.work for worker in workers])
    seconds = before + time.perf_counter() - start
    return _result(plan, seconds, tallies.totals, warnings)


def _claims(plan: MergePlan, sizes: Sequence[int]) -> dict[int, Claims]:
    """What the expected errors of tensors are worth, by index, of those that are estimated now."""
    return {
        index: find_claims(tensor.witnesses, tensor.method, plan.estimate)
        for index, tensor in enumerate(plan.tensors)
        if sizes[index] and tensor.action != "copy" and tensor.witnesses
    }


def _outputs(plan: MergePlan, unfinished: Unfinished | None) -> OutputFiles:
    """All files of a plan; those of one that can be resumed lie where it says."""
    inputs = [part for model in plan.models for part in model.parts]
    outputs = OutputFiles(
        [
            OutputFile(
                file.path,
                file.n_bytes,
                inputs,
                partial=None if unfinished is None else unfinished.partial(file.path),
            )
            for file in plan.files
        ],
        len(plan.parts),
    )
    if unfinished is not None and unfinished.done:
        outputs.keep()
    return outputs


def _watch(
    plan: MergePlan, n_left: int, progress: Progress | None, save_if_due: Callable[[], None] | None
) -> Progress:
    """What is called while the tiles are worked on."""
    n_weights = sum(tensor.n_weights for tensor in plan.tensors)

    def watch(n_done: int, _n_left: int) -> None:
        if save_if_due is not None:
            save_if_due()
        if progress is not None:
            progress(n_weights - n_left + n_done, n_weights)

    return watch


class _Worker:
    """One thread's part: scratch memory, and what it needs to know of the tensor at hand."""

    def __init__(
        self,
        plan: MergePlan,
        claims: Mapping[int, Claims],
        outputs: OutputFiles,
        tallies: Tallies,
    ) -> None:
        self._plan = plan
        self._claims_of = claims
        self._outputs = outputs.files
        self._tallies = tallies
        self._estimate = np.empty(TILE, np.float32)
        self._deviation = np.empty(0 if plan.uncertainty is None else TILE, np.float32)
        self._snapper = Snapper(plan)
        self._encoded = np.empty(TILE * 4, np.uint8)
        self._known: tuple[tuple[Witness, ...], str] = (), ""
        self._index = -1

    def work(self, tile: Tile) -> None:
        """Write the bytes of one tile."""
        if tile.tensor != self._index:
            self._turn_to(tile.tensor)
        output = self._outputs[self._tensor.part]
        position = self._tensor.position + self._outtype.n_bytes(tile.start)
        if self._tensor.action == "copy":
            raw = self._sources[0].part(tile.start, tile.end)
            output.write_at(position, raw.data)
            self._tallies.add(tile, self._sums_of_copy(tile, raw))
            return
        estimate = self._estimate[: tile.end - tile.start]
        tally = self._fill(tile, estimate)
        encoded = self._encoded[: self._outtype.n_bytes(estimate.size)]
        try:
            quantize(estimate, self._outtype, out=encoded)
        except QuantError:
            raise self._not_finite(tile, estimate) from None
        output.write_at(position, encoded.data)
        rounded = rounded_away(estimate, encoded, self._outtype)
        if rounded or (tally is not None and tally.size > N_OWN):
            tally = _with_room(tally, N_OWN + Tally.size_for(len(self._sources)))
            Tally(tally[N_OWN:]).variance += rounded
        if self._is_known and (n_rounded := count_rounded(estimate, encoded, self._outtype)):
            tally = _with_room(tally, N_OWN)
            tally[ROUNDED] += n_rounded
        if self._plan.uncertainty is not None:
            bf16 = type_by_name("BF16")
            deviations = quantize(self._deviation[: estimate.size], bf16)
            position = self._plan.uncertainty.positions[self._tensor.name]
            self._outputs[-1].write_at(position + bf16.n_bytes(tile.start), deviations.data)
        self._tallies.add(tile, tally)

    def _turn_to(self, index: int) -> None:
        self._index = index
        self._tensor = self._plan.tensors[index]
        self._outtype = type_by_name(self._tensor.outtype)
        models = [self._plan.models[source] for source in self._tensor.sources]
        self._sources = [model.tensors[self._tensor.name] for model in models]
        self._is_known = self._tensor.is_known
        self._is_decoded = self._tensor.method == FIRST_ALONE
        self._comparison = compare(self._plan.models, self._tensor)
        if self._tensor.action == "copy" or self._is_known:
            return
        self._snapper.turn_to(self._tensor)
        known = self._tensor.witnesses, self._tensor.method
        if known != self._known:
            claims, self._known = self._claims_of[index], known
            self._estimator = TileEstimator(*known, self._plan.estimate, claims=claims)

    def _fill(self, tile: Tile, estimate: F32Array) -> NDArray[np.float64] | None:
        """Estimate the weights of one tile; their sums, if there is anything to estimate."""
        n = estimate.size
        if self._is_known:
            self._sources[0].read(tile.start, tile.end, estimate)
            self._deviation[:n] = 0
            return self._compare(tile)
        tally = _with_room(self._compare(tile), N_OWN + Tally.size_for(len(self._sources)))
        deviation, estimated = self._deviation[:n], Tally(tally[N_OWN:])
        estimated += self._estimator.estimate(
            self._sources, tile.start, tile.end, estimate, deviation
        )
        evidence = self._estimator.evidence
        tally[BROKEN] = n_broken(evidence)
        if self._tensor.action == "merge":
            tally[CONFLICTS] += self._n_conflicts(evidence, estimated)
            likeness = compare_unproven(evidence)
            tally[LIKENESS] += likeness
        if self._is_decoded:  # a product with a side scale is rounded once, not twice
            self._sources[0].read(tile.start, tile.end, estimate)
        if deviation.size:
            # Zero says that a weight is certain, and no estimate is more exact than float32 is.
            least = np.maximum(np.abs(estimate) * _FLOAT32_ROUNDING, _SMALLEST_NORMAL)
            np.maximum(deviation, least, out=deviation)
        if self._snapper.is_on:
            stored = [each.part(tile.start, tile.end) for each in self._sources]
            self._snapper.apply(evidence, stored, estimate, deviation, tally)
        return tally

    def _n_conflicts(self, evidence: Evidence, estimated: Tally) -> float:
        """Weights on which the merged inputs contradict each other, as the estimator found."""
        if self._estimator.estimator.sees_conflicts:
            return estimated.n_conflicts
        return float(count_conflicts(evidence, step_for(self._tensor.n_weights)))

    def _sums_of_copy(self, tile: Tile, raw: U8Array) -> NDArray[np.float64] | None:
        """The merge's own sums of a tile that is copied; None if there is nothing to tell."""
        sums, n = self._compare(tile), n_not_finite(raw, self._outtype)
        if n:
            sums = _with_room(sums, N_OWN)
            sums[NOT_FINITE] = n
        return sums

    def _compare(self, tile: Tile) -> NDArray[np.float64] | None:
        """The merge's own sums, if there are inputs that take no part."""
        if self._comparison is None:
            return None
        sums = np.zeros(N_OWN)
        sums[CONFLICTS] = self._comparison.n_conflicts(tile.start, tile.end)
        sums[LIKENESS] = self._comparison.likeness(tile.start, tile.end)
        return sums

    def _not_finite(self, tile: Tile, estimate: F32Array) -> PlanError:
        """Say why a tile cannot be stored."""
        for source, tensor in zip(self._tensor.sources, self._sources, strict=True):
            if not np.isfinite(tensor.read(tile.start, tile.end)).all():
                path = self._plan.models[source].path
                what = f"tensor {quoted(tensor.name)} holds NaN or infinite weights"
                return PlanError(f"{printable(path)}: {what}")
        largest = np.abs(estimate).max()
        return PlanError(
            f"tensor {quoted(self._tensor.name)}: a weight of {largest:.6g} is beyond the range of"
            f" {self._outtype.name} (65504 for F16); use --outtype bf16 or --outtype f32"
        )


def _with_room(tally: NDArray[np.float64] | None, size: int) -> NDArray[np.float64]:
    """The sums so far in an array of that size at least; the rest is 0."""
    longer = np.zeros(max(size, 0 if tally is None else tally.size))
    if tally is not None:
        longer[: tally.size] = tally
    return longer


def _broken_inputs(plan: MergePlan, tensor: TensorPlan) -> list[str]:
    """The inputs that have NaN or infinite values of a tensor."""
    found = []
    for source in tensor.sources:
        model = plan.models[source]
        stored = model.tensors[tensor.name]
        for start in range(0, tensor.n_weights, TILE):
            end = min(start + TILE, tensor.n_weights)
            if not np.isfinite(stored.read(start, end)).all():
                found.append(printable(model.path))
                break
    return found


def _result(
    plan: MergePlan,
    seconds: float,
    tallies: dict[int, NDArray[np.float64]],
    warnings: list[str],
) -> MergeResult:
    """Turn the sums into what people read."""
    results: list[TensorResult] = []
    warnings = [*warnings, *warnings_of(plan, tallies)]
    expected, n_merged, n_conflicts, n_exact = 0.0, 0, 0.0, 0
    alone = np.zeros(len(plan.models))
    for index, tensor in enumerate(plan.tensors):
        sums = tallies.get(index)
        n_weights = tensor.n_weights
        n_rounded = 0 if sums is None else int(sums[ROUNDED])
        contradicted = None if sums is None else float(sums[CONFLICTS] / n_weights)
        if not tensor.compared and tensor.action != "merge":
            contradicted = None
        if sums is None or sums.size == N_OWN:
            results.append(TensorResult(tensor, None, contradicted, n_rounded))
            continue
        if sums[BROKEN]:
            warnings.append(
                f"tensor {quoted(tensor.name)} holds NaN or infinite weights in"
                f" {some(_broken_inputs(plan, tensor))}: on {GROUP * int(sums[BROKEN]):,} weights"
                " only the other inputs were taken"
            )
        n_exact, tally = n_exact + int(sums[CERTAIN]), Tally(sums[N_OWN:])
        merged = tensor.action == "merge"
        n_merged += n_weights * merged
        expected, n_conflicts = expected + tally.variance, n_conflicts + sums[CONFLICTS] * merged
        of_source = dict(zip(tensor.sources, tally.alone, strict=True))
        alone += errors_alone(tensor.twins, tensor.descents, of_source)
        rmse = math.sqrt(max(tally.variance, 0) / n_weights)
        results.append(TensorResult(tensor, rmse, contradicted, n_rounded))
    best = float(alone.min())
    return MergeResult(
        plan=plan,
        seconds=seconds,
        expected_mse_ratio=expected / best if best > 0 else None,
        conflict_fraction=n_conflicts / n_merged if n_merged else None,
        n_exact=n_exact,
        tensors=tuple(results),
        warnings=tuple(warnings),
    )

"""Carrying out a plan: threads take tiles, estimate their weights and write their bytes."""

import math
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover.bounds.plan import confines
from recover.cells import intersect_cells
from recover.claims import find_claims
from recover.errors import PlanError, QuantError
from recover.estimators import Request, estimator
from recover.evidence import Evidence, EvidenceBuffer, Witness
from recover.gguf.text import printable, quoted, some
from recover.gguf.writer import OutputFile, OutputFiles
from recover.inputs.relations import explained_by_rounding, find_relations
from recover.lattice import snap
from recover.merge.compare import (
    Comparison,
    compare,
    count_conflicts,
    count_unlike_inputs,
    step_for,
)
from recover.merge.plan import MergePlan, TensorPlan
from recover.merge.redundant import sentence
from recover.merge.resume import Sums, Tell, Unfinished
from recover.quants import (
    GROUP,
    TILE,
    F32Array,
    FloatType,
    TensorType,
    U8Array,
    dequantize,
    quantize,
    type_by_name,
)
from recover.tiles import Progress, Tile, available_cores, for_each_tile, n_tiles

# Quantizations of one original contradict each other on no weight at all.
_TOLERATED_CONFLICTS = 1e-5
_TOLERATED_WEIGHTS = 2
_N_LOOKED_AT = 6  # tensors that tell how the inputs belong together
# Sums of the merge itself that precede those of the estimator: the weights that are certain, the
# groups of 16 of which an input has no finite values, the weights on which inputs contradict each
# other, and those in superblocks of which they say unrelated things.
_CERTAIN, _BROKEN, _CONFLICTS, _UNLIKE = range(4)
_N_OWN = 4


@dataclass(frozen=True)
class TensorResult:
    """What a merge expects of one tensor; None where it makes no claim."""

    plan: TensorPlan
    expected_rmse: float | None
    conflict_fraction: float | None


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
        _check_relations(plan)
    with ExitStack() as stack:
        unfinished = stack.enter_context(Unfinished(plan, tell)) if resume else None
        before = 0.0 if unfinished is None else unfinished.seconds
        tallies = _Tallies(plan, {} if unfinished is None else unfinished.done)
        sizes = [0 if i in tallies.done else t.n_weights for i, t in enumerate(plan.tensors)]
        outputs = stack.enter_context(_outputs(plan, unfinished))
        for file, output in zip(plan.files, outputs.files, strict=True):
            output.write_at(0, file.header)
        save_if_due = None
        if unfinished is not None:
            save_if_due = stack.enter_context(unfinished.saving(outputs, tallies.take_finished))
        workers = [_Worker(plan, outputs, tallies) for _ in range(n_threads or available_cores())]
        watch = _watch(plan, sum(sizes), progress, save_if_due)
        for_each_tile(sizes, [worker.work for worker in workers], watch)
        if not force:
            _check_conflicts(plan, tallies.totals)
        warnings = _warn_of_conflicts(plan, tallies.totals)
    result = _result(plan, before + time.perf_counter() - start, tallies.totals)
    return replace(result, warnings=(*warnings, *result.warnings))


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


def _check_relations(plan: MergePlan) -> None:
    """Refuse inputs that were not quantized from one original, as a look at some tensors tells.

    All weights are compared while they are merged; this one saves the time.
    """
    for descent in plan.redundant:
        raise PlanError(
            f"{sentence(plan.models, descent)}, not from the original: it tells nothing new; leave"
            " it out, or go on without it with --force"
        )
    merged = [tensor for tensor in plan.tensors if tensor.action == "merge"]
    if not merged:
        return
    places = np.linspace(0, len(merged) - 1, min(len(merged), _N_LOOKED_AT)).astype(int)
    descents = {merged[i].name: merged[i].descents for i in places}
    for relation in find_relations(plan.models, descents):
        pair = [printable(plan.models[i].path) for i in (relation.first, relation.second)]
        if not relation.is_compatible:
            named = [quoted(name) for name in relation.tensors]
            raise PlanError(
                f"{pair[1]} and {pair[0]} are not quantized from the same original"
                f" ({relation.kind}): they contradict each other on {some(named)}; recover inspect"
                " says how they differ, --force takes the finest input there"
            )


def _check_conflicts(plan: MergePlan, sums: dict[int, NDArray[np.float64]]) -> None:
    """Refuse inputs that cannot come from one original, rounded at most before it was quantized."""
    found = _contradictions(plan, sums)
    refused = [
        each
        for each in found
        if each.share > _TOLERATED_CONFLICTS and each.n_weights > _TOLERATED_WEIGHTS
    ]
    if refused:
        raise PlanError(
            f"the inputs contradict each other on tensors {some([str(each) for each in refused])}:"
            " they are not quantized from the same original, or by an unknown quantizer; recover"
            " inspect says which and how they differ, --force takes the finest input there"
        )


def _warn_of_conflicts(plan: MergePlan, sums: dict[int, NDArray[np.float64]]) -> list[str]:
    """What people should know of contradictions that were no reason to refuse."""
    return [
        f"tensor {quoted(tensor.name)}: the inputs contradict each other on about"
        f" {n_weights:,} of {tensor.n_weights:,} weights, so that a part of it is not from the same"
        " original, or a file is damaged; recover inspect compares the files"
        for tensor, n_weights in _contradictions(plan, sums)
    ]


class _Contradiction(NamedTuple):
    """A tensor on which inputs contradict each other."""

    tensor: TensorPlan
    n_weights: int
    """Weights with empty intersections of cells, or in superblocks that have nothing in common."""

    @property
    def share(self) -> float:
        """Of the tensor's weights."""
        return self.n_weights / self.tensor.n_weights

    def __str__(self) -> str:
        return f"{quoted(self.tensor.name)} ({100 * self.share:.3g}%)"


def _contradictions(plan: MergePlan, sums: dict[int, NDArray[np.float64]]) -> list[_Contradiction]:
    """The tensors on which inputs contradict each other, but for rounding; the worst first."""
    found = [
        _Contradiction(plan.tensors[i], int(each[_CONFLICTS] + each[_UNLIKE]))
        for i, each in sums.items()
        if each[_CONFLICTS] or each[_UNLIKE]
    ]
    inputs = {each.tensor.name: (*each.tensor.sources, *each.tensor.compared) for each in found}
    unlike = any(each[_UNLIKE] for each in sums.values())
    if found and not unlike and explained_by_rounding(plan.models, inputs):
        return []
    return sorted(found, key=lambda each: -each.share)


class _Tallies:
    """Sums per tensor, added up in the order of the tiles.

    First `_N_OWN` of the merge itself, then those of the estimator (see `recover.estimators`).
    So the figures do not depend on the threads; tiles are kept apart only while their tensor is
    worked on. `done` are the tensors that were complete before, with their sums.
    """

    def __init__(self, plan: MergePlan, done: Sums) -> None:
        self.done = frozenset(done)
        self.totals = {index: sums for index, sums in done.items() if sums is not None}
        self._plan = plan
        self._lock = threading.Lock()
        self._open: dict[int, dict[int, NDArray[np.float64] | None]] = {}
        self._finished: Sums = {}

    def add(self, tile: Tile, tally: NDArray[np.float64] | None) -> None:
        """Take the sums of one tile that is written; None where nothing is estimated."""
        with self._lock:
            tallies = self._open.setdefault(tile.tensor, {})
            tallies[tile.start] = tally
            if len(tallies) == n_tiles(self._plan.tensors[tile.tensor].n_weights):
                in_order = [sums for _, sums in sorted(tallies.items()) if sums is not None]
                self._finished[tile.tensor] = total = np.sum(in_order, axis=0) if in_order else None
                if total is not None:
                    self.totals[tile.tensor] = total
                del self._open[tile.tensor]

    def take_finished(self) -> Sums:
        """The tensors of which all tiles were written since the last call."""
        with self._lock:
            finished, self._finished = self._finished, {}
            return finished


class _Worker:
    """One thread's part: scratch memory, and what it needs to know of the tensor at hand."""

    def __init__(self, plan: MergePlan, outputs: OutputFiles, tallies: _Tallies) -> None:
        self._plan = plan
        self._outputs = outputs.files
        self._tallies = tallies
        self._estimate = np.empty(TILE, np.float32)
        self._deviation = np.empty(0 if plan.uncertainty is None else TILE, np.float32)
        self._bounds = np.empty((2, 0), np.float32)
        self._encoded = np.empty(TILE * 4, np.uint8)
        self._witnesses: list[Witness] = []
        self._buffer = EvidenceBuffer([])
        self._index = -1

    def work(self, tile: Tile) -> None:
        """Write the bytes of one tile."""
        if tile.tensor != self._index:
            self._turn_to(tile.tensor)
        output = self._outputs[self._tensor.part]
        position = self._tensor.position + self._outtype.n_bytes(tile.start)
        if self._tensor.action == "copy":
            output.write_at(position, self._sources[0].part(tile.start, tile.end).data)
            self._tallies.add(tile, self._compare(tile))
            return
        estimate = self._estimate[: tile.end - tile.start]
        tally = self._fill(tile, estimate)
        encoded = self._encoded[: self._outtype.n_bytes(estimate.size)]
        try:
            quantize(estimate, self._outtype, out=encoded)
        except QuantError:
            raise self._not_finite(tile, estimate) from None
        output.write_at(position, encoded.data)
        if rounded := _rounded_away(estimate, encoded, self._outtype):
            tally = _with_room(tally, _N_OWN + 2 + len(self._sources))
            tally[_N_OWN] += rounded
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
        self._comparison = self._comparison_of(self._tensor)
        if self._tensor.action == "copy" or self._is_known:
            return
        method = self._tensor.method
        self._estimator = estimator(method)
        self._is_decoded = method == "best" and self._sources[0].scales is not None
        self._significand_bits = self._plan.significand_bits(self._tensor)
        if self._significand_bits and not self._bounds.size:
            self._bounds = np.empty((2, TILE), np.float32)
            self._deviation = np.empty(TILE, np.float32)
        witnesses = [self._plan.witness(self._tensor, source) for source in self._tensor.sources]
        self._claims = find_claims(tuple(witnesses), method, self._plan.estimate)
        if witnesses != self._witnesses:
            self._buffer, self._witnesses = EvidenceBuffer(witnesses), witnesses

    def _fill(self, tile: Tile, estimate: F32Array) -> NDArray[np.float64] | None:
        """Estimate the weights of one tile; their sums, if there is anything to estimate."""
        n = estimate.size
        if self._is_known:
            self._sources[0].read(tile.start, tile.end, estimate)
            self._deviation[:n] = 0
            return self._compare(tile)
        tally = np.zeros(_N_OWN + 2 + len(self._sources))
        if (compared := self._compare(tile)) is not None:
            tally[:_N_OWN] = compared
        evidence = self._buffer.read(self._sources, tile.start, tile.end)
        tally[_BROKEN] = _n_broken(evidence)
        request = Request(self._plan.estimate, self._deviation[:n])
        self._estimator.estimate(evidence, estimate, tally[_N_OWN:], request)
        self._claims.correct(tally[_N_OWN:], estimate, request.deviation)
        if self._tensor.action == "merge":
            tally[_CONFLICTS] += self._n_conflicts(evidence, tally)
            tally[_UNLIKE] += count_unlike_inputs(evidence)
        if self._is_decoded:  # a product with a side scale is rounded once, not twice
            self._sources[0].read(tile.start, tile.end, estimate)
        if self._significand_bits:
            lower, upper = self._bounds[:, :n]
            intersect_cells(evidence, lower, upper)
            bits, rounds_all = self._significand_bits, self._plan.snaps
            n_certain, change = snap(lower, upper, bits, rounds_all, estimate, self._deviation[:n])
            tally[_CERTAIN] += n_certain
            tally[_N_OWN] += change
        return tally

    def _n_conflicts(self, evidence: Evidence, tally: NDArray[np.float64]) -> float:
        """Weights on which the merged inputs contradict each other, as the estimator found."""
        if self._estimator.SEES_CONFLICTS:
            return float(tally[_N_OWN + 1])
        return float(count_conflicts(evidence, step_for(self._tensor.n_weights)))

    def _comparison_of(self, tensor: TensorPlan) -> Comparison | None:
        """What compares the inputs that take no part with the one that is taken; None if none."""
        if not tensor.compared:
            return None
        models = [self._plan.models[i] for i in (tensor.sources[0], *tensor.compared)]
        inputs = [model.tensors[tensor.name] for model in models]
        confining = [confines(*each) for each in zip(models, inputs, strict=True)]
        return compare(
            inputs,
            confining,
            is_exact=not isinstance(inputs[0].type, FloatType) and tensor.is_known,
        )

    def _compare(self, tile: Tile) -> NDArray[np.float64] | None:
        """The merge's own sums, if there are inputs that take no part."""
        if self._comparison is None:
            return None
        sums = np.zeros(_N_OWN)
        sums[[_CONFLICTS, _UNLIKE]] = self._comparison.count(tile.start, tile.end)
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
    """The sums so far in an array of that size; the rest is 0."""
    longer = np.zeros(size)
    if tally is not None:
        longer[: tally.size] = tally
    return longer


def _n_broken(evidence: Evidence) -> int:
    """Groups of 16 weights of which an input has NaN or infinite values."""
    if np.isfinite(evidence.scale.sum() + evidence.offset.sum() + evidence.values.sum()):
        return 0
    sound = np.isfinite(evidence.scale) & np.isfinite(evidence.offset)
    n_others, n_groups = len(evidence.values), evidence.scale.shape[1]
    values = np.isfinite(evidence.values).reshape(n_others, n_groups, GROUP)
    return int(np.count_nonzero(~(sound.all(0) & values.all((0, 2)))))


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


def _rounded_away(estimate: F32Array, encoded: U8Array, outtype: TensorType) -> float:
    """The sum of the square errors that the output's type adds; F16 and F32 add next to nothing."""
    if outtype.name in ("F16", "F32"):
        return 0.0
    off = dequantize(encoded, outtype).astype(np.float64) - estimate
    return float(off @ off)


def _result(
    plan: MergePlan, seconds: float, tallies: dict[int, NDArray[np.float64]]
) -> MergeResult:
    """Turn the sums into what people read."""
    results: list[TensorResult] = []
    warnings: list[str] = []
    expected, n_merged, n_conflicts, n_exact = 0.0, 0, 0.0, 0
    alone = np.zeros(len(plan.models))
    for index, tensor in enumerate(plan.tensors):
        sums = tallies.get(index)
        n_weights = tensor.n_weights
        contradicted = None if sums is None else float(sums[_CONFLICTS] / n_weights)
        if sums is None or len(sums) == _N_OWN:
            results.append(TensorResult(tensor, None, contradicted))
            continue
        if sums[_BROKEN]:
            warnings.append(
                f"tensor {quoted(tensor.name)} holds NaN or infinite weights in"
                f" {some(_broken_inputs(plan, tensor))}: on {GROUP * int(sums[_BROKEN]):,}"
                " weights only the other inputs were taken"
            )
        n_exact, tally = n_exact + int(sums[_CERTAIN]), sums[_N_OWN:]
        merged = tensor.action == "merge"
        n_merged += n_weights * merged
        expected, n_conflicts = expected + tally[0], n_conflicts + sums[_CONFLICTS] * merged
        of_source = dict(zip(tensor.sources, tally[2:], strict=True))
        if merged:
            witnesses = [plan.witness(tensor, source) for source in tensor.sources]
            order = EvidenceBuffer(witnesses).order
            of_source = {s: tally[2 + slot] for s, slot in zip(tensor.sources, order, strict=True)}
        # An input that took no part here says at best what the finest one says.
        alone += [of_source.get(twin, max(of_source.values())) for twin in tensor.twins]
        conflicts = contradicted if merged or tensor.compared else None
        results.append(TensorResult(tensor, math.sqrt(max(tally[0], 0) / n_weights), conflicts))
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

"""Carrying out a plan: threads take tiles, estimate their weights and write their bytes."""

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover.errors import PlanError
from recover.estimators import Estimator, estimator
from recover.evidence import EvidenceBuffer, Witness
from recover.gguf.writer import OutputFile
from recover.merge.plan import MergePlan, TensorPlan
from recover.quants import TILE, FloatType, TensorType, U8Array, dequantize, type_by_name
from recover.tiles import Progress, Tile, available_cores, for_each_tile, n_tiles


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
        Wall time of the execution.
    expected_mse_ratio : float or None
        Expected mean square error over that of the best single input, predicted without the truth.
    conflict_fraction : float or None
        Share of the merged weights on which the inputs contradict each other; None if the method
        does not look.
    tensors : tuple of TensorResult
        In output order.
    """

    plan: MergePlan
    seconds: float
    expected_mse_ratio: float | None
    conflict_fraction: float | None
    tensors: tuple[TensorResult, ...]

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
    plan: MergePlan, *, n_threads: int | None = None, progress: Progress | None = None
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

    Returns
    -------
    MergeResult

    Raises
    ------
    OutputError
        If the output cannot be written.
    PlanError
        If a weight is not finite, or does not fit into the output type.
    """
    start = time.perf_counter()
    inputs = [part for model in plan.models for part in model.parts]
    tallies = _Tallies(plan)
    with OutputFile(plan.output, plan.n_bytes, inputs) as output:
        output.write_at(0, plan.header)
        workers = [_Worker(plan, output, tallies) for _ in range(n_threads or available_cores())]
        sizes = [tensor.n_weights for tensor in plan.tensors]
        for_each_tile(sizes, [worker.work for worker in workers], progress)
    return _result(plan, time.perf_counter() - start, tallies.totals)


class _Tallies:
    """Sums per tensor (see `recover.estimators`), added up in the order of the tiles.

    So the figures do not depend on the threads; tiles are kept apart only while their tensor is
    worked on.
    """

    def __init__(self, plan: MergePlan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._open: dict[int, list[NDArray[np.float64] | None]] = {}
        self.totals: dict[int, NDArray[np.float64]] = {}

    def add(self, tile: Tile, tally: NDArray[np.float64]) -> None:
        """Take the sums of one tile."""
        with self._lock:
            size = n_tiles(self._plan.tensors[tile.tensor].n_weights)
            tallies = self._open.setdefault(tile.tensor, [None] * size)
            tallies[tile.start // TILE] = tally
            done = [each for each in tallies if each is not None]
            if len(done) == size:
                self.totals[tile.tensor] = np.sum(done, axis=0)
                del self._open[tile.tensor]


class _Worker:
    """One thread's part: scratch memory, and the evidence buffer of the tensor at hand."""

    def __init__(self, plan: MergePlan, output: OutputFile, tallies: _Tallies) -> None:
        self._plan = plan
        self._output = output
        self._tallies = tallies
        self._estimate = np.empty(TILE, np.float32)
        self._encoded = np.empty(TILE * 4, np.uint8)
        self._witnesses: list[Witness] = []
        self._buffer = EvidenceBuffer([])
        self._estimator: Estimator = estimator(plan.method)
        self._alone: Estimator = estimator("best")

    def work(self, tile: Tile) -> None:
        """Write the bytes of one tile."""
        tensor = self._plan.tensors[tile.tensor]
        outtype = type_by_name(tensor.outtype)
        if tensor.action == "copy":
            encoded = self._raw(tensor, tensor.sources[0], tile)
        else:
            encoded = self._encode(tensor, outtype, tile)
        self._output.write_at(tensor.position + outtype.n_bytes(tile.start), encoded.data)

    def _raw(self, tensor: TensorPlan, source: int, tile: Tile) -> U8Array:
        stored = self._plan.models[source].tensors[tensor.name]
        return stored.raw[stored.type.n_bytes(tile.start) : stored.type.n_bytes(tile.end)]

    def _encode(self, tensor: TensorPlan, outtype: TensorType, tile: Tile) -> U8Array:
        """Estimate the weights of one tile; their bytes in the output's type."""
        assert isinstance(outtype, FloatType)
        raws = [self._raw(tensor, source, tile) for source in tensor.sources]
        estimate = self._estimate[: tile.end - tile.start]
        kind = self._plan.models[tensor.sources[0]].tensors[tensor.name].type
        if isinstance(kind, FloatType):
            kind.decode(raws[0], estimate)
        else:
            self._combine(tensor, tile, raws, estimate)
        encoded = self._encoded[: outtype.n_bytes(estimate.size)]
        if outtype.encode(estimate, encoded):
            raise self._not_finite(tensor, raws, estimate)
        return encoded

    def _combine(
        self, tensor: TensorPlan, tile: Tile, raws: Sequence[U8Array], estimate: NDArray[np.float32]
    ) -> None:
        witnesses = [self._plan.witness(tensor, source) for source in tensor.sources]
        if witnesses != self._witnesses:
            self._buffer, self._witnesses = EvidenceBuffer(witnesses), witnesses
        tally = np.zeros(2 + len(witnesses))
        method = self._estimator if len(witnesses) > 1 else self._alone
        method.estimate(self._buffer.load(raws, estimate.size), estimate, tally)
        self._tallies.add(tile, tally)

    def _not_finite(
        self, tensor: TensorPlan, raws: Sequence[U8Array], estimate: NDArray[np.float32]
    ) -> PlanError:
        """Say why a tile cannot be stored."""
        for source, raw in zip(tensor.sources, raws, strict=True):
            model = self._plan.models[source]
            if not np.isfinite(dequantize(raw, model.tensors[tensor.name].type)).all():
                return PlanError(
                    f"{model.path}: tensor {tensor.name!r} holds NaN or infinite weights"
                )
        worst = np.abs(estimate).max()
        return PlanError(
            f"tensor {tensor.name!r}: a weight of {worst:.6g} is beyond the range of"
            f" {tensor.outtype} (65504 for F16); use --outtype bf16 or --outtype f32"
        )


def _result(
    plan: MergePlan, seconds: float, tallies: dict[int, NDArray[np.float64]]
) -> MergeResult:
    """Turn the sums into what people read."""
    sees_conflicts = estimator(plan.method).SEES_CONFLICTS
    results: list[TensorResult] = []
    expected, n_merged, n_conflicts = 0.0, 0, 0.0
    alone = np.zeros(len(plan.models))
    for index, tensor in enumerate(plan.tensors):
        tally = tallies.get(index)
        if tally is None:
            results.append(TensorResult(tensor, None, None))
            continue
        n_weights = tensor.n_weights
        merged = tensor.action == "merge"
        n_merged += n_weights * merged
        expected, n_conflicts = expected + tally[0], n_conflicts + tally[1]
        order = EvidenceBuffer([plan.witness(tensor, source) for source in tensor.sources]).order
        of_source = {s: tally[2 + slot] for s, slot in zip(tensor.sources, order, strict=True)}
        # An input that took no part here says at best what the finest one says.
        alone += [of_source.get(twin, max(of_source.values())) for twin in tensor.twins]
        conflicts = float(tally[1] / n_weights) if sees_conflicts and merged else None
        results.append(TensorResult(tensor, math.sqrt(tally[0] / n_weights), conflicts))
    best = float(alone.min())
    return MergeResult(
        plan=plan,
        seconds=seconds,
        expected_mse_ratio=expected / best if best > 0 else None,
        conflict_fraction=n_conflicts / n_merged if sees_conflicts and n_merged else None,
        tensors=tuple(results),
    )

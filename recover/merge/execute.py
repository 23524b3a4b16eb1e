"""Carrying out a plan: threads take tiles, each reads, estimates, encodes and writes its own bytes."""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover.errors import PlanError, QuantError
from recover.estimators import Estimator, estimator
from recover.evidence import EvidenceBuffer, Witness
from recover.gguf.writer import OutputFile
from recover.merge.plan import MergePlan, TensorPlan
from recover.quants import TILE, FloatType, TensorType, U8Array, dequantize, type_by_name

Progress = Callable[[int, int], None]
"""Called now and then with the number of weights done and of all weights."""

_POLL_SECONDS = 0.1


def available_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
        Share of the merged weights on which the inputs contradict each other; None if the method does
        not look.
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
        return sum(math.prod(tensor.dims) for tensor in self.plan.tensors)

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
    n_threads = n_threads or available_cores()
    inputs = [part for model in plan.models for part in model.parts]
    with OutputFile(plan.output, plan.n_bytes, inputs) as output:
        output.write_at(0, plan.header)
        queue = _TileQueue(plan)
        workers = [_Worker(plan, output, queue) for _ in range(n_threads)]
        _run(workers, queue, progress)
    tallies: dict[int, NDArray[np.float64]] = {}
    for worker in workers:
        for index, tally in worker.tallies.items():
            tallies[index] = tallies[index] + tally if index in tallies else tally
    return _result(plan, time.perf_counter() - start, tallies)


def _run(workers: Sequence["_Worker"], queue: "_TileQueue", progress: Progress | None) -> None:
    """Let the workers empty the queue; an error or an interrupt stops them all."""
    with ThreadPoolExecutor(len(workers), thread_name_prefix="recover") as pool:
        pending = {pool.submit(worker.work) for worker in workers}
        try:
            while pending:
                finished, pending = wait(pending, _POLL_SECONDS, FIRST_EXCEPTION)
                if progress is not None:
                    progress(queue.n_taken, queue.n_weights)
                for future in finished:
                    future.result()
        finally:
            queue.close()


class _TileQueue:
    """Hands out (tensor's index, first weight, one past the last), in output order."""

    def __init__(self, plan: MergePlan) -> None:
        self._lock = threading.Lock()
        self._tiles = self._cut(plan)
        self._closed = False
        self.n_taken = 0
        self.n_weights = sum(math.prod(tensor.dims) for tensor in plan.tensors)

    @staticmethod
    def _cut(plan: MergePlan) -> Iterator[tuple[int, int, int]]:
        for index, tensor in enumerate(plan.tensors):
            n_weights = math.prod(tensor.dims)
            for start in range(0, n_weights, TILE):
                yield index, start, min(start + TILE, n_weights)

    def close(self) -> None:
        self._closed = True

    def take(self) -> tuple[int, int, int] | None:
        with self._lock:
            tile = None if self._closed else next(self._tiles, None)
            if tile is not None:
                self.n_taken += tile[2] - tile[1]
            return tile


class _Worker:
    """One thread's part: scratch memory, and sums per tensor."""

    def __init__(self, plan: MergePlan, output: OutputFile, queue: _TileQueue) -> None:
        self._plan = plan
        self._output = output
        self._queue = queue
        self._estimate = np.empty(TILE, np.float32)
        self._encoded = np.empty(TILE * 4, np.uint8)
        self._witnesses: list[Witness] = []
        self._buffer = EvidenceBuffer([])
        self._estimator: Estimator = estimator(plan.method)
        self._fallback: Estimator = estimator("best")
        self.tallies: dict[int, NDArray[np.float64]] = {}

    def work(self) -> None:
        """Take tiles until there are none."""
        while (tile := self._queue.take()) is not None:
            index, start, end = tile
            tensor = self._plan.tensors[index]
            outtype = type_by_name(tensor.outtype)
            position = tensor.position + outtype.n_bytes(start)
            if tensor.action == "copy":
                self._output.write_at(position, self._raw(tensor, tensor.sources[0], start, end).data)
            else:
                self._output.write_at(position, self._encode(index, tensor, outtype, start, end).data)

    def _raw(self, tensor: TensorPlan, source: int, start: int, end: int) -> U8Array:
        stored = self._plan.models[source].tensors[tensor.name]
        return stored.raw[stored.type.n_bytes(start) : stored.type.n_bytes(end)]

    def _encode(
        self, index: int, tensor: TensorPlan, outtype: TensorType, start: int, end: int
    ) -> U8Array:
        """Estimate one tile; its bytes in the output's type."""
        assert isinstance(outtype, FloatType)
        raws = [self._raw(tensor, source, start, end) for source in tensor.sources]
        estimate = self._estimate[: end - start]
        kind = self._plan.models[tensor.sources[0]].tensors[tensor.name].type
        if isinstance(kind, FloatType):
            kind.decode(raws[0], estimate)
        else:
            self._combine(index, tensor, raws, estimate)
        encoded = self._encoded[: outtype.n_bytes(end - start)]
        if outtype.encode(estimate, encoded):
            raise self._not_finite(tensor, raws, estimate)
        return encoded

    def _combine(
        self, index: int, tensor: TensorPlan, raws: Sequence[U8Array], estimate: NDArray[np.float32]
    ) -> None:
        witnesses = [self._plan.witness(tensor, source) for source in tensor.sources]
        if witnesses != self._witnesses:
            self._buffer, self._witnesses = EvidenceBuffer(witnesses), witnesses
        if index not in self.tallies:
            self.tallies[index] = np.zeros(2 + len(witnesses))
        evidence = self._buffer.load(raws, estimate.size)
        method = self._estimator if len(witnesses) > 1 else self._fallback
        method.estimate(evidence, estimate, self.tallies[index])

    def _not_finite(
        self, tensor: TensorPlan, raws: Sequence[U8Array], estimate: NDArray[np.float32]
    ) -> PlanError:
        """Say why a tile cannot be stored."""
        for source, raw in zip(tensor.sources, raws, strict=True):
            model = self._plan.models[source]
            if not np.isfinite(dequantize(raw, model.tensors[tensor.name].type)).all():
                return PlanError(f"{model.path}: tensor {tensor.name!r} holds NaN or infinite weights")
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
        n_weights = math.prod(tensor.dims)
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

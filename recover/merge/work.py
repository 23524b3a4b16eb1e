"""Doing the tasks of a merge: the weights of a range are estimated, and their bytes written."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from recover._compiled.memory import aligned
from recover._text import printable, quoted
from recover.containers.mapping import check_faults, check_unchanged, faults
from recover.containers.model import Model, StoredTensor
from recover.containers.places import Writer, put_all
from recover.errors import PlanError, QuantError
from recover.estimators import FIRST_ALONE, Tally, TileEstimator
from recover.estimators.tally import CONFLICTS
from recover.evidence.buffer import Evidence, Source
from recover.execution.stacks import stack_of
from recover.execution.tasks import DEVIATIONS, WEIGHTS, PlacedFile, Record, Task
from recover.inputs.recorded import Input, OpenInputs
from recover.merge.certain import Snapper
from recover.merge.columns import Rows, row_lengths
from recover.merge.compare import (
    Comparison,
    compare,
    compare_unproven,
    count_conflicts,
    count_decoded,
    step_for,
    takes_exact_codes,
)
from recover.merge.exact import count_rounded, rounded_away
from recover.merge.finite import n_broken, n_not_finite
from recover.merge.sums import Sums
from recover.merge.tasks import Job
from recover.quants import (
    TILE,
    F32Array,
    ScalarType,
    TensorType,
    U8Array,
    quantize,
    type_by_name,
)

_FLOAT32_ROUNDING, _SMALLEST_NORMAL = np.float32(2.0**-24), np.float32(2.0**-126)
_BF16 = "BF16"  # of standard deviations


class Worker:
    """One thread's part: scratch memory, and what it needs to know of the tensor at hand.

    Parameters
    ----------
    inputs : OpenInputs
        Shared by the workers of a process.
    """

    def __init__(self, inputs: OpenInputs) -> None:
        self._inputs = inputs
        self._estimate = aligned(TILE, np.float32)
        self._deviation = np.empty(0, np.float32)
        self._snapper = Snapper()
        self._encoded = aligned(TILE * 4, np.uint8)
        self._models: list[Model] = []
        self._known: tuple[tuple[Source, ...], str, str] = (), "", ""
        self._at: tuple[str, tuple[str, ...]] = "", ()
        self._n = 1  # tensors, one behind the other

    def work(self, task: Task, files: Mapping[Path, Writer]) -> Record:
        """Do a task.

        Parameters
        ----------
        task : Task
            From `recover.merge.tasks.tasks_of`.
        files : mapping of Path to Writer
            What takes the bytes of the files that the task names.

        Returns
        -------
        dict
            ``sums``: of each of its tensors, of each tile the `Sums`, in order.

        Raises
        ------
        InputError
            If an input is not what it was.
        OutputError
            If the bytes cannot be written.
        PlanError
            If a weight is not finite in any input, or does not fit into the output's type.
        """
        if (task.plan, task.tensors) != self._at:
            self._begin(task)
        if task.start % TILE or (task.end % TILE and task.end != self._job.n_weights):
            raise PlanError(f"weights {task.start:,} to {task.end:,} are no whole tiles")
        if self._n > 1 and (task.start, task.end) != (0, self._job.n_weights):
            raise PlanError(f"weights {task.start:,} to {task.end:,} are not all of the tensors")
        sums: list[Sums] = []
        for start in range(task.start, task.end, TILE):
            end = min(start + TILE, task.end)
            sums += self._write_tile(task, files, start, start + (end - start) * self._n)
        return {"sums": sums}

    def check_inputs(self) -> None:
        """Make sure that the inputs of the last task are what they were.

        Raises
        ------
        InputError
            If one was changed since it was opened.
        """
        check_unchanged([part for model in self._models for part in model.parts])

    def _begin(self, task: Task) -> None:
        self._at = "", ()
        inputs = [
            each if isinstance(each, Input) else Input.from_record(cast(Record, each))
            for each in task.inputs
        ]
        first = task.tensors[0]
        self._models = [self._inputs.model(each, first) for each in inputs]
        tensors = [
            stack_of([model.tensors[name] for name in task.tensors]) for model in self._models
        ]
        job = task.job
        if not isinstance(job, Job):
            job = Job.from_record(cast(Record, job), tensors)
        self._job, self._n = job, len(task.tensors)
        self._used = tensors[: job.n_used]
        self._row_lengths = row_lengths(tensors[0])
        self._outtype = type_by_name(job.outtype)
        self._is_decoded = job.method == FIRST_ALONE
        self._comparison = self._comparison_of(tensors)
        self._deviates = any(each.what == DEVIATIONS for each in task.outputs)
        if self._deviates and not self._deviation.size:
            self._deviation = np.empty(TILE, np.float32)
        if job.action != "copy" and not job.is_known:
            self._snapper.look_at(job.snapping, job.sources)
            known = job.sources, job.method, job.estimate
            if known != self._known:
                self._known = known
                self._estimator = TileEstimator(*known, error_calibration=job.error_calibration)
        self._at = task.plan, task.tensors

    def _write_tile(
        self, task: Task, files: Mapping[Path, Writer], start: int, end: int
    ) -> list[Sums]:
        """Write a tile of a tensor, or several tensors one behind the other; the sums of each."""

        def write(what: str, kind: TensorType, data: U8Array) -> None:
            targets = [(each.place, files[each.path]) for each in task.outputs if each.what == what]
            put_all(targets, kind, start, end, data)

        if self._job.action == "copy":
            raw = self._used[0].part(start, end)
            write(WEIGHTS, self._outtype, raw)
            sums = self._compare(start, end)
            for own, n_bad in zip(sums, n_not_finite(raw, self._outtype, self._n), strict=True):
                own.not_finite = int(n_bad)
            return sums
        estimate = self._estimate[: end - start]
        deviation = self._deviation[: estimate.size] if self._deviates else self._deviation[:0]
        sums = self._fill(start, end, estimate, deviation)
        if self._job.shift:
            estimate += np.float32(self._job.shift)
        encoded = self._encoded[: self._outtype.n_bytes(estimate.size)]
        try:
            quantize(estimate, self._outtype, out=encoded)
        except QuantError:
            raise self._not_finite(task, start, end, estimate) from None
        write(WEIGHTS, self._outtype, encoded)
        self._add_rounding(sums, estimate, encoded)
        if self._deviates:
            bf16 = type_by_name(_BF16)
            write(DEVIATIONS, bf16, quantize(deviation, bf16))
        return sums

    def _add_rounding(self, sums: Sequence[Sums], estimate: F32Array, encoded: U8Array) -> None:
        """Add what the output's type rounds away."""
        lost = rounded_away(estimate, encoded, self._outtype, self._n)
        for own, rounded in zip(sums, lost.tolist(), strict=True):
            if rounded or own.estimated is not None:
                own.tally(len(self._used)).variance += rounded
        if self._job.is_known:
            counts = count_rounded(estimate, encoded, self._outtype, self._n)
            for own, n_rounded in zip(sums, counts.tolist(), strict=True):
                own.rounded += n_rounded

    def _fill(self, start: int, end: int, estimate: F32Array, deviation: F32Array) -> list[Sums]:
        """Estimate the weights of one tile; the sums of each tensor."""
        sums = self._compare(start, end)
        if self._job.is_known:
            self._used[0].read(start, end, estimate)
            deviation[:] = 0
            return sums
        tallies = self._estimator.estimate_each(
            self._used, start, end, self._n, estimate, deviation
        )
        evidence = self._estimator.evidence
        broken = n_broken(evidence, self._n)
        for own, tally, n in zip(sums, tallies, broken.tolist(), strict=True):
            own.estimated, own.broken = Tally(tally), n
        if self._job.action == "merge":
            conflicts = self._n_conflicts(evidence, tallies)
            likeness = compare_unproven(evidence, Rows(self._row_lengths, start))
            for own, n, like in zip(sums, conflicts.tolist(), likeness.tolist(), strict=True):
                own.conflicts += n
                own.add_likeness(like)
        first = self._used[0]
        if self._is_decoded and (
            first.scales is not None or not isinstance(first.type, ScalarType)
        ):
            first.read(start, end, estimate)  # a product with a side scale is rounded once
        if deviation.size:
            # Zero says that a weight is certain, and no estimate is more exact than float32 is.
            least = np.maximum(np.abs(estimate) * _FLOAT32_ROUNDING, _SMALLEST_NORMAL)
            np.maximum(deviation, least, out=deviation)
        if self._snapper.is_on:
            stored = [each.part(start, end) for each in self._used]
            self._snapper.apply(evidence, stored, estimate, deviation, sums)
        return sums

    def _n_conflicts(self, evidence: Evidence, tallies: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights on which the merged inputs contradict each other, as the estimator found."""
        kinds = [each.type for each in self._used]
        others = count_decoded(evidence, kinds, self._n).astype(np.float64)
        if self._estimator.estimator.sees_conflicts:
            return tallies[:, CONFLICTS] + others
        step = step_for(self._job.n_weights)
        return count_conflicts(evidence, step, self._n) + others

    def _comparison_of(self, tensors: list[StoredTensor]) -> Comparison | None:
        """What compares the inputs that take no part with the one that is taken; None if none."""
        compared = tensors[self._job.n_used :]
        if not compared:
            return None
        job, inputs = self._job, [tensors[0], *compared]
        is_exact = takes_exact_codes(inputs[0], is_known=job.is_known)
        return compare(inputs, job.confines, job.noises, is_exact=is_exact)

    def _compare(self, start: int, end: int) -> list[Sums]:
        """The sums so far: what inputs that take no part contradict."""
        sums = [Sums() for _ in range(self._n)]
        if self._comparison is not None:
            conflicts, likeness = self._comparison.compare(start, end, self._n)
            for own, n, like in zip(sums, conflicts.tolist(), likeness.tolist(), strict=True):
                own.conflicts = float(n)
                own.add_likeness(like)
        return sums

    def _not_finite(self, task: Task, start: int, end: int, estimate: F32Array) -> PlanError:
        """Say why a tile cannot be stored."""
        size = estimate.size // self._n
        for model, tensor in zip(self._models, self._used, strict=False):
            is_sound = np.isfinite(tensor.read(start, end)).reshape(self._n, size).all(1)
            if not is_sound.all():
                name = quoted(task.tensors[int(np.argmin(is_sound))])
                what = f"tensor {name} holds NaN or infinite weights"
                return PlanError(f"{printable(model.path)}: {what}")
        weights = np.abs(estimate)
        name = quoted(task.tensors[int(np.argmax(weights)) // size])
        return PlanError(
            f"tensor {name}: a weight of {weights.max():.6g} is beyond the range of"
            f" {self._outtype.name} (65504 for F16); use --outtype bf16 or --outtype f32"
        )


def _is_plain(tensor: StoredTensor) -> bool:
    """Whether evidence says exactly what decoding gives.

    A product with a side scale is rounded twice in evidence.
    """
    is_scaled = tensor.scales is not None or tensor.is_original
    return isinstance(tensor.type, ScalarType) and not is_scaled


_inputs = OpenInputs()
_own = threading.local()


def carry_out(record: Record) -> Record:
    """Do a task in a process that knows nothing else of the merge.

    See `recover.execution.tasks.carry_out`; ``sums`` are what `Worker.work` gives, as records.
    """
    task = Task.from_record(record)
    if not hasattr(_own, "worker"):
        _own.worker = Worker(_inputs)
    worker: Worker = _own.worker
    files = {output.path: PlacedFile(output.path) for output in task.outputs}
    before = faults()
    gave = worker.work(task, files)
    check_faults(before)
    worker.check_inputs()
    return {
        "sums": [each.to_record() for each in gave["sums"]],
        "written": {str(path): file.written for path, file in files.items()},
    }

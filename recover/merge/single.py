"""One tensor of a merge as arrays: what a merge of all tensors would write of it, bit for bit."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from recover._text import quoted
from recover.containers.places import Writer, whole_place
from recover.errors import UsageError
from recover.estimators import Tally
from recover.evidence.buffer import Evidence, EvidenceBuffer, Source
from recover.execution.gathering import Gathering
from recover.execution.local import Threads
from recover.execution.stacks import stack_of
from recover.execution.tasks import DEVIATIONS, Record, Target, Task, Watch
from recover.execution.tiles import Progress, available_cores
from recover.inputs.alignment import index_of
from recover.inputs.recorded import Input, OpenInputs
from recover.merge.certain import Snapper, find_withdrawal, to_estimate_again, without_certainty
from recover.merge.checks import check_broken, check_relations, contradicted, with_finest_alone
from recover.merge.merging import Merging
from recover.merge.plan import MergePlan, TensorPlan
from recover.merge.sums import Sums
from recover.merge.tasks import Job, tasks_of
from recover.merge.work import Worker
from recover.quants import (
    TILE,
    F32Array,
    OpaqueType,
    TensorType,
    U8Array,
    dequantize,
    type_by_name,
)

_MEAN, _DEVIATION = Path("mean"), Path("deviation")
_BF16 = "BF16"  # of standard deviations, as in files


class SingleResult(NamedTuple):
    """What a merge would write of one tensor.

    Attributes
    ----------
    plan : TensorPlan
        What was done.
    mean : float32 (n_weights,)
        The estimates.
    deviation : float32 (n_weights,)
        Their standard deviations, rounded to BF16 as in the file that a merge writes; 0 where
        weights are certain, or nothing was estimated.
    expected_rmse : float or None
        The error to expect; None where nothing is estimated.
    warnings : tuple of str
        What is wrong with the inputs.
    """

    plan: TensorPlan
    mean: F32Array
    deviation: F32Array
    expected_rmse: float | None
    warnings: tuple[str, ...]


class _Array:
    """A file in memory of numbers of a float format, decoded as they are written."""

    def __init__(self, kind: TensorType, n_weights: int) -> None:
        self._kind = kind
        self.weights = np.empty(n_weights, np.float32)

    def write_at(self, position: int, data: bytes | memoryview, n_pieces: int = 1) -> None:
        """See `recover.containers.places.Writer`."""
        raw, start = np.frombuffer(data, np.uint8), position // self._kind.type_size
        n = raw.size // self._kind.type_size
        self.weights[start : start + n] = dequantize(raw, self._kind)

    def weave_at(self, position: int, data: memoryview, size: int, step: int) -> None:
        """Nothing is woven: weights follow each other."""
        raise AssertionError


def estimate_tensor(
    plan: MergePlan,
    name: str,
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> SingleResult:
    """Estimate the weights of one tensor, as a merge of all of them does.

    The other tensors are looked at only where it depends on them what happens to this one: where
    its weights were set to numbers of the source's format, which others may contradict, and where
    the inputs contradict each other.

    Parameters
    ----------
    plan : MergePlan
        From `recover.merge.plan.plan_merge` with ``outtype="f32"``.
    name : str
        Of the tensor.
    n_threads, progress, force
        As of `recover.merge.execute.execute_merge`.

    Returns
    -------
    SingleResult

    Raises
    ------
    PlanError
        As `execute_merge` does.
    UsageError
        If there is no such tensor, or it holds no weights.
    """
    planned, index = plan, index_of([each.name for each in plan.tensors], name)
    if isinstance(plan.models[plan.tensors[index].used[0]].tensors[name].type, OpaqueType):
        raise UsageError(f"tensor {quoted(name)} holds no weights")
    if not force:
        check_relations(plan)
    single = _Single(plan, index, n_threads or available_cores())
    sums = single.estimate(plan, progress)
    if int(sums.conflicts):
        single.count(plan, [i for i in range(len(plan.tensors)) if i != index])
    elif _may_be_withdrawn(sums, rounds_all=plan.snaps):
        others = [
            i
            for i, each in enumerate(plan.tensors)
            if i != index and each.action != "copy" and plan.evidence_bits(each)
        ]
        if single.is_contradicted(plan, others):
            single.count_evidence(plan, others)
    totals = single.tallies.totals
    if not force:
        check_broken(plan, {index: sums})
    names, warnings = contradicted(plan, totals, force=force)
    withdrawal = find_withdrawal(totals)
    plan, alone = with_finest_alone(without_certainty(plan, withdrawal), names)
    if index in alone | set(to_estimate_again(withdrawal, totals)):
        sums = single.estimate(plan)
    warnings = [each for each in warnings if quoted(name) in each]
    if index in withdrawal.tensors and name not in planned.undecided:
        warnings.append(
            f"not all weights may have been stored as {planned.source_format}, so none of tensor"
            f" {quoted(name)} is certain or set to such numbers"
        )
    return single.result(plan, sums, warnings)


class _Single:
    """The tensor at hand, and what was counted."""

    def __init__(self, plan: MergePlan, index: int, n_threads: int) -> None:
        self._index, self._n_threads = index, n_threads
        self.tensor = plan.tensors[index]
        self.tallies = Gathering(Merging(plan), {})
        self._opened = OpenInputs(zip(plan.inputs, plan.models, strict=True))
        n_weights = self.tensor.n_weights
        self._mean = _Array(type_by_name(self.tensor.outtype), n_weights)
        self._deviation = _Array(type_by_name(_BF16), n_weights)

    def estimate(self, plan: MergePlan, progress: Progress | None = None) -> Sums:
        """Estimate the tensor, and count."""
        n_weights = self.tensor.n_weights
        (whole,) = whole_place(0, 0, n_weights)
        outputs: tuple[Target, ...] = (Target(_MEAN, whole), Target(_DEVIATION, whole, DEVIATIONS))
        if self.tensor.action == "copy":
            outputs = ()  # its bytes are where they are
        tasks = (replace(each, outputs=outputs) for each in self._tasks(plan, [self._index]))
        watch = None if progress is None else partial(_tell, progress, n_weights)
        self._run(tasks, watch)
        return self.tallies.totals[self._index]

    def count(self, plan: MergePlan, indices: Sequence[int]) -> None:
        """Count what the other tensors show, and throw away their weights."""
        self._run(replace(each, outputs=()) for each in self._tasks(plan, indices))

    def is_contradicted(self, plan: MergePlan, indices: Sequence[int]) -> bool:
        """Whether the other tensors show anything at all that contradicts the source's format."""
        lookers = [_Counter(self._opened).look for _ in range(self._n_threads)]
        try:
            Threads(lookers).run(self._tasks(plan, indices), lambda _task, _record: None)
        except _ContradictedError:
            return True
        return False

    def count_evidence(self, plan: MergePlan, indices: Sequence[int]) -> None:
        """Count what the other tensors show of the source's format."""
        counters = [_Counter(self._opened).count for _ in range(self._n_threads)]
        Threads(counters).run(self._tasks(plan, indices), self.tallies.add)

    def result(self, plan: MergePlan, sums: Sums, warnings: Sequence[str]) -> SingleResult:
        """What was estimated, as arrays."""
        tensor, n_weights = plan.tensors[self._index], self.tensor.n_weights
        if tensor.action == "copy":
            mean = plan.models[tensor.used[0]].tensors[tensor.name].read(0, n_weights)
            deviation = np.zeros(n_weights, np.float32)
        else:
            mean, deviation = self._mean.weights, self._deviation.weights
        rmse = None
        if sums.estimated is not None:
            rmse = math.sqrt(max(sums.estimated.variance, 0) / n_weights)
        return SingleResult(tensor, mean, deviation, rmse, tuple(warnings))

    @staticmethod
    def _tasks(plan: MergePlan, indices: Sequence[int]) -> Iterator[Task]:
        files = [file.path for file in plan.files] or [_MEAN]
        return tasks_of(plan, indices, files)

    def _run(self, tasks: Iterable[Task], watch: Watch | None = None) -> None:
        files: dict[Path, Writer] = {_MEAN: self._mean, _DEVIATION: self._deviation}
        workers = [partial(Worker(self._opened).work, files=files) for _ in range(self._n_threads)]
        Threads(workers).run(tasks, self.tallies.add, watch)


def _tell(progress: Progress, n_weights: int, n_done: int) -> None:
    progress(n_done, n_weights)


def _may_be_withdrawn(sums: Sums, *, rounds_all: bool) -> bool:
    """Whether other tensors may show that weights were set to numbers that they did not have."""
    is_shown = sums.empty + sums.foreign_scales > 0  # by the tensor itself
    return bool(sums.snapped and (sums.certain or rounds_all) and not is_shown)


class _ContradictedError(Exception):
    """A tensor contradicts the source's format: no other one has to be looked at."""


class _Counter:
    """One thread's part of counting what weights show of the source's format, and nothing else.

    Of a tensor that is not asked for, only this is of consequence: nothing is estimated.
    """

    def __init__(self, inputs: OpenInputs) -> None:
        self._inputs = inputs
        self._snapper = Snapper()
        self._untouched = np.empty(0, np.float32)
        self._sources: tuple[Source, ...] = ()
        self._buffer: EvidenceBuffer | None = None

    def look(self, task: Task) -> Record:
        """See that nothing in a task contradicts the format.

        Raises
        ------
        _ContradictedError
            If something does.
        """
        for evidence, stored in self._tiles(task):
            if self._snapper.is_contradicted(evidence, stored):
                raise _ContradictedError
        return {}

    def count(self, task: Task) -> Record:
        """The sums of a task, as `recover.merge.work.Worker.work` gives them."""
        n, found = len(task.tensors), list[Sums]()
        if not self._untouched.size:
            self._untouched = np.empty(TILE, np.float32)
        for evidence, stored in self._tiles(task):
            sums = [Sums(estimated=Tally.zeros(len(stored))) for _ in range(n)]
            untouched = self._untouched[: 16 * evidence.scale.shape[1]]
            self._snapper.apply(evidence, stored, untouched, untouched[:0], sums)
            found += sums
        return {"sums": found}

    def _tiles(self, task: Task) -> Iterator[tuple[Evidence, list[U8Array]]]:
        """What is stored of a task's weights, a tile at a time."""
        job, n = cast(Job, task.job), len(task.tensors)
        inputs = [cast(Input, each) for each in task.inputs[: job.n_used]]
        models = [self._inputs.model(each, task.tensors[0]) for each in inputs]
        used = [stack_of([model.tensors[name] for name in task.tensors]) for model in models]
        if self._buffer is None or job.sources != self._sources:
            self._sources, self._buffer = job.sources, EvidenceBuffer(job.sources)
        assert job.snapping is not None
        self._snapper.look_at(replace(job.snapping, is_decided=False), job.sources)
        for start in range(task.start, task.end, TILE):
            end = start + (min(start + TILE, task.end) - start) * n
            yield self._buffer.read(used, start, end), [each.part(start, end) for each in used]

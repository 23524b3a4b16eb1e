"""What a merge will read and write, how long it takes and what it gains: from samples of it.

Tensors to which the same is done are a kind. Of each kind some tiles are made, as the merge makes
them, and thrown away: they tell the errors to expect, and how long a weight takes.
"""

import shutil
import time
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recover._text import printable
from recover.containers.model import StoredTensor
from recover.containers.places import Writer
from recover.errors import OutputError
from recover.execution.stacks import LARGEST
from recover.execution.tasks import Task
from recover.execution.tiles import available_cores, n_tiles
from recover.inputs.recorded import OpenInputs
from recover.merge.plan import MergePlan, TensorPlan
from recover.merge.redundant import errors_alone
from recover.merge.tasks import tasks_of
from recover.merge.work import Worker
from recover.quants import TILE

_N_SAMPLES = 16
"""Tiles of each kind of tensors, at most."""


@dataclass(frozen=True)
class Forecast:
    """What a merge will take and give.

    Attributes
    ----------
    n_read, n_written : int
        Bytes of inputs that take part, and of all files that are written.
    free : dict of Path to (int, int)
        Of each file system that is written to, by a folder on it: bytes that it needs, and bytes
        that are free.
    seconds : float
        To be expected of so many threads, if the disks keep up.
    n_threads : int
        See there.
    mse_ratio : float or None
        Expected mean square error over that of the best single input; None if nothing is estimated.
    """

    n_read: int
    n_written: int
    free: dict[Path, tuple[int, int]]
    seconds: float
    n_threads: int
    mse_ratio: float | None


def forecast(plan: MergePlan, *, n_threads: int | None = None) -> Forecast:
    """Look ahead; see the module.

    Parameters
    ----------
    plan : MergePlan
        From `recover.merge.plan.plan_merge`.
    n_threads : int, optional
        Default: the cores that this process may use.

    Returns
    -------
    Forecast

    Raises
    ------
    PlanError
        If a weight of a sample is not finite in any input, or does not fit into the output's type.
    """
    n_threads = n_threads or available_cores()
    worker = Worker(OpenInputs(zip(plan.inputs, plan.models, strict=True)))
    files: dict[Path, Writer] = {file.path: _Nowhere() for file in plan.files}
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    seconds, merged, alone = 0.0, 0.0, np.zeros(len(plan.models))
    for indices in _kinds(plan):
        sample = _Sample(tensors, len(plan.models))
        for task in _samples(plan, indices, list(files)):
            sample.take(task, worker, files)
        n_weights = sum(plan.tensors[i].n_weights for i in indices)
        share = n_weights / sample.n_weights
        seconds += share * sample.seconds
        merged, alone = merged + share * sample.merged, alone + share * sample.alone
    best = float(alone.min())
    return Forecast(
        n_read=bytes_to_read(plan),
        n_written=sum(file.n_bytes for file in plan.files),
        free=free_space(plan),
        seconds=seconds / n_threads,
        n_threads=n_threads,
        mse_ratio=merged / best if best > 0 else None,
    )


def bytes_to_read(plan: MergePlan) -> int:
    """Bytes of all tensors that take part or are compared."""
    return sum(
        _stored_bytes(plan.models[i].tensors[tensor.name])
        for tensor in plan.tensors
        for i in (*tensor.used, *tensor.compared)
    )


def _stored_bytes(tensor: StoredTensor) -> int:
    return tensor.n_bytes + sum(map(_stored_bytes, tensor.side_tensors))


def free_space(plan: MergePlan) -> dict[Path, tuple[int, int]]:
    """Bytes that each file system needs and has, by a folder on it.

    A file that is there already is replaced when the new one is complete, so that its space is of
    no use before.
    """
    needed: dict[int, int] = defaultdict(int)
    folders: dict[int, Path] = {}
    for file in plan.files:
        folder = next(each for each in file.path.absolute().parents if each.is_dir())
        device = folder.stat().st_dev
        needed[device] += file.n_bytes
        folders.setdefault(device, folder)
    return {
        folders[device]: (n, shutil.disk_usage(folders[device]).free)
        for device, n in needed.items()
    }


def check_space(free: dict[Path, tuple[int, int]]) -> None:
    """Refuse a merge that does not fit.

    Raises
    ------
    OutputError
        If a file system has too little space.
    """
    for folder, (needed, has) in free.items():
        if needed > has:
            raise OutputError(
                f"{printable(folder)}: has {has:,} bytes free, and {needed:,} are to be written;"
                " free some space or choose another folder"
            )


class _Nowhere:
    """A file whose bytes nobody wants."""

    def write_at(self, position: int, data: bytes | memoryview, n_pieces: int = 1) -> None:
        """See `recover.containers.places.Writer`."""

    def weave_at(self, position: int, data: memoryview, size: int, step: int) -> None:
        """See `recover.containers.places.Writer`."""


class _Sample:
    """What was found for some tiles of one kind."""

    def __init__(self, tensors: Mapping[str, TensorPlan], n_inputs: int) -> None:
        self._tensors = tensors
        self.n_weights = 0
        self.seconds = 0.0
        self.merged = 0.0
        self.alone: NDArray[np.float64] = np.zeros(n_inputs)

    def take(self, task: Task, worker: Worker, files: dict[Path, Writer]) -> None:
        """Do a task; the second time counts, of the processor, as all is in memory then."""
        worker.work(task, files)
        start = time.thread_time()
        found = worker.work(task, files)["sums"]
        self.seconds += time.thread_time() - start
        self.n_weights += task.n_weights
        for name, sums in zip(task.tensors, found, strict=True):
            if sums.estimated is None:
                continue
            tensor, tally = self._tensors[name], sums.estimated
            of_input = dict(zip(tensor.used, tally.alone, strict=True))
            self.merged += tally.variance
            self.alone += errors_alone(tensor.duplicate_of, tensor.descents, of_input)


def _kinds(plan: MergePlan) -> list[list[int]]:
    """Numbers of the tensors to which the same is done."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for i, tensor in enumerate(plan.tensors):
        is_small = tensor.n_weights <= LARGEST
        done = tensor.action, tensor.method, tensor.outtype, tensor.is_known
        found[done, tensor.types, tensor.used, tensor.compared, is_small].append(i)
    return list(found.values())


def _samples(plan: MergePlan, indices: Sequence[int], places: Sequence[Path]) -> Iterator[Task]:
    """Some tasks on a kind of tensors: tiles all over large ones, stacks of small ones."""
    n = len(indices)
    if plan.tensors[indices[0]].n_weights <= LARGEST:
        yield from islice(tasks_of(plan, indices[: _N_SAMPLES * 64], places), _N_SAMPLES)
        return
    chosen = {}
    for number in range(_N_SAMPLES):
        index = indices[number * n // _N_SAMPLES]
        n_weights = plan.tensors[index].n_weights
        chosen[index, n_tiles(n_weights) * number // _N_SAMPLES] = n_weights
    first_of = cache(lambda index: next(tasks_of(plan, [index], places)))
    for (index, tile), n_weights in chosen.items():
        start = TILE * tile
        yield replace(first_of(index), start=start, end=min(start + TILE, n_weights))

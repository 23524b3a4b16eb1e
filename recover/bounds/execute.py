"""Bounds tile by tile: statistics, and if asked for the bounds themselves in a file."""

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from recover._brief import Brief
from recover._text import path_text, quoted, some
from recover.bounds.checks import condition_of
from recover.bounds.measuring import UP, measure, measure_cells
from recover.bounds.plan import BoundsPlan, TensorPlan
from recover.bounds.work import Bounding
from recover.evidence.intervals import PART, Intervals
from recover.execution.shares import Shard
from recover.execution.sharing import PartResult, Tell
from recover.execution.stacks import can_be_stacked, stack_of, stacks
from recover.execution.tiles import Progress, Tile, available_cores, for_each_tile, n_tiles
from recover.execution.whole import Finished, execute, execute_part
from recover.execution.work import HowToWork, Means
from recover.quants import TILE, FloatType


@dataclass(frozen=True)
class BoundStatistics:
    """How much is known of some weights."""

    n_weights: int
    """Number of weights."""
    two_sided: float
    """Share of the weights that have both a lower and an upper bound."""
    mean_width: float | None
    """Mean distance of the bounds, over these weights."""
    certified_max_error: float | None
    """Half of the largest distance: no weight with two bounds is further from the middle. None
    where they are not certified."""
    n_conflicts: int
    """Weights on which the inputs contradict each other."""

    @property
    def conflict_fraction(self) -> float:
        """Share of the weights on which the inputs contradict each other."""
        return self.n_conflicts / self.n_weights

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"conflict_fraction": self.conflict_fraction}


@dataclass(frozen=True, repr=False)
class BoundsResult(Brief):
    """What was bounded.

    Attributes
    ----------
    plan : BoundsPlan
        What was carried out.
    seconds : float
        Wall time.
    total : BoundStatistics
        Of all weights.
    tensors : tuple of BoundStatistics
        In the order of the plan.
    """

    plan: BoundsPlan
    seconds: float
    total: BoundStatistics
    tensors: tuple[BoundStatistics, ...]

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "output", self.plan.output
        yield "weights", self.plan.n_weights
        yield "seconds", self.seconds
        yield "two_sided", self.total.two_sided
        yield "mean_width", self.total.mean_width
        yield "n_conflicts", self.total.n_conflicts
        yield "condition", condition_of(self.plan.models)

    def rows(self) -> Iterator[Sequence[object]]:
        """See `recover._brief.Brief`."""
        yield "tensor", "two-sided", "mean width", "max error", "conflicts"
        for plan, each in zip(self.plan.tensors, self.tensors, strict=True):
            told = each.two_sided, each.mean_width, each.certified_max_error, each.n_conflicts
            yield plan.name, *told

    def failures(self, index: int) -> tuple[str, ...]:
        """What speaks against a tensor's bounds: of inputs that were left out, and conflicts."""
        plan, n_conflicts = self.plan.tensors[index], self.tensors[index].n_conflicts
        conflicts = (f"the inputs contradict each other on {n_conflicts:,} weights",)
        return plan.failures + (conflicts if n_conflicts else ())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the plan did not know yet."""
        named = [
            f"{quoted(plan.name)} ({found.n_conflicts:,} weights)"
            for plan, found in zip(self.plan.tensors, self.tensors, strict=True)
            if found.n_conflicts
        ]
        what = (
            f"the inputs contradict each other on {some(named)}: not all of them are what ggml's"
            " encoder made of one original, so that no bound of these tensors is certified"
        )
        return (what,) if named else ()

    def to_json(self) -> dict[str, Any]:
        """The document that ``recover bounds --json`` prints."""
        return {
            "output": None if self.plan.output is None else str(self.plan.output),
            "dtype": self.plan.dtype,
            "inputs": [path_text(model.path) for model in self.plan.models],
            "condition": condition_of(self.plan.models),
            "warnings": [*self.plan.warnings, *self.warnings],
            "seconds": self.seconds,
            "weights_per_second": self.plan.n_weights / self.seconds,
            "total": self.total.to_json(),
            "tensors": [
                {"name": plan.name, "shape": list(plan.dims), "types": list(plan.types)}
                | statistics.to_json()
                | {
                    "certified": bool(plan.sources) and not statistics.n_conflicts,
                    "checks": [check.to_json() for check in plan.checks],
                    "failures": list(self.failures(i)),
                }
                for i, (plan, statistics) in enumerate(
                    zip(self.plan.tensors, self.tensors, strict=True)
                )
            ],
        }


def execute_bounds(
    plan: BoundsPlan,
    **means: Unpack[Means],
) -> BoundsResult:
    """Bound every weight; write the bounds if the plan has an output.

    Parameters
    ----------
    plan : BoundsPlan
        From `plan_bounds`.
    **means
        Who does the tasks, if bounds are written: ``n_threads``, ``progress`` and ``executor``, see
        `recover.execution.work.HowToWork`.

    Raises
    ------
    OutputError
        If the output cannot be written.
    """
    how = HowToWork(**means)
    if plan.output is None:
        return _measure(plan, how.n_threads or available_cores(), how.progress)
    work = Bounding(plan)
    finished = execute(work, how, conclude=work.conclude)
    return _result(work, finished)


def execute_bounds_part(
    plan: BoundsPlan,
    shard: Shard,
    *,
    tell: Tell | None = None,
    **means: Unpack[Means],
) -> BoundsResult | PartResult:
    """Carry out a part of a plan; parameters and errors as of `execute_merge_part`.

    Each part checks the inputs of its own tensors: the plan is one without checks, and with an
    output.

    Returns
    -------
    BoundsResult or PartResult
        Of all parts from the process that ends last.
    """
    work = Bounding(plan)
    how = HowToWork(**means)
    done = execute_part(work, shard, how, tell, conclude=work.conclude)
    return done if isinstance(done, PartResult) else _result(work, done)


def _result(work: Bounding, finished: Finished) -> BoundsResult:
    plan = work.with_found(finished.totals)
    sizes = [tensor.n_weights for tensor in plan.tensors]
    figures = [np.array(finished.totals[i].rows) for i in range(len(sizes))]
    tensors = tuple(statistics_of(n, rows) for n, rows in zip(sizes, figures, strict=True))
    total = statistics_of(sum(sizes), np.concatenate(figures))
    return BoundsResult(plan, finished.seconds, total, tensors)


def _measure(plan: BoundsPlan, n_threads: int, progress: Progress | None) -> BoundsResult:
    """Measure bounds that nobody wants to see; small tensors that are alike together."""
    start = time.perf_counter()
    sizes = [tensor.n_weights for tensor in plan.tensors]
    figures = [np.zeros((n_tiles(size), 4)) for size in sizes]
    together = list(
        stacks((i, each.n_weights, _kind_of(each)) for i, each in enumerate(plan.tensors))
    )
    workers = [_Worker(plan, together, figures) for _ in range(n_threads)]
    stacked = [len(stack) * sizes[stack[0]] for stack in together]
    for_each_tile(stacked, [worker.work for worker in workers], progress)
    tensors = tuple(statistics_of(n, rows) for n, rows in zip(sizes, figures, strict=True))
    total = statistics_of(sum(sizes), np.concatenate(figures))
    return BoundsResult(plan, time.perf_counter() - start, total, tensors)


def _kind_of(tensor: TensorPlan) -> Hashable:
    """What tensors have in common that are measured together; None of one that is not.

    Those are whose evidence is looked at as a whole.
    """
    kinds = tuple(each.type for each in tensor.sources)
    is_alone = not kinds or tensor.n_weights > PART
    if is_alone or any(isinstance(kind, FloatType) for kind in kinds):
        return None
    if not all(map(can_be_stacked, tensor.sources)):
        return None
    return kinds


def statistics_of(n_weights: int, figures: NDArray[np.float64]) -> BoundStatistics:
    """Of rows (two-sided weights, conflicts, sum of widths, largest width), one per tile."""
    n_two_sided, n_conflicts, width = figures[:, :3].sum(0).tolist()
    is_certified = n_two_sided > 0 and not n_conflicts
    return BoundStatistics(
        n_weights=n_weights,
        two_sided=float(n_two_sided / n_weights),
        mean_width=float(width / n_two_sided) if n_two_sided else None,
        certified_max_error=float(figures[:, 3].max() * UP / 2) if is_certified else None,
        n_conflicts=int(n_conflicts),
    )


class _Worker:
    """One thread's part."""

    def __init__(
        self,
        plan: BoundsPlan,
        together: Sequence[tuple[int, ...]],
        figures: list[NDArray[np.float64]],
    ) -> None:
        self._plan = plan
        self._together = together
        self._figures = figures
        self._intervals = Intervals()
        self._at = -1

    def work(self, tile: Tile) -> None:
        """Measure the bounds of one tile."""
        stack = self._together[tile.tensor]
        if tile.tensor != self._at:
            sources = zip(*(self._plan.tensors[i].sources for i in stack), strict=True)
            self._intervals.look_at([stack_of(each) for each in sources])
            self._at = tile.tensor
        if self._measure_at_once(tile, stack):
            return
        figures = self._figures[stack[0]][tile.start // TILE]
        figures[:] = measure(*self._intervals.bound(tile.start, tile.end))

    def _measure_at_once(self, tile: Tile, stack: Sequence[int]) -> bool:
        """Measure bounds that nobody wants to see, if all inputs are quantized."""
        size = (tile.end - tile.start) // len(stack)
        n_at_once = max(1, PART // size)  # tensors
        step = PART if len(stack) == 1 else n_at_once * size
        for first, start in enumerate(range(tile.start, tile.end, step)):
            evidence = self._intervals.evidence(start, min(start + step, tile.end))
            if evidence is None:
                return False
            here = stack if len(stack) == 1 else stack[first * n_at_once :][:n_at_once]
            found = np.empty((len(here), 4))
            measure_cells(evidence, found)
            for i, row in zip(here, found, strict=True):
                figures = self._figures[i][tile.start // TILE]
                figures[:3] += row[:3]
                figures[3] = max(figures[3], row[3])
        return True

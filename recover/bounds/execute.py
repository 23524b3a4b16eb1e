"""Bounds tile by tile: statistics, and if asked for the bounds themselves in a file."""

import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._brief import Brief
from recover._compiled.float16 import f16_to_f32, f32_to_f16
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import load, splat, store, where
from recover._text import quoted, some
from recover.bounds.checks import condition_of
from recover.bounds.plan import BoundsPlan, TensorPlan, header_with
from recover.evidence.buffer import Evidence
from recover.evidence.cells import STRIP, intersect_strip, new_strips
from recover.evidence.intervals import PART, Intervals
from recover.execution.output import OutputFile
from recover.execution.stacks import can_be_stacked, stack_of, stacks
from recover.execution.tiles import Progress, Tile, available_cores, for_each_tile, n_tiles
from recover.quants import TILE, F32Array, FloatType

_UP = 1 + 2.0**-23  # a width is a rounded float32 difference


@dataclass(frozen=True)
class BoundStatistics:
    """How much is known of some weights.

    Attributes
    ----------
    n_weights : int
        Number of weights.
    two_sided : float
        Share of the weights that have both a lower and an upper bound.
    mean_width : float or None
        Mean distance of the bounds, over these weights.
    certified_max_error : float or None
        Half of the largest distance: no weight with two bounds is further from the middle. None
        where they are not certified.
    n_conflicts : int
        Weights on which the inputs contradict each other.
    """

    n_weights: int
    two_sided: float
    mean_width: float | None
    certified_max_error: float | None
    n_conflicts: int

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
            "inputs": [str(model.path) for model in self.plan.models],
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
    plan: BoundsPlan, *, n_threads: int | None = None, progress: Progress | None = None
) -> BoundsResult:
    """Bound every weight; write the bounds if the plan has an output.

    Parameters
    ----------
    plan : BoundsPlan
        From `plan_bounds`.
    n_threads, progress : optional
        See `recover.execution.tiles`.

    Returns
    -------
    BoundsResult

    Raises
    ------
    OutputError
        If the output cannot be written.
    """
    start = time.perf_counter()
    inputs = [part for model in plan.models for part in model.parts]
    sizes = [tensor.n_weights for tensor in plan.tensors]
    figures = [np.zeros((n_tiles(size), 4)) for size in sizes]
    file = None if plan.output is None else OutputFile(plan.output, plan.n_bytes, inputs)
    with nullcontext() if file is None else file as output:
        told = ((i, each.n_weights, _kind_of(plan, each)) for i, each in enumerate(plan.tensors))
        together = list(stacks(told))
        workers = [
            _Worker(plan, together, output, figures) for _ in range(n_threads or available_cores())
        ]
        stacked = [len(stack) * sizes[stack[0]] for stack in together]
        for_each_tile(stacked, [worker.work for worker in workers], progress)
        tensors = tuple(statistics_of(n, rows) for n, rows in zip(sizes, figures, strict=True))
        if output is not None:
            failed = [
                tensor.name
                for tensor, found in zip(plan.tensors, tensors, strict=True)
                if tensor.failures or found.n_conflicts
            ]
            output.write_at(0, header_with(plan, failed))
    total = statistics_of(sum(sizes), np.concatenate(figures))
    return BoundsResult(plan, time.perf_counter() - start, total, tensors)


def _kind_of(plan: BoundsPlan, tensor: TensorPlan) -> Hashable:
    """What tensors have in common that are measured together; None of one that is not.

    Those are whose bounds nobody wants to see, and whose evidence is looked at as a whole.
    """
    kinds = tuple(each.type for each in tensor.sources)
    is_alone = plan.output is not None or not kinds or tensor.n_weights > PART
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
        certified_max_error=float(figures[:, 3].max() * _UP / 2) if is_certified else None,
        n_conflicts=int(n_conflicts),
    )


class _Worker:
    """One thread's part."""

    def __init__(
        self,
        plan: BoundsPlan,
        together: Sequence[tuple[int, ...]],
        output: OutputFile | None,
        figures: list[NDArray[np.float64]],
    ) -> None:
        self._plan = plan
        self._together = together
        self._output = output
        self._figures = figures
        self._intervals = Intervals()
        self._at = -1

    def work(self, tile: Tile) -> None:
        """Bound the weights of one tile."""
        stack = self._together[tile.tensor]
        if tile.tensor != self._at:
            sources = zip(*(self._plan.tensors[i].sources for i in stack), strict=True)
            self._intervals.look_at([stack_of(each) for each in sources])
            self._at = tile.tensor
        tensor = self._plan.tensors[stack[0]]
        if self._output is None and self._measure_at_once(tile, stack):
            return
        figures = self._figures[stack[0]][tile.start // TILE]
        lower, upper = self._intervals.bound(tile.start, tile.end)
        figures[:] = measure(lower, upper)
        if self._output is None:
            return
        mark_conflicts(lower, upper)
        for bounds, start, up in zip((lower, upper), tensor.positions, (False, True), strict=True):
            position = start + tile.start * self._plan.item_size
            if self._plan.dtype == "f32":
                self._output.write_at(position, bounds.data)
                continue
            words: NDArray[np.uint16] = np.empty(bounds.size, np.uint16)
            round_outward(bounds, up, words)
            self._output.write_at(position, words.data)

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


@kernel
def measure_cells(evidence: Evidence, found: NDArray[np.float64]) -> None:
    """As `measure`, of the intersections of cells, which are not kept.

    Fills a row (two-sided weights, conflicts, sum of widths, largest width) for each of the tensors
    of one size that lie one behind the other.
    """
    strips = new_strips(evidence)
    lower, upper = np.empty(16 * STRIP, np.float32), np.empty(16 * STRIP, np.float32)
    size = evidence.scale.shape[1] // found.shape[0]
    for i in range(found.shape[0]):
        n_two_sided, n_conflicts, total, largest = 0, 0, 0.0, 0.0
        for start in range(i * size, (i + 1) * size, STRIP):
            n = 16 * (min(start + STRIP, (i + 1) * size) - start)
            intersect_strip(evidence, strips, start, lower[:n], upper[:n])
            counted = measure(lower[:n], upper[:n])
            n_two_sided, n_conflicts = n_two_sided + counted[0], n_conflicts + counted[1]
            total, largest = total + counted[2], max(largest, counted[3])
        found[i, 0], found[i, 1], found[i, 2], found[i, 3] = (
            n_two_sided,
            n_conflicts,
            total,
            largest,
        )


@kernel
def measure(lower: F32Array, upper: F32Array) -> tuple[int, int, float, float]:
    """Two-sided weights, conflicts, the sum of the widths and the largest one of bounds (n,)."""
    part, zero, one = 4096, np.float32(0), np.float32(1)
    lanes = np.empty(64, np.float32)
    n_two_sided, n_conflicts, total, largest = 0, 0, 0.0, zero
    whole = lower.size - lower.size % 16
    for start in range(0, whole, part):
        closed_lanes = conflict_lanes = sum_lanes = largest_lanes = splat(zero)
        for i in range(start, min(start + part, whole), 16):
            low, high = load(lower, i), load(upper, i)
            width = high - low
            closed = (width < np.float32(np.inf)) & ~(high < low)
            width = where(closed, width, zero)
            closed_lanes = closed_lanes + where(closed, splat(one), zero)
            conflict_lanes = conflict_lanes + where(high < low, splat(one), zero)
            sum_lanes = sum_lanes + width
            largest_lanes = where(width > largest_lanes, width, largest_lanes)
        store(lanes, 0, closed_lanes)
        store(lanes, 16, conflict_lanes)
        store(lanes, 32, sum_lanes)
        store(lanes, 48, largest_lanes)
        for k in range(16):
            n_two_sided += int(lanes[k])
            n_conflicts += int(lanes[16 + k])
            total += np.float64(lanes[32 + k])
            largest = max(largest, lanes[48 + k])
    for i in range(whole, lower.size):
        width = upper[i] - lower[i]
        n_conflicts += upper[i] < lower[i]
        if width >= zero and width < np.float32(np.inf):
            n_two_sided += 1
            total += np.float64(width)
            largest = max(largest, width)
    return n_two_sided, n_conflicts, total, np.float64(largest)


@kernel
def mark_conflicts(lower: F32Array, upper: F32Array) -> None:
    """Make both bounds NaN where they contradict each other."""
    for i in range(lower.size):
        if lower[i] > upper[i]:
            lower[i] = upper[i] = np.float32(np.nan)


@kernel
def round_outward(bounds: F32Array, up: bool, words: NDArray[np.uint16]) -> None:
    """The nearest float16 that is not above (`up`: not below) each bound; NaN stays NaN."""
    for i in range(bounds.size):
        value = bounds[i]
        word = f32_to_f16(value)
        back = f16_to_f32(word)
        if up and back < value:
            word = _next_f16(word)
        elif not up and back > value:
            word = _next_f16(word ^ np.uint16(0x8000)) ^ np.uint16(0x8000)
        words[i] = word


@inner
def _next_f16(word: np.uint16) -> np.uint16:
    """The float16 above one that is not NaN or infinity."""
    if word == np.uint16(0x8000):
        return np.uint16(1)
    return (
        np.uint16(word - np.uint16(1))
        if word > np.uint16(0x8000)
        else np.uint16(word + np.uint16(1))
    )

"""What a merge is expected to gain, without writing anything."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recover.containers.model import Model, StoredTensor
from recover.estimators import DEFAULT_METHOD, MEAN, Tally, TileEstimator
from recover.evidence.buffer import Source, tells_errors
from recover.execution.stacks import can_be_stacked, stack_of, stacks
from recover.execution.tiles import Progress, Tile, available_cores, for_each_tile, n_tiles
from recover.inputs.alignment import Alignment
from recover.inputs.provenance import look_at_marks
from recover.merge.calibrated import with_error_calibration
from recover.merge.columns import Rows, row_lengths
from recover.merge.compare import (
    Comparison,
    compare,
    compare_unproven,
    compared_of,
    confines_of,
    count_decoded,
    takes_exact_codes,
    unproven,
)
from recover.merge.decide import Decider, Draft
from recover.merge.likeness import N_LIKENESS, Likeness
from recover.merge.redundant import errors_alone
from recover.quants import TILE, type_by_name


@dataclass(frozen=True)
class Expectation:
    """What merging one tensor is expected to give."""

    name: str
    """Name of the tensor."""
    n_weights: int
    """Number of weights."""
    types: tuple[str, ...]
    """How each input stores it."""
    duplicate_of: tuple[int, ...]
    """For each input, the first input with the same bytes."""
    variance: float | None
    """Expected mean square error of the merged weights; None where nothing is estimated (the finest
    input has floats or integers), or nothing tells the errors."""
    alone: tuple[float, ...]
    """The same of each input alone; empty if `variance` is None."""
    n_conflicts: int
    """Weights on which the inputs contradict each other."""
    n_confining: int
    """Inputs with different bytes whose codes confine the weights."""
    n_unlike: int = 0
    """Weights of which inputs without cells say something else (see `recover.merge.compare`), also
    those that take no part."""
    sources: tuple[Source, ...] = ()
    """The inputs that take part, if something is estimated."""

    @property
    def is_compared(self) -> bool:
        """Whether the inputs could contradict each other on the weights."""
        return self.n_confining > 1

    @property
    def mse_ratio(self) -> float | None:
        """Expected mean square error over that of the best input; None where there is none."""
        best = min(self.alone, default=0.0)
        return self.variance / best if self.variance is not None and best > 0 else None


def drafts_of(aligned: Alignment) -> list[Draft]:
    """What a merge with the default method does to each of the tensors."""
    look_at_marks(aligned.models, aligned.names)
    drafts = Decider(aligned.models, DEFAULT_METHOD).drafts(aligned, type_by_name("F16"))
    return list(with_error_calibration(drafts, MEAN))


def expect_merge(
    models: Sequence[Model],
    drafts: Sequence[Draft],
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Expectation, ...]:
    """Estimate all weights as ``recover merge`` does, keeping only the figures.

    Parameters
    ----------
    models : sequence of Model
        Inputs with the same tensors (see `recover.inputs.alignment.align`).
    drafts : sequence of Draft
        What a merge does to them (see `drafts_of`).
    n_threads : int, optional
        Default: the cores that this process may use.
    progress : callable, optional
        ``progress(n_weights_done, n_weights)``, called from this thread.

    Returns
    -------
    tuple of Expectation
        One per tensor, in the order of the first input.
    """
    sums = [_Sums(draft, models) for draft in drafts]
    chosen = [each for each in sums if each.sources or each.is_compared]
    if chosen:
        told = ((i, each.n_weights, each.kind()) for i, each in enumerate(chosen))
        together = [[chosen[i] for i in stack] for stack in stacks(told)]
        workers = [_Worker(together) for _ in range(n_threads or available_cores())]
        sizes = [len(each) * each[0].n_weights for each in together]
        for_each_tile(sizes, [worker.work for worker in workers], progress)
    return tuple(each.expectation() for each in sums)


def expected_ratio(expectations: Sequence[Expectation]) -> float | None:
    """Expected mean square error of all estimated weights over that of the best single input."""
    known = [each for each in expectations if each.variance is not None]
    merged = sum(each.n_weights * (each.variance or 0.0) for each in known)
    alone = zip(*([each.n_weights * x for x in each.alone] for each in known), strict=True)
    best = min(map(sum, alone), default=0.0)
    return merged / best if best > 0 else None


def _total(figures: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums over the tiles, one in a row; small tensors have one tile."""
    total: NDArray[np.float64] = figures[0] if len(figures) == 1 else figures.sum(0)
    return total


class _Sums:
    """One tensor: which inputs take part, and the sums of its tiles."""

    def __init__(self, draft: Draft, models: Sequence[Model]) -> None:
        self.draft = draft
        self.used = [models[i].tensors[draft.name] for i in draft.used]
        self.n_weights = self.used[0].n_weights
        self.sources = draft.sources
        self.compared = compared_of(draft, models)
        kinds = [tensor.type for tensor in self.compared]
        self.is_exact = bool(kinds) and takes_exact_codes(self.compared[0], is_known=draft.is_known)
        self.is_compared = bool(unproven(kinds, confines_of(draft), is_exact=self.is_exact))
        self.tallies = np.zeros((n_tiles(self.n_weights), Tally.size_for(len(self.used))))
        self.likeness = np.zeros((n_tiles(self.n_weights), N_LIKENESS))

    def kind(self) -> Hashable:
        """What tensors have in common that are taken together; None of one that is taken alone."""
        if not all(map(can_be_stacked, (*self.used, *self.compared))):
            return None
        draft = self.draft
        same = draft.types, draft.used, draft.method, draft.sources, draft.compared
        return *same, draft.is_known, draft.confining, draft.compared_noises

    def expectation(self) -> Expectation:
        """What the sums mean."""
        draft = self.draft
        likeness, tallies = _total(self.likeness), _total(self.tallies)
        n_unlike = Likeness(*likeness.tolist()).n_contradicted(self.n_weights)
        if not self.sources:
            known = draft.name, self.n_weights, draft.types, draft.duplicate_of
            return Expectation(*known, None, (), 0, 0, n_unlike)
        tally = Tally(tallies)
        of_input = dict(zip(draft.used, tally.alone.tolist(), strict=True))
        alone = errors_alone(draft.duplicate_of, draft.descents, of_input)
        is_told = tells_errors(self.sources)
        return Expectation(
            draft.name,
            self.n_weights,
            draft.types,
            draft.duplicate_of,
            tally.variance / self.n_weights if is_told else None,
            tuple(each / self.n_weights for each in alone) if is_told else (),
            int(tally.n_conflicts) if len(draft.used) > 1 else 0,
            sum(source.has_cells for source in self.sources),
            n_unlike,
            tuple(self.sources),
        )


class _Worker:
    """One thread's part."""

    def __init__(self, together: Sequence[Sequence[_Sums]]) -> None:
        self._together = together
        self._at = -1
        self._used: list[StoredTensor] = []
        self._row_lengths: tuple[int, ...] = ()
        self._comparison: Comparison | None = None
        self._estimate = np.empty(TILE, np.float32)
        self._estimator: TileEstimator | None = None
        self._known: tuple[tuple[Source, ...], str] = (), ""

    def work(self, tile: Tile) -> None:
        """Estimate the weights of one tile, for the sake of the sums, and compare inputs."""
        if tile.tensor != self._at:
            self._look_at(tile.tensor)
        together, n = self._together[tile.tensor], len(self._together[tile.tensor])
        index = tile.start // TILE
        if self._comparison is not None:
            likeness = self._comparison.likeness(tile.start, tile.end, n)
            for sums, found in zip(together, likeness, strict=True):
                sums.likeness[index] = found
        if self._estimator is None:
            return
        out = self._estimate[: tile.end - tile.start]
        tallies = self._estimator.estimate_each(self._used, tile.start, tile.end, n, out)
        for sums, tally in zip(together, tallies, strict=True):
            sums.tallies[index] = tally
        if len(self._used) > 1:
            evidence = self._estimator.evidence
            likeness = compare_unproven(evidence, Rows(self._row_lengths, tile.start))
            likeness[:, 0] += count_decoded(evidence, [each.type for each in self._used], n)
            for sums, found in zip(together, likeness, strict=True):
                sums.likeness[index] = found

    def _look_at(self, number: int) -> None:
        """Look at other tensors from now on."""
        self._at, together = number, self._together[number]
        first, draft = together[0], together[0].draft
        self._comparison = None
        if first.is_compared:
            compared = zip(*(each.compared for each in together), strict=True)
            self._comparison = compare(
                [stack_of(each) for each in compared],
                confines_of(draft),
                draft.compared_noises,
                is_exact=first.is_exact,
            )
        self._used = [
            stack_of(each) for each in zip(*(each.used for each in together), strict=True)
        ]
        self._row_lengths = row_lengths(self._used[0])
        known = draft.sources, draft.method
        if not draft.sources:
            self._estimator = None
        elif self._estimator is None or known != self._known:
            self._known, self._estimator = (
                known,
                TileEstimator(*known, error_calibration=draft.error_calibration),
            )

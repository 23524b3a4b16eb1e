"""What a merge is expected to gain, without writing anything."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recover.claims import find_claims
from recover.estimators import DEFAULT_METHOD, Request, estimator
from recover.evidence import EvidenceBuffer, Witness
from recover.gguf.reader import Model
from recover.matching import by_fineness, find_twins
from recover.merge.plan import method_for
from recover.provenance import witness_of
from recover.quants import TILE, FloatType, OpaqueType
from recover.reblock.origin import is_original
from recover.tiles import Progress, Tile, available_cores, for_each_tile, n_tiles


@dataclass(frozen=True)
class Expectation:
    """What merging one tensor is expected to give.

    Attributes
    ----------
    name : str
        Name of the tensor.
    n_weights : int
        Number of weights.
    types : tuple of str
        How each input stores it.
    twins : tuple of int
        For each input, the first input with the same bytes.
    variance : float or None
        Expected mean square error of the merged weights; None where nothing is estimated (the
        finest input has floats or integers).
    alone : tuple of float
        The same of each input alone; empty if `variance` is None.
    n_conflicts : int
        Weights on which the inputs contradict each other.
    n_confining : int
        Inputs with different bytes whose codes confine the weights.
    """

    name: str
    n_weights: int
    types: tuple[str, ...]
    twins: tuple[int, ...]
    variance: float | None
    alone: tuple[float, ...]
    n_conflicts: int
    n_confining: int

    @property
    def is_compared(self) -> bool:
        """Whether the inputs could contradict each other on the weights."""
        return self.n_confining > 1

    @property
    def mse_ratio(self) -> float | None:
        """Expected mean square error over that of the best input; None where there is none."""
        best = min(self.alone, default=0.0)
        return self.variance / best if self.variance is not None and best > 0 else None


def expect_merge(
    models: Sequence[Model],
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Expectation, ...]:
    """Estimate all weights as ``recover merge`` does, keeping only the figures.

    Parameters
    ----------
    models : sequence of Model
        Opened inputs with the same tensors (see `recover.bounds.plan.open_inputs`).
    n_threads : int, optional
        Default: the cores that this process may use.
    progress : callable, optional
        ``progress(n_weights_done, n_weights)``, called from this thread.

    Returns
    -------
    tuple of Expectation
        One per tensor, in the order of the first input.
    """
    drafts = [_Draft(name, models) for name in models[0].tensors]
    chosen = [draft for draft in drafts if draft.sources]
    if chosen:
        workers = [_Worker(chosen) for _ in range(n_threads or available_cores())]
        sizes = [draft.n_weights for draft in chosen]
        for_each_tile(sizes, [worker.work for worker in workers], progress)
    return tuple(draft.expectation() for draft in drafts)


def expected_ratio(expectations: Sequence[Expectation]) -> float | None:
    """Expected mean square error of all estimated weights over that of the best single input."""
    known = [each for each in expectations if each.variance is not None]
    merged = sum(each.n_weights * (each.variance or 0.0) for each in known)
    alone = sum(each.n_weights * np.array(each.alone) for each in known)
    best = float(np.min(alone)) if known else 0.0
    return merged / best if best > 0 else None


class _Draft:
    """One tensor: which inputs take part, and the sums of its tiles."""

    def __init__(self, name: str, models: Sequence[Model]) -> None:
        self.name = name
        self.tensors = [model.tensors[name] for model in models]
        self.n_weights = self.tensors[0].n_weights
        self.twins = find_twins(self.tensors)
        distinct = by_fineness(self.tensors, set(self.twins))
        certain = isinstance(self.tensors[distinct[0]].type, FloatType | OpaqueType)
        self.sources = [] if certain else distinct
        self.witnesses: list[Witness] = []
        for source in self.sources:
            tensor = self.tensors[source]
            self.witnesses.append(witness_of(models[source], tensor))
        self.tallies = np.zeros((n_tiles(self.n_weights), 2 + len(self.sources)))

    @property
    def method(self) -> str:
        """Name of the estimator."""
        if len(self.sources) == 1 and is_original(self.tensors[self.sources[0]]):
            return "best"
        return method_for(self.witnesses, DEFAULT_METHOD)

    def expectation(self) -> Expectation:
        """What the sums mean."""
        types = tuple(tensor.type.name for tensor in self.tensors)
        if not self.sources:
            return Expectation(self.name, self.n_weights, types, self.twins, None, (), 0, 0)
        tally: NDArray[np.float64] = self.tallies.sum(0)
        order = EvidenceBuffer(self.witnesses).order
        of_source = {s: tally[2 + slot] for s, slot in zip(self.sources, order, strict=True)}
        return Expectation(
            self.name,
            self.n_weights,
            types,
            self.twins,
            float(tally[0] / self.n_weights),
            tuple(float(of_source[twin] / self.n_weights) for twin in self.twins),
            int(tally[1]) if len(self.sources) > 1 else 0,
            sum(witness.has_cells for witness in self.witnesses),
        )


class _Worker:
    """One thread's part."""

    def __init__(self, drafts: Sequence[_Draft]) -> None:
        self._drafts = drafts
        self._estimate = np.empty(TILE, np.float32)
        self._witnesses: list[Witness] = []
        self._buffer = EvidenceBuffer([])

    def work(self, tile: Tile) -> None:
        """Estimate the weights of one tile, for the sake of the sums."""
        draft = self._drafts[tile.tensor]
        if draft.witnesses != self._witnesses:
            self._buffer, self._witnesses = EvidenceBuffer(draft.witnesses), draft.witnesses
        sources = [draft.tensors[source] for source in draft.sources]
        stored = [
            each.raw[each.type.n_bytes(tile.start) : each.type.n_bytes(tile.end)]
            for each in sources
        ]
        n_weights = tile.end - tile.start
        evidence = self._buffer.load(stored, n_weights)
        tally = draft.tallies[tile.start // TILE]
        request = Request()
        estimate = self._estimate[:n_weights]
        estimator(draft.method).estimate(evidence, estimate, tally, request)
        claims = find_claims(tuple(draft.witnesses), draft.method)
        claims.correct(tally, estimate, request.deviation)

"""The estimate of a tile, with the errors that an estimator expects from what it assumes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recover.containers.model import ArrayTensor, StoredTensor
from recover.estimators._request import MEAN, Request
from recover.estimators.base import estimator
from recover.estimators.tally import ALONE, Tally
from recover.evidence.buffer import Evidence, EvidenceBuffer, Source
from recover.evidence.stored import StoredTile
from recover.quants import F32Array, IntervalTensor, U8Array

_NOT_ASKED_FOR = np.empty(0, np.float32)


class UncorrectedTileEstimator:
    """Estimates tiles of one tensor; for those who look at estimates, or measure errors.

    All others take `recover.estimators.tile.TileEstimator`, which corrects the expected errors.

    Parameters
    ----------
    sources : sequence of Source
        The inputs, finest first; scalar ones, intervals and vector types may be mixed.
    method : str
        Name of the estimator.
    estimate : {"mean", "map"}
        What is asked of it.

    Attributes
    ----------
    estimator : Estimator
        What is known of the method.
    evidence : Evidence
        Of the last tile, until the next one.

    Raises
    ------
    PlanError
        If there is no such method.
    QuantError
        If a type gives no evidence.
    """

    evidence: Evidence

    def __init__(self, sources: Sequence[Source], method: str, estimate: str = MEAN) -> None:
        self.estimator = estimator(method)
        self._sources = tuple(sources)
        self._asked_for = estimate
        self._buffer = EvidenceBuffer(self._sources)
        places = self._buffer.by_place(np.arange(len(self._sources), dtype=np.float64))
        self._places = tuple(map(int, places))
        self._placed = tuple(self._sources[i] for i in self._places)
        self._is_in_order = self._places == tuple(range(len(self._sources)))
        self._stored = StoredTile()

    def estimate(
        self,
        inputs: Sequence[StoredTensor | IntervalTensor | U8Array],
        start: int,
        end: int,
        out: F32Array,
        deviation: F32Array | None = None,
    ) -> Tally:
        """Estimate weights `start` to `end`.

        Parameters
        ----------
        inputs : sequence of StoredTensor, IntervalTensor or of uint8 arrays
            The tensor in each input, or all of its stored bytes, in the order of the sources.
        start, end : int
            Whole blocks of every type, at most `recover.quants.TILE` weights.
        out : float32 (end - start,)
            To be filled with the estimates.
        deviation : float32 (end - start,) or (0,), optional
            To be filled with the standard deviations to expect, if not empty.

        Returns
        -------
        Tally
            Of these weights; its `alone` is in the order of the sources.
        """
        return Tally(self.estimate_each(inputs, start, end, 1, out, deviation)[0])

    def estimate_each(
        self,
        inputs: Sequence[StoredTensor | IntervalTensor | U8Array],
        start: int,
        end: int,
        n_tensors: int,
        out: F32Array,
        deviation: F32Array | None = None,
    ) -> NDArray[np.float64]:
        """As `estimate`, of several tensors of one size that lie one behind the other.

        Returns
        -------
        float64 (n_tensors, 2 + n_inputs)
            A row is the array of a tensor's tally.
        """
        self.read(inputs, start, end)
        tallies = self.estimate_each_from(self.evidence, n_tensors, out, deviation)
        if not self._is_in_order:
            tallies[:, ALONE:] = tallies[:, ALONE + self._buffer.order]
        return tallies

    def read(
        self, inputs: Sequence[StoredTensor | IntervalTensor | U8Array], start: int, end: int
    ) -> Evidence:
        """The evidence on weights `start` to `end`, until the next tile (see `estimate`)."""
        tensors = [
            _tensor_of(each, source) if isinstance(each, np.ndarray) else each
            for each, source in zip(inputs, self._sources, strict=True)
        ]
        self.evidence = self._buffer.read(tensors, start, end)
        self._stored = StoredTile([tensors[i] for i in self._places], start, end)
        return self.evidence

    def estimate_from(
        self, evidence: Evidence, out: F32Array, deviation: F32Array | None = None
    ) -> Tally:
        """Estimate what evidence tells; `alone` of the tally is in the order of the evidence."""
        return Tally(self.estimate_each_from(evidence, 1, out, deviation)[0])

    def estimate_each_from(
        self,
        evidence: Evidence,
        n_tensors: int,
        out: F32Array,
        deviation: F32Array | None = None,
    ) -> NDArray[np.float64]:
        """As `estimate_from`, of several tensors; the arrays of their tallies."""
        tallies = np.zeros((n_tensors, Tally.size_for(len(self._sources))))
        deviation = _NOT_ASKED_FOR if deviation is None else deviation
        request = Request(self._asked_for, deviation, self._placed, self._stored)
        self.estimator.estimate_each(evidence, out, tallies, request)
        return tallies

    def by_place(self, figures: NDArray[np.float64]) -> NDArray[np.float64]:
        """Figures in the order of the sources, put into that of the evidence."""
        return self._buffer.by_place(figures)

    def decode(self, source: int, out: F32Array) -> None:
        """What an input says of the last tile (see `EvidenceBuffer.decode`)."""
        self._buffer.decode(self.evidence, source, out)


def _tensor_of(raw: NDArray[np.uint8], source: Source) -> ArrayTensor:
    """Stored bytes as a tensor."""
    n_weights = raw.size // source.type.type_size * source.type.block_size
    return ArrayTensor("", (n_weights,), source.type, raw)

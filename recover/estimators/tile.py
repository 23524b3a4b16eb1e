"""The estimate of a tile, as a merge has it: the same wherever one is made or predicted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover.estimators._request import MEAN
from recover.estimators.bootstrap import Bootstrap
from recover.estimators.error_calibration import ErrorCalibration, calibrate_errors, kurtosis_of
from recover.estimators.tally import Tally
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Evidence, Source
from recover.quants import GROUP, F32Array

__all__ = ["Tally", "TileEstimator"]

_NONE = np.empty(0, np.float32)


class TileEstimator(UncorrectedTileEstimator):
    """Estimates tiles of one tensor; expected errors are corrected by what was measured.

    It has memory of its own: each thread needs one.

    Parameters
    ----------
    sources, method, estimate
        As of `UncorrectedTileEstimator`.
    error_calibration : ErrorCalibration, optional
        What `recover.estimators.error_calibration` says of the inputs, if known; it
        takes a while.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        method: str,
        estimate: str = MEAN,
        *,
        error_calibration: ErrorCalibration | None = None,
    ) -> None:
        super().__init__(sources, method, estimate)
        self._error_calibration = error_calibration or calibrate_errors(
            tuple(sources), method, estimate
        )
        self._bootstrap = Bootstrap(sources, method, estimate)

    def estimate_each_from(
        self,
        evidence: Evidence,
        n_tensors: int,
        out: F32Array,
        deviation: F32Array | None = None,
    ) -> NDArray[np.float64]:
        """Estimate what evidence tells; sums of inputs are in the order of the evidence."""
        tallies = super().estimate_each_from(evidence, n_tensors, out, deviation)
        kurtosis = kurtosis_of(out, n_tensors)
        measured = self._bootstrap.measured(evidence, out, kurtosis)
        if not measured:
            self._error_calibration.correct(tallies, kurtosis, deviation)
            return tallies
        size, deviation = out.size // n_tensors, _NONE if deviation is None else deviation
        for i in range(n_tensors):
            part, own = slice(i * size, (i + 1) * size), slice(i, i + 1)
            known, sums, spread = measured.get(i), tallies[own], deviation[part]
            if known is None:
                self._error_calibration.correct(sums, kurtosis[own], spread)
                continue
            scale = evidence.scale[0, part.start // GROUP : part.stop // GROUP]
            by_sample, its_spread = sums.copy(), spread.copy()
            known.correct(sums[0], out[part], scale, spread)
            if known.trust < 1:
                self._error_calibration.correct(by_sample, kurtosis[own], its_spread)
                _weigh(sums, by_sample, known.trust)
                _weigh(spread, its_spread, known.trust)
        return tallies


def _weigh(values: NDArray[Any], others: NDArray[Any], trust: float) -> None:
    """Replace figures by ``values**trust * others**(1 - trust)``, unless one of them is 0."""
    ratio = np.divide(values, others, out=np.ones_like(values), where=others > 0)
    values *= np.power(ratio, trust - 1, out=np.ones_like(ratio), where=ratio > 0)

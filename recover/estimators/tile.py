"""The estimate of a tile, as a merge has it: the same wherever one is made or predicted."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recover.estimators._request import MEAN
from recover.estimators.error_calibration import ErrorCalibration, calibrate_errors
from recover.estimators.tally import Tally
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Evidence, Source
from recover.quants import F32Array

__all__ = ["Tally", "TileEstimator"]


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

    def estimate_each_from(
        self,
        evidence: Evidence,
        n_tensors: int,
        out: F32Array,
        deviation: F32Array | None = None,
    ) -> NDArray[np.float64]:
        """Estimate what evidence tells; sums of inputs are in the order of the evidence."""
        tallies = super().estimate_each_from(evidence, n_tensors, out, deviation)
        self._error_calibration.correct(tallies, out, deviation)
        return tallies

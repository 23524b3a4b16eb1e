"""The estimate of a tile, as a merge has it: the same wherever one is made or predicted."""

from collections.abc import Sequence

from recover.estimators._request import MEAN
from recover.estimators.error_calibration import Claims, find_claims
from recover.estimators.tally import Tally
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Evidence, Witness
from recover.quants import F32Array

__all__ = ["Tally", "TileEstimator"]


class TileEstimator(UncorrectedTileEstimator):
    """Estimates tiles of one tensor; expected errors are corrected by what was measured.

    It has memory of its own: each thread needs one.

    Parameters
    ----------
    witnesses, method, estimate
        As of `UncorrectedTileEstimator`.
    claims : Claims, optional
        What `recover.estimators.error_calibration.find_claims` says of the inputs, if known; it
        takes a while.
    """

    def __init__(
        self,
        witnesses: Sequence[Witness],
        method: str,
        estimate: str = MEAN,
        *,
        claims: Claims | None = None,
    ) -> None:
        super().__init__(witnesses, method, estimate)
        self._claims = claims or find_claims(tuple(witnesses), method, estimate)

    def estimate_from(
        self, evidence: Evidence, out: F32Array, deviation: F32Array | None = None
    ) -> Tally:
        """Estimate what evidence tells; `alone` of the tally is in the order of the evidence."""
        tally = super().estimate_from(evidence, out, deviation)
        self._claims.correct(tally, out, deviation)
        return tally

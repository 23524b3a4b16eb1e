"""What is asked of an estimator besides the estimate."""

from typing import NamedTuple

import numpy as np

from recover.evidence.buffer import Source
from recover.evidence.stored import StoredTile
from recover.quants import GROUP, F32Array

MEAN, MODE = "mean", "map"
ESTIMATES = (MEAN, MODE)


class Request(NamedTuple):
    """What is asked of an estimator.

    Attributes
    ----------
    estimate : str
        ``mean`` of the posterior or ``map``, its mode; other methods have only one estimate.
    deviation : float32 (n,) or (0,)
        To be filled with the standard deviation to expect of each weight, if not empty.
    sources : tuple of Source
        The inputs, in the order of the evidence; empty where nobody tells.
    stored : StoredTile
        The stored bytes of these weights and what they say of sub-blocks, in the order of the
        evidence. It has no inputs where nobody tells.
    """

    estimate: str = MEAN
    deviation: F32Array = np.empty(0, np.float32)
    sources: tuple[Source, ...] = ()
    stored: StoredTile = StoredTile()


def fill_deviation(request: Request, variance: F32Array) -> None:
    """Standard deviations from a variance (n / 16,) that weights share in groups, if asked for."""
    if request.deviation.size:
        deviation = np.sqrt(variance)
        np.copyto(request.deviation.reshape(-1, GROUP), deviation[:, None])

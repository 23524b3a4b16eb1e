"""The mean of the inputs, weighted by inverse variance, per group of 16 weights.

Where the rounding errors of the inputs are independent these are the best linear weights, and they
need no ground truth: the variance of an input is its type's `noise` times its squared scale. (A
least-squares fit to the truth finds the same weights to two digits.) With a calibration its factors
are taken instead, one per input and tensor.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recover.estimators._combine import combine
from recover.estimators._expected import expect
from recover.estimators._request import Request, fill_deviation
from recover.estimators.base import WEIGHTS, Calibration
from recover.evidence.buffer import Evidence, Source
from recover.quants import GROUP, F32Array

SUMMARY = "the mean weighted by inverse variance, or by the weights of a calibration"
CALIBRATED = WEIGHTS


def estimate_each(
    evidence: Evidence, out: F32Array, tallies: NDArray[np.float64], request: Request
) -> None:
    """See `recover.estimators`."""
    variance = np.empty(out.size // GROUP, np.float32)
    is_told = len(evidence.interval_values) > 0 and not evidence.weights.size
    sums = np.zeros_like(tallies) if is_told else tallies
    combine(evidence, out, variance, sums, is_counted=True)
    fill_deviation(request, variance)
    if is_told:
        expect(evidence, out, variance, tallies, request)


def calibrate(
    sources: Sequence[Source],
    calibration: Calibration,
    role: str | None,
    depth: float | None,
) -> tuple[Source, ...]:
    """The sources with their weights, unless llama.cpp did not make all of their codes."""
    if any(source.noise is not None for source in sources):
        return tuple(sources)
    weights = calibration.weights_for([each.type.name for each in sources], role, depth)
    pairs = zip(sources, weights, strict=True)
    return tuple(replace(source, weight=weight) for source, weight in pairs)

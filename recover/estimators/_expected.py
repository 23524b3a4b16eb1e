"""The error to expect of any estimate beside inputs that state intervals: what the posterior says.

Let the posterior of a weight have the mean m and the variance V. An estimate x is then off by

    E[(x - weight)^2] = (x - m)^2 + V

whatever it was made of, and so is the value of an input alone. That takes account of what the
errors of inputs have in common, as rounding to the same multiples, which their variances do not
tell. Some superblocks of each tensor are looked at; of the others the error is taken to go with the
variances that the inputs state.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover.estimators._request import Request
from recover.estimators._variances import STEP, group_variances, sum_variance
from recover.estimators.methods import posterior
from recover.estimators.tally import ALONE, VARIANCE
from recover.evidence.buffer import Evidence, rows_of
from recover.quants import GROUP, F32Array

_SUPERBLOCK = 256
_N_SAMPLED = 125  # superblocks of a tensor


def expect(
    evidence: Evidence,
    estimate: F32Array,
    variance: F32Array,
    tallies: NDArray[np.float64],
    request: Request,
) -> None:
    """Add the errors to expect to the tallies of tensors, and scale the deviations accordingly.

    Parameters
    ----------
    evidence : Evidence
        Of tensors of one size, one behind the other.
    estimate : float32 (n,)
        Of the weights.
    variance : float32 (n / 16,)
        Of the estimates, as far as the variances of the inputs tell.
    tallies : float64 (n_tensors, 2 + n_inputs)
        Their sums: the expected square errors of the estimates and of each input are added.
    request : Request
        Its deviations, where there are any, are those that `variance` tells.
    """
    n_tensors, width = tallies.shape
    places = _sampled(estimate.size // n_tensors, n_tensors)
    part = evidence if places is None else rows_of(evidence, places, _SUPERBLOCK)
    mean = np.empty(part.interval_values.shape[1], np.float32)
    deviation, sums = np.empty_like(mean), np.zeros((n_tensors, width))
    asked = Request(deviation=deviation, sources=request.sources)
    posterior.estimate_each(part, mean, sums, asked)
    with np.errstate(invalid="ignore", over="ignore"):
        off = _chosen(estimate, places, _SUPERBLOCK).astype(np.float64) - mean
        square = off * off + np.square(deviation.astype(np.float64))
    square[~np.isfinite(square)] = 0
    told = square.reshape(n_tensors, -1).sum(1)
    shares = _of_all(variance, places, told, n_tensors)
    tallies[:, VARIANCE] += told * shares
    own = np.empty_like(variance)
    for k in range(width - ALONE):
        group_variances(evidence, k, own)
        alone = sums[:, ALONE + k]
        tallies[:, ALONE + k] += alone * _of_all(own, places, alone, n_tensors)
    _rescale(request, variance, told * shares)


def _sampled(size: int, n_tensors: int) -> NDArray[np.int64] | None:
    """Superblocks that are looked at, of tensors of so many weights; None if all are."""
    n_blocks = size // _SUPERBLOCK
    stride = n_blocks // _N_SAMPLED
    if size % _SUPERBLOCK or stride < 2:
        return None
    number = np.arange(n_blocks)
    chosen = number[number % stride == number // stride * STEP % stride]
    return (np.arange(n_tensors)[:, None] * n_blocks + chosen).reshape(-1)


def _chosen(array: NDArray[Any], places: NDArray[np.int64] | None, n_each: int) -> NDArray[Any]:
    """Of an array with so many numbers for each superblock those of the chosen ones, flat."""
    return array if places is None else array.reshape(-1, n_each)[places].reshape(-1)


def _of_all(
    variance: F32Array,
    places: NDArray[np.int64] | None,
    told: NDArray[np.float64],
    n_tensors: int,
) -> NDArray[np.float64]:
    """What sums over the chosen superblocks of tensors are to be multiplied by: a ratio estimate.

    Errors go with the variance (n / 16,); where that says nothing with the number of weights.
    """
    if places is None:
        return np.ones_like(told)
    some = _chosen(variance, places, _SUPERBLOCK // GROUP)
    whole, part = (
        np.array([sum_variance(each) for each in np.split(rows, n_tensors)])
        for rows in (variance, some)
    )
    shares = np.full(n_tensors, variance.size / some.size)
    np.divide(whole, part, out=shares, where=part > 0)
    return shares


def _rescale(request: Request, variance: F32Array, told: NDArray[np.float64]) -> None:
    """Make the squares of deviations, which are those of the variance, what is told in all."""
    if not request.deviation.size:
        return
    rows = request.deviation.reshape(told.size, -1)
    for row, own, each in zip(rows, np.split(variance, told.size), told, strict=True):
        total = sum_variance(own)
        row *= np.float32((each / total) ** 0.5 if total > 0 else 1)

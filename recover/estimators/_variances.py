"""Kernels over the expected variances of groups of 16 weights: of an input, sums, amounts."""

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import add_up, any_lane
from recover._compiled.jit import bare_inlined, bare_inner, kernel
from recover._compiled.lanes import LANES, load, store, where
from recover.evidence.buffer import Evidence
from recover.quants import F32Array

_ZERO, _FAR = np.float32(0), np.float32(np.inf)

STEP = 7919
"""A prime: of so many superblocks one is looked at, and of the next ones so many places further."""


@bare_inner
def mean_variances(values: F32Array, each: F32Array, variance: F32Array) -> None:
    """The means of `each` (n,) over groups of 16 weights; infinite where something is broken."""
    for g in range(variance.size):
        broken = any_lane(~(abs(load(values, 16 * g)) < np.float32(np.inf)))
        mean = add_up(load(each, 16 * g)) / np.float32(16)
        variance[g] = np.float32(np.inf) if broken or not np.isfinite(mean) else mean


@kernel
def group_variances(evidence: Evidence, k: int, variance: F32Array) -> None:
    """Expected mean square error (n / 16,) of input `k`; infinite where its bytes are broken.

    ``noise s^2`` of a scalar input with the scale s, the mean of the stated variances of an
    interval input, and ``relative_mse`` times the mean square of a superblock of the others.
    """
    n_scalars, n_proven = evidence.scale.shape[0], evidence.interval_values.shape[0]
    if k < n_scalars:
        noise = np.float32(evidence.noise[k])
        scalar_variances(noise, evidence.scale[k], evidence.offset[k], variance)
    elif k < n_scalars + n_proven:
        row = k - n_scalars
        mean_variances(evidence.interval_values[row], evidence.interval_variance[row], variance)
    else:
        variance[:] = evidence.variance[k - n_scalars - n_proven, : variance.size]


@bare_inner
def scalar_variances(
    noise: np.float32, scale: F32Array, offset: F32Array, variance: F32Array
) -> None:
    """``noise s^2`` (n / 16,); infinite where a scale or an offset is broken."""
    whole = variance.size // LANES * LANES
    for g in range(0, whole, LANES):
        several = noise * load(scale, g) * load(scale, g)
        known = (abs(load(offset, g)) < _FAR) & (abs(several) < _FAR)
        store(variance, g, where(known, several, _FAR))
    for g in range(whole, variance.size):
        alone = noise * scale[g] * scale[g]
        variance[g] = alone if np.isfinite(offset[g]) and np.isfinite(alone) else _FAR


@kernel
def sum_variance(variance: F32Array) -> float:
    """Sum over the weights of a variance (n / 16,) that they share in groups, where it is known."""
    total = 0.0
    for g in range(variance.size):
        total += np.float64(variance[g]) if variance[g] < np.inf else 0.0
    return 16 * total


@bare_inlined
def n_effective(variance: F32Array) -> int:
    """How many groups would count as much if all had one variance: ``(sum V)^2 / (sum V^2)``.

    The groups are those of whole superblocks. There are four sums of a kind, as each waits for the
    number before.
    """
    a = b = c = d = aa = bb = cc = dd = 0.0
    for g in range(0, variance.size, 4):
        one, two = _known(variance[g]), _known(variance[g + 1])
        three, four = _known(variance[g + 2]), _known(variance[g + 3])
        a, b, c, d = a + one, b + two, c + three, d + four
        aa, bb, cc, dd = aa + one * one, bb + two * two, cc + three * three, dd + four * four
    total, squares = (a + b) + (c + d), (aa + bb) + (cc + dd)
    return int(total * total / squares) if squares > 0 else 0


HARDLY_ANYTHING = 1e-30
"""Part of the `amount` of each group."""


@bare_inlined
def add_amount(variance: F32Array, start: int, end: int, amount: float) -> float:
    """Add what errors of groups are in proportion to: the variance where it is known."""
    for g in range(start, end):
        amount += _known(variance[g])
    return amount


@bare_inlined
def _known(variance: np.float32) -> float:
    return np.float64(variance if variance < _FAR else _ZERO)


@kernel
def add_variance(variance: F32Array, tallies: NDArray[np.float64], column: int) -> None:
    """Add the sums over the weights of tensors to a column (n_tensors, ...).

    Tensors of one size lie one behind the other in the variance (n / 16,), as `sum_variance` has
    it.
    """
    n = variance.size // tallies.shape[0]
    for i in range(tallies.shape[0]):
        tallies[i, column] += sum_variance(variance[i * n : (i + 1) * n])

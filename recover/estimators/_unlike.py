"""Looks for tensors that are unlike the shipped sample of weights.

The sample has no zeros, no far outliers, no tails as light as those of uniform weights, no blocks
of one sign, and no weights so small that float16 hardly holds their scales. A few superblocks tell,
by their codes, scales and estimates.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import add_up, largest_lane, sum_lanes
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import larger, load, splat, where
from recover.estimators._rounded_scales import least_scales
from recover.estimators._variances import STEP
from recover.estimators._zeros import FEWEST, MORE
from recover.evidence.buffer import Evidence
from recover.quants import F32Array, U8Array

FEWEST_KNOWN = 32
"""Superblocks: what fewer tell is chance."""

BLOCK = 32
"""Weights that may have a sign or a scale of their own."""

_LOOKED_AT = 12  # superblocks
_LIGHT_TAILS, _FAR_TAILS = 2.3, 25.0  # kurtosis; that of uniform weights is 1.8, of normal ones 3
_SPARSE = 0.25  # of the superblocks that are not all 0
_DEAD = 4  # of sixteen groups
_FAR_ABOVE = 50.0  # squared scales over their mean: there may be superblocks with outliers
_BESIDE = 7.0  # the largest squared scale over the mean of such a superblock
_FEW_ALL = 0.4  # of the error that is expected, that such superblocks have
_ONE_SIDED = 0.1  # of the squares of blocks, that their means have; by chance 1/32
_ROUNDED = 0.2  # steps by which float16 may have moved the levels at the ends


def hardly_held(evidence: Evidence) -> F32Array:
    """Scales of groups (n_inputs,): smaller ones are of scales that float16 hardly holds."""
    return least_scales(evidence, _ROUNDED)


def find_unlike(
    evidence: Evidence,
    limits: F32Array,
    finest: int,
    estimates: F32Array,
    kurtosis: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Which tensors are unlike the sample.

    Parameters
    ----------
    evidence : Evidence
        Of tensors of one size, one behind the other.
    limits : float32 (n_inputs,)
        See `hardly_held`: the same for all tiles.
    finest : int
        The input in which zeros are looked for; none if it is negative.
    estimates : float32 (n,)
        Of all of their weights.
    kurtosis : float64 (n_tensors,)
        Of the estimates.

    Returns
    -------
    bool (n_tensors,)
    """
    found = np.empty(kurtosis.size, np.bool_)
    k = max(finest, 0)
    grid = evidence.codes[k], evidence.scale[k], evidence.offset[k]
    levels = evidence.lower_levels[k], evidence.upper_levels[k]
    _find(*grid, *levels, evidence.scale, limits, finest >= 0, estimates, kurtosis, found)
    return found


@kernel
def _find(
    codes: U8Array,
    scale: F32Array,
    offset: F32Array,
    lower: F32Array,
    upper: F32Array,
    scales: F32Array,
    limits: F32Array,
    may_be_sparse: bool,
    estimates: F32Array,
    kurtosis: NDArray[np.float64],
    found: NDArray[np.bool_],
) -> None:
    """See `find_unlike`; `scales` and `limits` (K,) are of all inputs, the others of one."""
    size = codes.size // found.size
    is_whole = size >= 256 * FEWEST_KNOWN and codes.size % (256 * found.size) == 0
    n_looked_at = min(size // 256, _LOOKED_AT)
    for i in range(found.size):
        if not is_whole:
            found[i] = False
            continue
        n_sparse, n_alive, n_rounded, one_sided, n_blocks = 0, 0, 0, 0.0, 0
        stride = size // 256 // n_looked_at
        for j in range(n_looked_at):
            start = i * size + 256 * (j * stride + j * STEP % stride)
            n_rounded += _is_rounded(scales, limits, start // 16)
            for at in range(start, start + 256, BLOCK):
                share = share_of_mean(estimates, at)
                if share >= 0:
                    one_sided += share
                    n_blocks += 1
            if may_be_sparse:
                n_dead = _n_dead(scale, start // 16)
                n_alive += n_dead < 16
                is_gone = _DEAD <= n_dead < 16
                n_sparse += is_gone or _is_sparse(codes, scale, offset, lower, upper, start)
        found[i] = (
            not _LIGHT_TAILS < kurtosis[i] < _FAR_TAILS
            or n_sparse > _SPARSE * n_alive
            or one_sided > _ONE_SIDED * n_blocks
            or n_rounded > _SPARSE * n_looked_at
            or _have_few_all(scale[i * size // 16 : (i + 1) * size // 16])
        )


@inner
def share_of_mean(x: F32Array, start: int) -> float:
    """Of the squares of a block, what its mean has; negative if all are 0."""
    one, other = load(x, start), load(x, start + BLOCK // 2)
    total, squares = sum_lanes(one + other), np.float64(sum_lanes(one * one + other * other))
    return np.float64(total) * total / (BLOCK * squares) if 0 < squares < np.inf else -1.0


@inner
def _is_rounded(scales: F32Array, limits: F32Array, start: int) -> bool:
    """Whether the scales that an input has of a superblock are all below its limit."""
    rounded = False
    for k in range(limits.size):
        largest = np.float32(0)
        for g in range(start, start + 16):
            largest = max(largest, abs(scales[k, g]))
        rounded = rounded or bool(0 < largest < limits[k])
    return rounded


@inner
def _n_dead(scale: F32Array, start: int) -> int:
    """How many groups of a superblock have the scale 0."""
    n = 0
    for g in range(start, start + 16):
        n += scale[g] == 0
    return n


@inner
def _have_few_all(scale: F32Array) -> bool:
    """Whether superblocks with an outlier have much of the error, which is as squared scales."""
    total, largest = splat(np.float32(0)), splat(np.float32(0))
    for g in range(0, scale.size, 16):
        square = _known_squares(scale, g)
        total, largest = total + square, larger(square, largest)
    whole = np.float64(add_up(total))
    if np.float64(largest_lane(largest)) * scale.size <= _FAR_ABOVE * whole:
        return False
    of_few = 0.0
    for g in range(0, scale.size, 16):
        square = _known_squares(scale, g)
        own = np.float64(add_up(square))
        if np.float64(largest_lane(square)) * 16 > _BESIDE * own:
            of_few += own
    return bool(of_few > _FEW_ALL * whole)


@inner
def _known_squares(scale: F32Array, g: int) -> Any:
    """Of sixteen scales; 0 for those that are not finite."""
    square = load(scale, g) * load(scale, g)
    return where(square < np.float32(np.inf), square, np.float32(0))


@inner
def _is_sparse(
    codes: U8Array, scale: F32Array, offset: F32Array, lower: F32Array, upper: F32Array, start: int
) -> bool:
    """Whether far more weights of a superblock may be 0 than lie beside.

    As `recover.estimators._zeros` tells by the cells of all inputs.
    """
    n_zero = n_beside = 0
    for g in range(start // 16, start // 16 + 16):
        s, o = abs(scale[g]), offset[g] if scale[g] > 0 else -offset[g]
        if not 0 < s < np.inf:
            continue
        at = -o / s
        for i in range(16 * g, 16 * g + 16):
            low, high = lower[codes[i]] - at, upper[codes[i]] - at
            width = high - low
            slack = np.float32(1e-3) * width
            if not width < np.inf:
                continue
            if low <= slack and high >= -slack:
                n_zero += 1
            elif abs(low + high) < 4 * width:
                n_beside += 1
    return bool(n_zero >= FEWEST and n_zero >= MORE * n_beside)

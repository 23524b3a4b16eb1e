"""Errors that inputs share since they round to the same multiples.

Two groups of weights of which the largest is the same have scales that are the same, or nearly so,
if both formats fit them to it: a block of 32 of Q8_0 and a row of INT8, for instance, where the
row's largest weight is in the block. Both inputs then say the same, and their mean is no better
than either. How often that happens depends on the lengths of rows and groups. Scales tell where, or
values that hardly differ; and the differences of the two inputs how much of their errors is shared:

    E[e_j e_k] = (V_j + V_k - E[(x_j - x_k)^2]) / 2

Only of weights that are rounded: compensated codes have errors besides. Steps are told of even
grids; a float grid has another step for each code.
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from recover.estimators._variances import group_variances
from recover.evidence.buffer import Evidence, take_one
from recover.quants import GROUP

_ALIKE = 0.015
"""How far steps may differ, relative. With 8 bits multiples then go apart by a step at most."""
_EVEN = 1.05
"""By how much the median of a group's variances may be more than their quartile, if it has one
step. Outermost codes have less, and those of float grids differ."""


_SAME = 0.25
"""Of the sum of both variances: groups whose mean square difference is less round to the same. Of
independent errors one group in two hundred does by chance."""


def shared_errors(evidence: Evidence, n_tensors: int) -> NDArray[np.float64]:
    """What the expected square error of the mean weighted by inverse variance lacks.

    Parameters
    ----------
    evidence : Evidence
        Of tensors of one size, one behind the other.
    n_tensors : int
        How many there are.

    Returns
    -------
    float64 (n_tensors,)
        The sum over pairs of inputs j, k and weights whose steps are alike, of ``2 w_j w_k E[e_j
        e_k]``; 0 where there are none. So it is where both say nearly the same.
    """
    steps = _steps(evidence)
    sums = np.zeros(n_tensors)
    n_groups = steps.shape[1]
    values = np.empty((len(steps), n_groups * GROUP), np.float32)
    means = np.empty((len(steps), n_groups), np.float32)
    for k in range(len(steps)):
        take_one(evidence, k, values[k])
        group_variances(evidence, k, means[k])
    values = values.reshape(-1, n_groups, GROUP)
    for j, k in combinations(np.flatnonzero(_are_rounded(evidence)).tolist(), 2):
        with np.errstate(all="ignore"):
            off = values[j] - values[k]
            is_same = np.einsum("gi,gi->g", off, off) < GROUP * _SAME * (means[j] + means[k])
            alike = np.flatnonzero(is_same | (np.abs(steps[j] / steps[k] - 1) < _ALIKE))
        if not alike.size:
            continue
        variances = [_variances(evidence, i, alike) for i in range(_n_inputs(evidence))]
        with np.errstate(all="ignore"):
            precision = sum(np.where(each > 0, 1 / each, 0) for each in variances)
            both = variances[j] + variances[k] - np.square(off[alike].astype(np.float64))
            each = both / (variances[j] * variances[k] * np.square(precision))
        each[~np.isfinite(each)] = 0
        tensor = alike // (n_groups // n_tensors)
        sums += np.bincount(tensor, each.sum(1), n_tensors)
    return sums


def _are_rounded(evidence: Evidence) -> NDArray[np.bool_]:
    """Which inputs (K + I,) have codes of rounded weights: those that confine them."""
    scalars = np.isfinite(evidence.lower_levels).any(1)
    lower, upper = evidence.interval_lower, evidence.interval_upper
    return np.concatenate([scalars, (np.isfinite(lower) | np.isfinite(upper)).any(1)])


def _n_inputs(evidence: Evidence) -> int:
    return len(evidence.scale) + len(evidence.interval_values) + len(evidence.values)


def _steps(evidence: Evidence) -> NDArray[np.float64]:
    """Steps of the groups (K + I, n / 16) of all inputs that have any; NaN where uneven."""
    n_groups = evidence.scale.shape[1]
    scales = np.abs(evidence.scale.astype(np.float64))
    rows = evidence.interval_variance.reshape(-1, n_groups, GROUP)
    ordered = np.partition(rows, (GROUP // 4, GROUP // 2), axis=2)
    lower, middle = ordered[..., GROUP // 4], ordered[..., GROUP // 2].astype(np.float64)
    with np.errstate(all="ignore"):
        stated = np.sqrt(middle / evidence.interval_noise[:, None])
        stated[~(middle <= lower * _EVEN)] = np.nan
    return np.concatenate([scales.reshape(-1, n_groups), stated])


def _variances(evidence: Evidence, k: int, groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of the weights of some groups, (n_groups, 16) or (n_groups, 1); infinite if unknown."""
    n_scalars, n_proven = len(evidence.scale), len(evidence.interval_values)
    if n_scalars <= k < n_scalars + n_proven:
        rows = evidence.interval_variance[k - n_scalars].reshape(-1, GROUP)
        return rows[groups].astype(np.float64)
    own = np.empty(evidence.scale.shape[1], np.float32)
    group_variances(evidence, k, own)
    return own[groups].astype(np.float64)[:, None]

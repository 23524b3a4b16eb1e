"""How large the weights beside an outlier are, by the formulas of docs/posterior.md."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recover.evidence.buffer import Evidence
from tests.naive import estimators as naive

F64 = NDArray[np.float64]


def narrowed(
    evidence: Evidence,
    beliefs: Sequence[Sequence[naive.Belief]],
    outlier: NDArray[np.bool_],
    prior: F64,
) -> F64:
    """Variances (n,) of the priors, those of groups with wide steps drawn to other groups' sizes.

    `prior` is infinite for outliers.
    """
    found, center = prior.copy(), np.zeros(prior.size)
    for k in reversed(range(len(evidence.codes))):  # what the first usable input says
        levels = evidence.levels[k].astype(np.float64)[evidence.codes[k]].reshape(-1, 16)
        values = levels * evidence.scale[k][:, None] + evidence.offset[k][:, None]
        center = np.where(evidence.scale[k].repeat(16) != 0, values.reshape(-1), center)
    squares = np.square(center).reshape(-1, 16, 16)
    own = 1.28 * (squares.sum(axis=2) - squares.max(axis=2)) / 15
    scale = evidence.scale[0].astype(np.float64).reshape(-1, 16)
    lost = np.maximum(-evidence.scale_error[0].astype(np.float64), 0).reshape(-1, 16)
    sizes = np.maximum(own, np.where(scale == 0, (lost * evidence.lost[0, 0]) ** 2, 0))
    for b in range(len(own)):
        if np.max(scale[b] ** 2) <= 3.5 * np.mean(scale[b] ** 2) or not own[b].any():
            continue
        typical = np.sort(own[b][own[b] > 0])[np.count_nonzero(own[b]) // 2]
        beyond = 5 * float(evidence.noise[0]) * scale[b] ** 2
        known = drawn(sizes[b][sizes[b] > beyond])
        wide = (scale[b] ** 2 > typical) & ~(own[b] > np.maximum(typical, beyond))
        for g in map(int, np.flatnonzero(wide & bool(len(known)))):
            place = slice(256 * b + 16 * g, 256 * b + 16 * g + 16)
            pairs = zip(beliefs[place], outlier[place], strict=True)
            kept = [each for each, far in pairs if not far]
            logs = np.array([sum(log_mass(each, size) for each in kept) for size in known])
            chances = np.exp(logs - logs.max())
            found[place] = np.where(outlier[place], np.inf, chances @ known / chances.sum())
    return found


def drawn(sizes: F64) -> F64:
    """Mean squares of 16 weights, whose logarithms are off by a variance of 0.14 by chance."""
    if not len(sizes):
        return sizes
    logs = np.log(sizes)
    share = max(0.0, 1 - 0.14 / logs.var()) if logs.var() > 0 else 0.0
    return np.exp(logs.mean() + share * (logs - logs.mean()) + 0.07 * (1 - share))


def log_mass(beliefs: Sequence[naive.Belief], size: float) -> float:
    """Of a normal density between the bounds of all beliefs."""
    low, high = -math.inf, math.inf
    for each in beliefs:
        ends = sorted(each.value + each.scale * end for end in each.reach)
        low, high = max(low, ends[0]), min(high, ends[1])
    deviation = (2 * size) ** 0.5
    return math.log(max((math.erf(high / deviation) - math.erf(low / deviation)) / 2, 1e-3))

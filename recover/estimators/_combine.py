"""Kernels that the estimators share."""

import numpy as np
from numpy.typing import NDArray

from recover._jit import kernel
from recover.evidence import Evidence
from recover.quants import F32Array


@kernel
def precision(variance: float) -> float:
    """``1 / variance``; 0 where a variance says nothing (scale 0, infinite or NaN)."""
    return 1.0 / variance if 0.0 < variance < np.inf else 0.0


@kernel
def scalar_variance(evidence: Evidence, k: int, g: int) -> float:
    """Expected mean square error of scalar input `k` in group `g`; infinite if it is broken."""
    if not np.isfinite(evidence.offset[k, g]):
        return np.inf
    scale = np.float64(evidence.scale[k, g])
    return evidence.noise[k] * scale * scale


@kernel
def add_scalar(
    evidence: Evidence, k: int, g: int, weight: np.float32, out: F32Array, first: bool
) -> None:
    """``out (+)= weight * decoded`` for group `g` of scalar input `k`; `first` overwrites."""
    s = weight * evidence.scale[k, g]
    o = weight * evidence.offset[k, g]
    codes = evidence.codes[k]
    levels = evidence.levels[k]
    if first:
        for j in range(16):
            out[16 * g + j] = s * levels[codes[16 * g + j]] + o
    else:
        for j in range(16):
            out[16 * g + j] += s * levels[codes[16 * g + j]] + o


@kernel
def add_other(
    evidence: Evidence, v: int, g: int, weight: np.float32, out: F32Array, first: bool
) -> None:
    """``out (+)= weight * decoded`` for group `g` of input `v` of the other inputs."""
    values = evidence.values[v]
    if first:
        for j in range(16):
            out[16 * g + j] = weight * values[16 * g + j]
    else:
        for j in range(16):
            out[16 * g + j] += weight * values[16 * g + j]


@kernel
def take_first(evidence: Evidence, g: int, out: F32Array) -> None:
    """Decode group `g` of the first input: exactly what dequantizing it gives."""
    if evidence.codes.shape[0] > 0:
        add_scalar(evidence, 0, g, np.float32(1), out, True)
    else:
        add_other(evidence, 0, g, np.float32(1), out, True)


@kernel
def combine(
    evidence: Evidence, out: F32Array, variance: F32Array, tally: NDArray[np.float64]
) -> None:
    """The mean of the inputs weighted by inverse variance.

    Fills `out` (n,) and the expected `variance` (n / 16,) of it, and adds to ``tally[2:]`` the
    expected variance of each input alone. Where no input has a usable variance, the first is taken.
    """
    n_scalars = evidence.codes.shape[0]
    n_others = evidence.values.shape[0]
    for g in range(variance.size):
        total = 0.0
        for k in range(n_scalars):
            alone = precision(scalar_variance(evidence, k, g))
            total += alone
            tally[2 + k] += 16 / alone if alone > 0 else 0.0
        for v in range(n_others):
            alone = precision(np.float64(evidence.variance[v, g]))
            total += alone
            tally[2 + n_scalars + v] += 16 / alone if alone > 0 else 0.0
        if total == 0.0:
            variance[g] = 0
            take_first(evidence, g, out)
            continue
        variance[g] = 1.0 / total
        first = True
        for k in range(n_scalars):
            weight = precision(scalar_variance(evidence, k, g)) / total
            if weight > 0:
                add_scalar(evidence, k, g, np.float32(weight), out, first)
                first = False
        for v in range(n_others):
            weight = precision(np.float64(evidence.variance[v, g])) / total
            if weight > 0:
                add_other(evidence, v, g, np.float32(weight), out, first)
                first = False

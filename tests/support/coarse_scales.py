"""What small integer scales change of densities, by the formulas of docs/posterior.md."""

import numpy as np
from numpy.typing import NDArray

from recover.evidence.densities import end_codes
from recover.quants import F32Array, ScalarType

F64 = NDArray[np.float64]


def factors_of(kind: ScalarType, scale: F32Array | F64, offset: F32Array | F64) -> tuple[F64, F64]:
    """How much farther end codes reach, and what is left of other codes' densities.

    Of groups of 16 weights, whose scales and offsets (n / 16,) are given; both are 1 where a scale
    is 0.
    """
    size = np.abs(scale.astype(np.float64)).reshape(-1, min(16, scale.size))
    largest = size.max(axis=1, keepdims=True)
    if not kind.scale_steps or not largest.any():
        return np.ones(scale.size), np.ones(scale.size)
    first, last = end_codes(kind)
    low, high = inner_edges(kind)
    half_range = (float(kind.levels[last]) - float(kind.levels[first])) / 2 / (low - high)
    integers = np.where(size > 0, kind.scale_steps * size / np.where(largest > 0, largest, 1), 1)
    r = half_range / np.maximum(integers, 2).reshape(-1)
    usual = half_range / (0.7 * kind.scale_steps)
    more = np.zeros_like(r)
    if kind.levels[first] == 0:  # minima are multiples of dmin, the largest is the largest one
        minima = np.where(size > 0, np.abs(offset.astype(np.float64)).reshape(size.shape), 0)
        dmin = minima.max(axis=1, keepdims=True) / kind.scale_steps
        p = np.minimum(dmin / np.where(size > 0, size, np.inf), half_range / 2).reshape(-1)
        more = np.maximum(p**2 - (2 * usual) ** 2, 0)
    stretch = np.sqrt((1 + (r**2 + more) / 2) / (1 + usual**2 / 2))
    return stretch, (1 + np.pi**2 * usual**2 / 18) / (1 + np.pi**2 * (r**2 + 3 * more) / 18)


def inner_edges(kind: ScalarType) -> tuple[float, float]:
    """Those of the cells of the lowest and the highest code, from their levels."""
    first, last = end_codes(kind)
    return (
        float(kind.upper_levels[first]) - float(kind.levels[first]),
        float(kind.lower_levels[last]) - float(kind.levels[last]),
    )

"""Kernels that look at bounds, and store them."""

import numpy as np
from numpy.typing import NDArray

from recover._compiled.float16 import f16_to_f32, f32_to_f16
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import load, splat, store, where
from recover.evidence.buffer import Evidence
from recover.evidence.cells import STRIP, intersect_strip, new_strips
from recover.quants import F32Array

UP = 1 + 2.0**-23
"""A width is a rounded float32 difference."""


@kernel
def measure_cells(evidence: Evidence, found: NDArray[np.float64]) -> None:
    """As `measure`, of the intersections of cells, which are not kept.

    Fills a row (two-sided weights, conflicts, sum of widths, largest width) for each of the tensors
    of one size that lie one behind the other.
    """
    strips = new_strips(evidence)
    lower, upper = np.empty(16 * STRIP, np.float32), np.empty(16 * STRIP, np.float32)
    size = evidence.scale.shape[1] // found.shape[0]
    for i in range(found.shape[0]):
        n_two_sided, n_conflicts, total, largest = 0, 0, 0.0, 0.0
        for start in range(i * size, (i + 1) * size, STRIP):
            n = 16 * (min(start + STRIP, (i + 1) * size) - start)
            intersect_strip(evidence, strips, start, lower[:n], upper[:n])
            counted = measure(lower[:n], upper[:n])
            n_two_sided, n_conflicts = n_two_sided + counted[0], n_conflicts + counted[1]
            total, largest = total + counted[2], max(largest, counted[3])
        found[i, 0], found[i, 1], found[i, 2], found[i, 3] = (
            n_two_sided,
            n_conflicts,
            total,
            largest,
        )


@kernel
def measure(lower: F32Array, upper: F32Array) -> tuple[int, int, float, float]:
    """Two-sided weights, conflicts, the sum of the widths and the largest one of bounds (n,)."""
    part, zero, one = 4096, np.float32(0), np.float32(1)
    lanes = np.empty(64, np.float32)
    n_two_sided, n_conflicts, total, largest = 0, 0, 0.0, zero
    whole = lower.size - lower.size % 16
    for start in range(0, whole, part):
        closed_lanes = conflict_lanes = sum_lanes = largest_lanes = splat(zero)
        for i in range(start, min(start + part, whole), 16):
            low, high = load(lower, i), load(upper, i)
            width = high - low
            closed = (width < np.float32(np.inf)) & ~(high < low)
            width = where(closed, width, zero)
            closed_lanes = closed_lanes + where(closed, splat(one), zero)
            conflict_lanes = conflict_lanes + where(high < low, splat(one), zero)
            sum_lanes = sum_lanes + width
            largest_lanes = where(width > largest_lanes, width, largest_lanes)
        store(lanes, 0, closed_lanes)
        store(lanes, 16, conflict_lanes)
        store(lanes, 32, sum_lanes)
        store(lanes, 48, largest_lanes)
        for k in range(16):
            n_two_sided += int(lanes[k])
            n_conflicts += int(lanes[16 + k])
            total += np.float64(lanes[32 + k])
            largest = max(largest, lanes[48 + k])
    for i in range(whole, lower.size):
        width = upper[i] - lower[i]
        n_conflicts += upper[i] < lower[i]
        if width >= zero and width < np.float32(np.inf):
            n_two_sided += 1
            total += np.float64(width)
            largest = max(largest, width)
    return n_two_sided, n_conflicts, total, np.float64(largest)


@kernel
def mark_conflicts(lower: F32Array, upper: F32Array) -> None:
    """Make both bounds NaN where they contradict each other."""
    for i in range(lower.size):
        if lower[i] > upper[i]:
            lower[i] = upper[i] = np.float32(np.nan)


@kernel
def round_outward(bounds: F32Array, up: bool, words: NDArray[np.uint16]) -> None:
    """The nearest float16 that is not above (`up`: not below) each bound; NaN stays NaN."""
    for i in range(bounds.size):
        value = bounds[i]
        word = f32_to_f16(value)
        back = f16_to_f32(word)
        if up and back < value:
            word = _next_f16(word)
        elif not up and back > value:
            word = _next_f16(word ^ np.uint16(0x8000)) ^ np.uint16(0x8000)
        words[i] = word


@inner
def _next_f16(word: np.uint16) -> np.uint16:
    """The float16 above one that is not NaN or infinity."""
    if word == np.uint16(0x8000):
        return np.uint16(1)
    return (
        np.uint16(word - np.uint16(1))
        if word > np.uint16(0x8000)
        else np.uint16(word + np.uint16(1))
    )

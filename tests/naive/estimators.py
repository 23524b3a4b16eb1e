"""Slow float64 references of the estimators, one weight at a time in plain Python.

They know nothing of the package.

An input is given per weight: its decoded value, its expected variance (0 where it has none) and its
cell (lower, upper).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Saying(NamedTuple):
    """What one input says of one weight."""

    value: float
    variance: float
    lower: float
    upper: float
    step: float = 0.0
    """Twice as far as the edge of a cell that is open on the other side."""


def linear(sayings: list[Saying]) -> float:
    """Mean weighted by inverse variance; the first where nobody has a variance."""
    known = [(1 / s.variance, s.value) for s in sayings if 0 < s.variance < math.inf]
    if not known:
        return sayings[0].value
    return sum(w * value for w, value in known) / sum(w for w, _ in known)


def midpoint(sayings: list[Saying]) -> float:
    """Middle of the intersection; linear moved into it if it is open; first if it is empty.

    In a closed intersection inputs with an open side count as if they ended 0.8 steps out there.

    Next to inputs of known variance without a cell: linear moved into it, if it is not empty.
    """
    lower = max(s.lower for s in sayings)
    upper = min(s.upper for s in sayings)
    if any(s.variance > 0 and (s.lower, s.upper) == (-math.inf, math.inf) for s in sayings):
        return min(max(linear(sayings), lower), upper) if lower <= upper else linear(sayings)
    if lower > upper:
        return sayings[0].value
    if math.isinf(lower) or math.isinf(upper):
        return min(max(linear(sayings), lower), upper)
    for s in sayings:
        sides = math.isinf(s.lower), math.isinf(s.upper)
        reach = 0.8 * s.step
        low = max(lower, s.value - reach) if sides == (True, False) else lower
        high = min(upper, s.value + reach) if sides == (False, True) else upper
        if low < high:
            lower, upper = low, high
    return (lower + upper) / 2


class Belief(NamedTuple):
    """Where one input believes a weight to be; a normal belief has c2 = -1/2."""

    value: float
    scale: float
    coefficients: tuple[float, ...]
    """Of u, u**2, ... in the logarithm of the density of u = (x - value) / scale."""
    atom: float
    """Mass at u = 0, over the density of the rest there."""
    reach: tuple[float, float]
    """Smallest and largest u; infinite only if that of all beliefs is, and all are normal."""


def meet(some: list[Belief], others: list[Belief]) -> bool:
    """Whether what both believe possible has a place in common."""
    lower, upper = -math.inf, math.inf
    for belief in some + others:
        ends = [belief.value + belief.scale * u for u in belief.reach]
        lower, upper = max(lower, min(ends)), min(upper, max(ends))
    return lower < upper


def posterior(
    beliefs: list[Belief], lower: float, upper: float, prior_variance: float
) -> tuple[float, float] | None:
    """Mean and variance by a dense trapezoidal rule; None if there is no place for the weight."""
    for belief in beliefs:
        ends = [belief.value + belief.scale * u for u in belief.reach]
        lower, upper = max(lower, min(ends)), min(upper, max(ends))
    if not lower < upper:
        return None
    if math.isinf(upper - lower):  # the product has its mass among and near the beliefs
        lower = max(lower, min(b.value - 12 * b.scale for b in beliefs))
        upper = min(upper, max(b.value + 12 * b.scale for b in beliefs))
    x = np.linspace(lower, upper, 4001)

    def log_density(x: NDArray[np.float64], without: Belief | None = None) -> NDArray[np.float64]:
        total = -(x**2) / (2 * prior_variance)
        for belief in beliefs:
            u = (x - belief.value) / belief.scale
            if belief is not without:
                total = total + sum(c * u ** (i + 1) for i, c in enumerate(belief.coefficients))
        return total

    logs = log_density(x)
    top = logs.max()
    weight = np.exp(logs - top) * (x[1] - x[0])
    weight[[0, -1]] /= 2
    for belief in beliefs:
        if belief.atom > 0 and lower <= belief.value <= upper:
            place = np.array([belief.value])
            mass = belief.atom * abs(belief.scale) * np.exp(log_density(place, belief) - top)
            x, weight = np.append(x, place), np.append(weight, mass)
    mean = float(np.sum(weight * x) / np.sum(weight))
    return mean, float(np.sum(weight * (x - mean) ** 2) / np.sum(weight))

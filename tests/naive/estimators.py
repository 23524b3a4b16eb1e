"""Slow float64 twins of the estimators, one weight at a time in plain Python.

They know nothing of the package.

An input is given per weight: its decoded value, its expected variance (0 where it has none) and its
cell (lower, upper).
"""

import math
from typing import NamedTuple


class Saying(NamedTuple):
    """What one input says of one weight."""

    value: float
    variance: float
    lower: float
    upper: float


def linear(sayings: list[Saying]) -> float:
    """Mean weighted by inverse variance; the first where nobody has a variance."""
    known = [(1 / s.variance, s.value) for s in sayings if 0 < s.variance < math.inf]
    if not known:
        return sayings[0].value
    return sum(w * value for w, value in known) / sum(w for w, _ in known)


def midpoint(sayings: list[Saying]) -> float:
    """Middle of the intersection; linear moved into it if it is open; first if it is empty.

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
    return (lower + upper) / 2

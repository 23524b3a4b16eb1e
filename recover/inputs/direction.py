"""Which of two inputs is the child, if both have the same levels.

Cells and codes do not tell: each of two such files lies in the cells of the other one. But where
one type has integers for the scales of its sub-blocks, and the other one floats, the latter holds
what the former says, but for the rounding of its floats to float16, if it was made from it. The
other way round the integers are off by far more. So the direction is told by whether a child could
hold its parent's weights so well, and does.
"""

import numpy as np

from recover._compiled.memory import constant
from recover.evidence.densities import end_codes
from recover.inputs.samples import Sample
from recover.quants import GROUP, ScalarType, TensorType

# Of the distance of the outermost levels. A child may have been made by way of BF16, which rounds
# its parent's weights to 8 bits; its own scale and minimum have 11.
_LARGEST_ROUNDING = 2.0**-9
_MANY = 0.5  # of the sub-blocks: three quarters and more of a child, a quarter of a parent
_SUB_BLOCK = 32


def are_ambiguous(one: TensorType, other: TensorType) -> bool:
    """Whether two types have levels of one kind, and scales of two kinds."""
    if not isinstance(one, ScalarType) or not isinstance(other, ScalarType):
        return False
    is_one = bool(one.scale_steps) != bool(other.scale_steps)
    return is_one and np.array_equal(one.levels, other.levels)


class Direction:
    """Whether an input with floats for scales holds what one with integers for scales says."""

    def __init__(self) -> None:
        self._n = self._n_held = 0
        self._last = [0, 0]

    def add(self, integers: Sample, floats: Sample) -> None:
        """Take some more weights into account."""
        n = floats.values.size
        steps = np.zeros(n // GROUP, np.float32)
        for i, sample in enumerate((integers, floats)):
            codes, offset = np.empty(n, np.uint8), np.empty(n // GROUP, np.float32)
            assert isinstance(sample.type, ScalarType)
            sample.type.unpack(constant(sample.raw), codes, steps, offset)
            self._last[i] = max(self._last[i], int(codes.max()))
        span = np.abs(steps).reshape(-1, _SUB_BLOCK // GROUP).max(1) * _span(floats.type)
        off = np.abs(integers.values - floats.values).reshape(-1, _SUB_BLOCK).max(1)
        is_known = span > 0
        self._n += int(np.count_nonzero(is_known))
        self._n_held += int(np.count_nonzero((off <= _LARGEST_ROUNDING * span)[is_known]))

    @property
    def is_known(self) -> bool:
        """Whether anything was looked at, and both go to the same last code."""
        return self._n > 0 and self._last[0] == self._last[1]

    @property
    def holds(self) -> bool:
        """Whether the input with floats is the child."""
        return self._n_held > _MANY * self._n


def _span(kind: TensorType) -> float:
    """Between the outermost levels, in units of the scale."""
    assert isinstance(kind, ScalarType)
    first, last = end_codes(kind)
    return float(kind.levels[last] - kind.levels[first])

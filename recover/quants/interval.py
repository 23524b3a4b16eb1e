"""Types that prove an interval for each weight, with scales that no grid of 16 weights shares.

Scales may belong to columns, to rows, to blocks of the flattened matrix, to columns in another
order, or be quantized themselves: what the weights say is then not a code with a scale per 16
weights, but a value between two bounds. GGUF has no such type; containers of other formats do.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np

from recover.quants.base import GROUP, F32Array, TensorType


@dataclass(frozen=True, eq=False, kw_only=True)
class IntervalType(TensorType):
    """A type whose tensors state an interval for each weight (see `IntervalTensor`).

    It has no number in GGUF files. Its blocks are groups of 16 weights. What stands for their bytes
    is what is stated of them: 16 values, lower bounds and upper bounds, as float32.

    Attributes
    ----------
    relative_mse : float
        As in `recover.quants.ScalarType`: mean square error relative to the mean square of the
        weights; ranks the types.
    noise : float
        Mean square error in units of the square of a step, the distance of two neighbouring values:
        so the step is told from the variance of a weight. 1 / 12 where weights are rounded.
    density : tuple of 3 tuples of 4 floats, or None
        Where weights lie between their bounds: where both are finite, where the lower one is
        infinite, and where the upper one is. With ``u = (x - value) / step``: the coefficients of
        ``u`` and ``u**2`` in the logarithm of the density, and how far `u` reaches below and above
        0 (see `recover.evidence.densities`). None for a density that has the stated variance:
        between two bounds a normal one around their middle (a uniform one if they tell as much),
        otherwise a normal one around the value.
    is_uniform : bool
        Whether weights are anywhere between two bounds, whatever the variance: where that is less
        than a uniform one since small weights are more frequent than large ones.
    alike : TensorType or None
        Beside others the density counts what that type's would, and errors are shared with inputs
        of that type. None if the errors are independent of all others.
    """

    block_size: int = GROUP
    type_size: int = 3 * 4 * GROUP
    relative_mse: float
    noise: float = 1 / 12
    density: tuple[tuple[float, ...], ...] | None = None
    is_uniform: bool = False
    alike: TensorType | None = None


class Stated(NamedTuple):
    """What is known of n weights, to be filled.

    Attributes
    ----------
    value : float32 (n,)
        The decoded weights.
    lower, upper : float32 (n,)
        Bounds that are sure to hold, all rounding included; infinite on a side that is open.
    variance : float32 (n,)
        The mean square error to expect of each value; infinite where nothing is known.
        `IntervalType.noise` times the square of the step of the weight.
    """

    value: F32Array
    lower: F32Array
    upper: F32Array
    variance: F32Array

    @classmethod
    def of(cls, n: int) -> Self:
        """Memory for `n` weights."""
        return cls(*np.empty((4, n), np.float32))

    def part(self, start: int, end: int) -> "Stated":
        """Of weights `start` to `end`; a view."""
        value, lower, upper, variance = self
        part = slice(start, end)
        return Stated(value[part], lower[part], upper[part], variance[part])


class IntervalTensor(Protocol):
    """A tensor of an `IntervalType`.

    Attributes
    ----------
    type : IntervalType
        How it is stored.
    has_cells : bool
        Whether it proves bounds; if not, all of them are infinite.
    """

    @property
    def type(self) -> TensorType: ...  # noqa: D102
    @property
    def has_cells(self) -> bool: ...  # noqa: D102

    def intervals(self, start: int, end: int, out: Stated) -> None:
        """What is known of weights `start` to `end`, which are whole groups of 16.

        Parameters
        ----------
        start, end : int
            The range.
        out : Stated
            To be filled, of ``end - start`` weights.
        """
        ...

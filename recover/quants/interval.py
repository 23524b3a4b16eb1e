"""Types that prove an interval for each weight, with scales that no grid of 16 weights shares.

Scales may belong to columns, to rows, to blocks of the flattened matrix, to columns in another
order, or be quantized themselves, or be changed after the codes were chosen: what the weights say
is then not a code with a scale per 16 weights, but a value between two bounds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np

from recover._compiled.jit import inner, kernel
from recover.quants.base import GROUP, F32Array, Integers, TensorType, U8Array

SUPERBLOCK = 256
"""Weights that share a hidden scale."""

_FAR = np.float32(np.inf)

ROUNDED = 1 / 12
"""Mean square error of rounded numbers, in units of the squared step."""


@dataclass(frozen=True, eq=False, kw_only=True)
class IntervalType(TensorType):
    """A type whose tensors state an interval for each weight (see `IntervalTensor`).

    If it is no `BlockIntervals`, it has no number in GGUF files, and its blocks are groups of 16
    weights. What stands for their bytes is what is stated of them: 16 values, lower bounds and
    upper bounds, as float32.

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
        between two bounds a uniform one around their middle where weights are rounded (their bounds
        may be wider, by what the encoder's arithmetic leaves open), a normal one where `noise` is
        another; otherwise a normal one around the value.
    is_uniform : bool
        Whether weights are anywhere between two bounds, whatever the variance: where that is less
        than a uniform one since small weights are more frequent than large ones.
    is_peaked : bool
        Whether weights between two bounds are likeliest at their value, not in the middle.
    is_strided : bool
        Whether weights that share a scale lie in different rows, one below the other. Blocks along
        a row have other extremes than they, so that errors have less in common.
    alike : TensorType or None
        Beside others the density counts what that type's would, and errors are shared with inputs
        of that type. None if the errors are independent of all others.
    """

    block_size: int = GROUP
    type_size: int = 3 * 4 * GROUP
    relative_mse: float
    noise: float = ROUNDED
    density: tuple[tuple[float, ...], ...] | None = None
    is_uniform: bool = False
    is_peaked: bool = False
    is_strided: bool = False
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


class Hidden(NamedTuple):
    """Ratios of the scale that chose the codes to the stored one.

    Both functions are called as ``function(raw, low: float32 (n / 256,), high: float32 (n /
    256,))`` and fill the least and the largest ratio, which all weights of a superblock share.
    """

    possible: "Ranges"
    """All that were ever found, with a margin."""
    usual: "Ranges"
    """Those of trained weights."""
    reach: tuple[float, float]
    """The first two where d is no coarse number."""
    usual_reach: tuple[float, float]
    """The same of the others."""
    state_weighted: "State"
    """As `BlockIntervals.state`, if the encoder had an importance matrix."""


Ranges = Callable[[U8Array, F32Array, F32Array], None]
State = Callable[[U8Array, Stated], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockIntervals(IntervalType):
    """A type of GGUF files whose blocks state an interval for each weight.

    Attributes
    ----------
    state : Callable
        ``state(raw: uint8 (n_blocks * part_size,), stated: Stated)``: fills what is stated of the
        weights. Each block has the header of its row in front.
    has_cells : bool
        Whether the codes prove bounds.
    hidden : Hidden or None
        Of types whose codes were chosen with a scale that is not the stored one: which one it may
        be. What `state` fills are the bounds if it were the stored one. None if it is.
    quantize : Callable or None
        ``quantize(x: float32 (n_rows, ne0), imatrix: float32 (ne0,) or (0,) for none, raw: uint8
        (n_rows * row_bytes,))``: an encoder of our own. The numbers are finite and `imatrix` is not
        negative. None if there is none.
    integers : Integers or None
        As in `recover.quants.ScalarType`.
    twin : str
        Name of a type of the same number and size, with other values; the other inputs tell which
        of them a tensor is. Empty if there is none.
    """

    type_size: int
    block_size: int
    state: State
    has_cells: bool = True
    hidden: Hidden | None = None
    quantize: Callable[[F32Array, F32Array, U8Array], None] | None = None
    integers: Integers | None = None
    twin: str = ""


def state_all(raw: U8Array, kind: BlockIntervals, out: Stated) -> None:
    """What blocks state, with bounds that hold for every possible scale.

    Parameters
    ----------
    raw : uint8 (n_blocks * part_size,)
        The blocks.
    kind : BlockIntervals
        Their type.
    out : Stated
        To be filled.
    """
    kind.state(raw, out)
    if kind.hidden is not None:
        low, high = np.empty((2, -(-out.value.size // SUPERBLOCK)), np.float32)
        kind.hidden.possible(raw, low, high)
        spread(out.lower, out.upper, low, high)


@kernel
def spread(lower: F32Array, upper: F32Array, low: F32Array, high: F32Array) -> None:
    """Cells (n,) of the ratio 1 become the unions over ratios from `low` to `high` (n / 256,)."""
    for b in range(low.size):
        a, z = low[b], high[b]
        for i in range(SUPERBLOCK * b, min(SUPERBLOCK * (b + 1), lower.size)):
            lower[i] = least_place(lower[i], a, z)
            upper[i] = -least_place(-upper[i], a, z)


@inner
def least_place(edge: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """The lowest place of an edge over ratios from `low` to `high`; an open end stays one."""
    if edge == -_FAR:
        return edge
    return edge * high if edge < 0 else edge * low


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

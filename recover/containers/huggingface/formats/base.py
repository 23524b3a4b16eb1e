"""What a format makes of the arrays of a module: `Matrix`."""

from typing import Any, Protocol, Self, TypeGuard

from recover.containers.huggingface.formats._coded import Coded
from recover.quants import IntervalType, Stated


class Matrix(Protocol):
    """The quantized weight of a module, as stored: no row is moved, nothing is stacked.

    Attributes
    ----------
    n_rows, row_length : int
        Its shape in the original model: outputs, inputs.
    type : IntervalType
        How it is stored.
    has_cells : bool
        Whether the codes confine the weights. Without, `intervals` states infinite bounds: values
        and their errors are all that is known.
    seen_as : str
        The floats that the encoder saw: ``F32``, ``F16`` or ``BF16``. The bounds confine these.
    leaves : frozenset of str
        The module's arrays that it is made of, or that mean nothing without it.
    label : str
        For people: ``NF4, groups of 64, nested``.
    """

    @property
    def n_rows(self) -> int: ...  # noqa: D102
    @property
    def row_length(self) -> int: ...  # noqa: D102
    @property
    def type(self) -> IntervalType: ...  # noqa: D102
    @property
    def has_cells(self) -> bool: ...  # noqa: D102
    @property
    def seen_as(self) -> str: ...  # noqa: D102
    @property
    def leaves(self) -> frozenset[str]: ...  # noqa: D102
    @property
    def label(self) -> str: ...  # noqa: D102

    def intervals(self, start: int, end: int, out: Stated) -> None:
        """What is known of weights `start` to `end` of the flattened matrix, row by row.

        Parameters
        ----------
        start, end : int
            The range; of any length, and within rows.
        out : Stated
            To be filled (see `recover.quants.Stated`). The values are what the format's own
            programs decode. The bounds confine what the encoder saw (see `seen_as`), its arithmetic
            included.
        """
        ...

    def coded(self, start: int, end: int) -> Coded:
        """What weights `start` to `end` of the flattened matrix are, without any rounding."""
        ...


class SoftMatrix(Matrix, Protocol):
    """A matrix whose codes prove nothing: how far off they are is measured beside another input.

    Attributes
    ----------
    noise : float
        What the variances that it states are multiples of, in whatever unit. (A matrix that may
        have cells as well says None if it has: there is nothing to measure.)
    """

    @property
    def noise(self) -> float: ...  # noqa: D102

    def with_noise(self, noise: float) -> Self:
        """The same with variances for another `noise`, which they are in proportion to."""
        ...


def is_soft(matrix: Any) -> TypeGuard[SoftMatrix]:
    """Whether the errors of a matrix are to be measured beside another input."""
    return getattr(matrix, "noise", None) is not None


def as_rounded(matrix: Any) -> Matrix | None:
    """A matrix of codes that make up for each other's errors, as if all were rounded weights.

    It has the cells of such codes, which those of one column at least have. None of any other
    matrix.
    """
    found: Matrix | None = getattr(matrix, "as_rounded", None)
    return found


def may_be_f16(matrix: Any) -> bool:
    """Whether nothing tells the floats that the encoder saw: F16 as well as those of `seen_as`.

    Small numbers lose more when they are rounded to F16 than to BF16.
    """
    return bool(getattr(getattr(matrix, "stored", matrix), "may_be_f16", False))

"""Whether the columns that an importance matrix let an encoder care for differ as well.

Where a column has no importance, an encoder may say anything of its weights: the square difference
of a tensor is many times what its type explains, superblocks have no correlation, and what one
input says of them is flatter than what the other one says. But an importance matrix is the same for
all rows: columns that hardly differ in some rows hardly differ in the others. Weights of another
model differ in all columns, and more in none because of what was seen in other rows. So columns are
chosen by one half of the rows and compared in the other half, and the other way round.

A row alone does not tell which of its columns mattered.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inner, kernel
from recover.containers.model import StoredTensor
from recover.execution.stacks import Stack
from recover.merge.superblocks import SUPERBLOCK, ends, is_between
from recover.quants import GROUP, F32Array

_SHARES = 1 / 4, 1 / 8, 1 / 16, 1 / 32  # of the columns that are chosen
_LARGEST_RATIO = 2.0  # of those that matter: square difference over the expected one
_FEWEST_KEPT = 32  # weights of a superblock
_FEWEST_ROWS = 2
_GOLDEN = 2654435769  # 2^32 over the golden ratio


class Rows(NamedTuple):
    """Where the weights of a tile, or of tensors one behind the other, lie in rows."""

    lengths: tuple[int, ...]
    """Of each tensor."""
    start: int = 0
    """Number of the first weight in its tensor."""

    @property
    def n_tensors(self) -> int:
        """How many tensors of one size lie there."""
        return len(self.lengths)


def row_lengths(tensor: StoredTensor) -> tuple[int, ...]:
    """How long the rows of a tensor are, or of each of those that lie one behind the other."""
    if isinstance(tensor, Stack):
        return tuple(span.tensor.dims[0] for span in tensor.spans)
    return (tensor.dims[0],)


ColumnSums = NDArray[np.float64]
"""Of two halves of the rows the square differences of columns and the expected ones, (2, 2, n)."""


def sums_of_columns(
    one: F32Array, other: F32Array, variances: tuple[F32Array, F32Array], start: int, length: int
) -> ColumnSums | None:
    """How far columns differ, and how far they are expected to.

    Parameters
    ----------
    one, other : F32Array
        Decoded weights (n,) of one tensor.
    variances : pair of F32Array
        Square errors to expect of both, (n / 16,).
    start : int
        Number of the first weight in its tensor.
    length : int
        Of a row.

    Returns
    -------
    float64 (2, 2, length) or None
        None if there are too few rows.
    """
    if one.size < _FEWEST_ROWS * length:
        return None
    sums = np.zeros((2, 2, length))
    _add_up(one, other, variances[0] + variances[1], start, sums)
    return sums


def excess_of_columns(sums: ColumnSums) -> float | None:
    """The square difference over the expected one, in the columns that differ least.

    The least one of several shares of the columns; None if nothing is expected.
    """
    found = [ratio for share in _SHARES if (ratio := _ratio_of(sums, share)) is not None]
    return min(found, default=None)


def _ratio_of(sums: ColumnSums, share: float) -> float | None:
    """The square difference over the expected one, in a share of the columns."""
    difference = expected = 0.0
    for half in range(2):
        off, explained = sums[1 - half]
        known = np.flatnonzero((sums[half, 1] > 0) & (explained > 0))
        chosen = known[_least(sums[half][:, known], share)]
        difference += float(off[chosen].sum())
        expected += float(explained[chosen].sum())
    return difference / expected if expected > 0 else None


def without_others(
    one: F32Array, other: F32Array, sums: ColumnSums, start: int
) -> tuple[F32Array, F32Array]:
    """Weights of two inputs, zero where the other half of the rows says that a column is no matter.

    Columns of which it says nothing stay, and superblocks of which too little would be left.
    """
    matters = sums[:, 1] <= 0
    for half in range(2):
        off, explained = sums[half]
        known = np.flatnonzero(explained > 0)
        matters[half, known] = off[known] <= _LARGEST_RATIO * explained[known]
        matters[half, known[_least(sums[half][:, known], _SHARES[0])]] = True
    kept = np.empty(one.size, np.bool_)
    _fill_kept(matters, start, kept)
    zero = np.float32(0)
    return np.where(kept, one, zero), np.where(kept, other, zero)


def _least(sums: NDArray[np.float64], share: float) -> NDArray[np.int64]:
    """Which columns have the least ratios of sums (2, n), a share of all."""
    order = np.argsort(sums[0] / sums[1], kind="stable")
    return order[: max(1, int(share * order.size))]


@inner
def _half(row: int) -> int:
    """Which half a row is in: no period of rows is in one half."""
    return ((row * _GOLDEN) >> 31) & 1


@kernel
def _fill_kept(matters: NDArray[np.bool_], start: int, kept: NDArray[np.bool_]) -> None:
    """Of weights from number `start` on, whether their columns matter to the other half (2, n)."""
    n_columns = matters.shape[1]
    row, column = start // n_columns, start % n_columns
    for i in range(kept.size):
        kept[i] = matters[1 - _half(row), column]
        column += 1
        if column == n_columns:
            row, column = row + 1, 0
    for first in range(0, kept.size, SUPERBLOCK):
        whole = kept[first : first + SUPERBLOCK]
        if whole.sum() < _FEWEST_KEPT:
            whole[:] = True


@kernel
def _add_up(
    one: F32Array, other: F32Array, variance: F32Array, start: int, sums: NDArray[np.float64]
) -> None:
    """Add square differences and the expected ones to sums (2, 2, n_columns) of two halves.

    Weights at the ends of what an input says in a group are left out: see `is_between`.
    """
    n_columns = sums.shape[2]
    row, column = start // n_columns, start % n_columns
    for first in range(0, one.size, GROUP):
        last = min(first + GROUP, one.size)
        of_one, of_other = ends(one[first:last]), ends(other[first:last])
        is_known = variance[first // GROUP] < np.inf
        for i in range(first, last):
            if is_known and is_between(one[i], other[i], of_one, of_other):
                off = np.float64(one[i]) - np.float64(other[i])
                half = _half(row)
                sums[half, 0, column] += off * off
                sums[half, 1, column] += np.float64(variance[first // GROUP])
            column += 1
            if column == n_columns:
                row, column = row + 1, 0

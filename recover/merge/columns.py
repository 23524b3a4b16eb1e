"""Whether the columns that an importance matrix let an encoder care for differ as well.

Where a column has no importance, an encoder may say anything of its weights, so that the square
difference of a tensor is many times what its type explains. But an importance matrix is the same
for all rows: columns that hardly differ in some rows hardly differ in the others. Weights of
another model differ in all columns, and more in none because of what was seen in other rows. So
columns are chosen by one half of the rows and compared in the other half, and the other way round.

A row alone does not tell which of its columns mattered.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import kernel
from recover.containers.model import StoredTensor
from recover.execution.stacks import Stack
from recover.merge.superblocks import ends, is_between
from recover.quants import GROUP, F32Array

_SHARE = 0.25  # of the columns that are chosen
_FEWEST_ROWS = 2


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


def excess_of_columns(
    one: F32Array, other: F32Array, variances: tuple[F32Array, F32Array], start: int, length: int
) -> float | None:
    """The square difference over the expected one, in the columns that differ least.

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
    float or None
        None if there are too few rows, or nothing is expected.
    """
    if one.size < _FEWEST_ROWS * length:
        return None
    sums = np.zeros((2, 2, length))
    _add_up(one, other, variances[0] + variances[1], start, sums)
    difference = expected = 0.0
    for chosen, (off, explained) in _halves(sums):
        difference += float(off[chosen].sum())
        expected += float(explained[chosen].sum())
    return difference / expected if expected > 0 else None


def _halves(
    sums: NDArray[np.float64],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """The columns that one half of the rows chooses, and the sums (2, n_columns) of the other."""
    for half in range(2):
        difference, expected = sums[half]
        known = np.flatnonzero((expected > 0) & (sums[1 - half, 1] > 0))
        order = np.argsort(difference[known] / expected[known], kind="stable")
        yield known[order[: max(1, int(_SHARE * known.size))]], sums[1 - half]


@kernel
def _add_up(
    one: F32Array, other: F32Array, variance: F32Array, start: int, sums: NDArray[np.float64]
) -> None:
    """Add square differences and the expected ones to sums (2, 2, n_columns): of even and odd rows.

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
                sums[row % 2, 0, column] += off * off
                sums[row % 2, 1, column] += np.float64(variance[first // GROUP])
            column += 1
            if column == n_columns:
                row, column = row + 1, 0

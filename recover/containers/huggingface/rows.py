"""Rows of stored matrices, in the order in which GGUF files have them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Piece(NamedTuple):
    """Weights that follow each other in a stored matrix."""

    matrix: Any
    start: int
    end: int
    at: int
    """Where in the range that was asked for they begin."""


class Span(NamedTuple):
    """Rows that lie close to each other in a stored matrix."""

    start: int
    end: int
    """Weights of the matrix from the first of these rows to the last."""
    rows: NDArray[np.int64]
    """Which rows of these, in order."""
    offset: int
    """Where in the rows the wanted range begins."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a stored matrix, one below the other.

    Attributes
    ----------
    matrix : Floats, Matrix, Mxfp4Blocks or BlockTransposed
        As stored.
    order : int64 (n_rows,) or None
        Which of its rows; None for all of them, in their order.
    """

    matrix: Any
    order: NDArray[np.int64] | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        n_rows: int = self.matrix.n_rows if self.order is None else self.order.size
        return n_rows

    def pieces(self, start: int, end: int, offset: int = 0) -> Iterator[Piece]:
        """The stored weights of numbers `start` to `end` of these rows, in order.

        `offset` is added to where they are in the range.
        """
        if self.order is None:
            yield Piece(self.matrix, start, end, offset)
            return
        length, at = self.matrix.row_length, start
        while at < end:
            row, column = divmod(at, length)
            upto = min(end, (row + 1) * length)
            first = int(self.order[row]) * length + column
            yield Piece(self.matrix, first, first + upto - at, offset + at - start)
            at = upto

    def span(self, start: int, end: int) -> Span | None:
        """Where the rows of numbers `start` to `end` lie; None if that is not about one place."""
        if self.order is None:
            return None
        length = self.matrix.row_length
        first = start // length
        rows = self.order[first : -(-end // length)]
        low, high = int(rows.min()), int(rows.max()) + 1
        if high - low > 2 * rows.size:
            return None
        return Span(low * length, high * length, rows - low, start - first * length)

"""Matrices of which equal blocks of rows are transposed."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recover.containers.huggingface.formats._coded import Coded, joined
from recover.containers.huggingface.formats.base import may_be_f16
from recover.containers.huggingface.rows import Rows
from recover.quants import FloatType, IntervalType, Stated, U8Array


@dataclass(frozen=True, eq=False)
class BlockTransposed:
    """Rows of a matrix, of which each `n_rows_each` are a block that is transposed.

    It has what `Floats` or `Matrix` have, whichever the rows are of.

    Attributes
    ----------
    rows : Rows
        Before; whole blocks.
    n_rows_each : int
        Rows of a block: the length of a row afterwards.
    """

    rows: Rows
    n_rows_each: int

    @property
    def row_length(self) -> int:
        """Numbers of a row."""
        return self.n_rows_each

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.rows.n_rows // self.n_rows_each * self.rows.matrix.row_length

    @property
    def type(self) -> FloatType | IntervalType:
        """How it is stored."""
        return self.rows.matrix.type

    @property
    def has_cells(self) -> bool:
        """See `recover.containers.huggingface.formats.base.Matrix`."""
        return self.rows.matrix.has_cells

    @property
    def seen_as(self) -> str:
        """See `recover.containers.huggingface.formats.base.Matrix`."""
        return self.rows.matrix.seen_as

    @property
    def may_be_f16(self) -> bool:
        """See `recover.containers.huggingface.formats.base.may_be_f16`."""
        return may_be_f16(self.rows.matrix)

    @property
    def label(self) -> str:
        """See `recover.containers.huggingface.formats.base.Matrix`."""
        return self.rows.matrix.label

    def part(self, start: int, end: int) -> U8Array:
        """The bytes of numbers `start` to `end`, of floats."""
        size = self.type.type_size
        parts = []
        for block, first, last, _ in self._blocks(start, end):
            pieces = self.rows.pieces(*block)
            whole = np.concatenate([each.matrix.part(each.start, each.end) for each in pieces])
            turned = whole.reshape(self.n_rows_each, -1, size).swapaxes(0, 1).reshape(-1, size)
            parts.append(turned[first:last].reshape(-1))
        return np.concatenate(parts)

    def intervals(self, start: int, end: int, out: Stated) -> None:
        """See `recover.containers.huggingface.formats.base.Matrix`."""
        for block, first, last, at in self._blocks(start, end):
            stated = Stated.of(block[1] - block[0])
            for matrix, begin, stop, place in self.rows.pieces(*block):
                matrix.intervals(begin, stop, stated.part(place, place + stop - begin))
            for own, each in zip(out.part(at, at + last - first), stated, strict=True):
                own[:] = each.reshape(self.n_rows_each, -1).T.reshape(-1)[first:last]

    def coded(self, start: int, end: int) -> Coded:
        """See `recover.containers.huggingface.formats.base.Matrix`."""
        return joined(list(self._turned(start, end)))

    def _turned(self, start: int, end: int) -> Iterator[Coded]:
        """Parts of a range, each within a block."""
        for block, first, last, _ in self._blocks(start, end):
            whole = joined([m.coded(begin, stop) for m, begin, stop, _ in self.rows.pieces(*block)])
            turned = np.arange(block[1] - block[0]).reshape(self.n_rows_each, -1).T.reshape(-1)
            yield whole.taken(turned[first:last])

    def _blocks(self, start: int, end: int) -> Iterator[tuple[tuple[int, int], int, int, int]]:
        """Blocks that overlap a range: the block, its part, and where that is in the range."""
        n_each = self.n_rows_each * self.rows.matrix.row_length
        for number in range(start // n_each, -(-end // n_each)):
            first, last = number * n_each, (number + 1) * n_each
            part = max(start, first) - first, min(end, last) - first
            yield (first, last), *part, first + part[0] - start

"""Tensors of a folder as GGUF files have them: rows put in order, experts stacked."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import kernel
from recover._text import quoted
from recover.containers.huggingface.formats._coded import Coded
from recover.containers.huggingface.formats.base import may_be_f16
from recover.containers.huggingface.rows import Piece, Rows
from recover.containers.huggingface.scaled import ScaledMatrix
from recover.containers.model import BlockTensor
from recover.errors import QuantError
from recover.quants import GROUP, F32Array, IntervalType, Stated, TensorType, U8Array
from recover.quants.rounding import Rounding

_ROUNDING = {
    "BF16": (np.float32(2.0**-8), np.float32(2.0**-134)),
    "F16": (np.float32(2.0**-11), np.float32(2.0**-25)),
}
"""How far a number may be from what it is rounded to, relatively and absolutely: half a unit in the
last place, of 8 or 11 significand bits."""

_ALIGNMENT = 8  # of the largest numbers


@dataclass(frozen=True, eq=False)
class FolderTensor(BlockTensor):
    """A tensor of a folder (see `recover.containers.model.StoredTensor`)."""

    name: str
    """In GGUF files."""
    dims: tuple[int, ...]
    """Row length first."""
    runs: tuple[Rows, ...]
    """What it is made of, one below the other."""
    n_stored: int
    """Bytes of the arrays that it is stored in."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the arrays that it is stored in."""
        return self.n_stored

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """The stored weights of a range, in order."""
        for run, first, last, at in self._shares(start, end):
            yield from run.pieces(first, last, at)

    def _shares(self, start: int, end: int) -> Iterator[tuple[Rows, int, int, int]]:
        """The runs of a range: of each its first weight, one past the last, where they begin."""
        ends = self._ends
        number = int(np.searchsorted(ends, start, "right"))
        at = start
        while at < end:
            first = int(ends[number - 1]) if number else 0
            upto = min(end, int(ends[number]))
            yield self.runs[number], at - first, upto - first, at - start
            at, number = upto, number + 1

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Weights up to the end of each run."""
        return np.cumsum([run.n_rows * run.matrix.row_length for run in self.runs])


@dataclass(frozen=True, eq=False)
class BytesTensor(FolderTensor):
    """A tensor whose bytes are those of a type of GGUF."""

    @property
    def type(self) -> TensorType:
        """How it is stored."""
        kind: TensorType = self.runs[0].matrix.type
        return kind

    def part(self, start: int, end: int) -> U8Array:
        """The stored bytes of weights `start` to `end`, which are whole blocks."""
        parts = [each.matrix.part(each.start, each.end) for each in self.pieces(start, end)]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        # Arrays of safetensors files may begin anywhere.
        return whole if whole.ctypes.data % _ALIGNMENT == 0 else whole.copy()


@dataclass(frozen=True, eq=False)
class FloatTensor(BytesTensor):
    """A tensor that is not quantized."""


@dataclass(frozen=True, eq=False)
class QuantizedTensor(FolderTensor):
    """A tensor that states an interval for each weight."""

    is_as_seen: bool = False
    """Whether the original is known to have been stored in the floats that the encoder saw, so that
    nothing was rounded before."""

    @cached_property
    def type(self) -> IntervalType:
        """How it is stored; of several types the coarsest."""
        kinds = {run.matrix.type for run in self.runs}
        return max(kinds, key=lambda kind: kind.relative_mse)

    @cached_property
    def has_cells(self) -> bool:
        """Whether the codes confine the weights."""
        return all(run.matrix.has_cells for run in self.runs)

    @property
    def label(self) -> str:
        """How it is stored, for people."""
        return ", ".join(dict.fromkeys(run.matrix.label for run in self.runs))

    def intervals(self, start: int, end: int, out: Stated) -> None:
        """See `recover.quants.IntervalTensor`; the bounds confine the original's weights."""
        for run, first, last, at in self._shares(start, end):
            own = out.part(at, at + last - first)
            if (span := run.span(first, last)) is None:
                for piece in run.pieces(first, last):
                    within = own.part(piece.at, piece.at + piece.end - piece.start)
                    self._state(run.matrix, piece.start, piece.end, within)
                continue
            stated = Stated.of(span.end - span.start)
            self._state(run.matrix, span.start, span.end, stated)
            for each, found in zip(own, stated, strict=True):
                by_row = found.reshape(-1, run.matrix.row_length)[span.rows].reshape(-1)
                each[:] = by_row[span.offset : span.offset + last - first]

    def _state(self, matrix: Any, start: int, end: int, out: Stated) -> None:
        """What a matrix states of the original's weights."""
        matrix.intervals(start, end, out)
        if matrix.seen_as == "F32":
            return
        relative, absolute = _ROUNDING[matrix.seen_as]
        if self.is_as_seen:
            relative = absolute = np.float32(0)
        if may_be_f16(matrix):
            absolute = _ROUNDING["F16"][1]
        if absolute:
            widen(out.lower, out.upper, relative, absolute)

    def read(self, start: int, end: int, out: F32Array | None = None) -> F32Array:
        """See `recover.containers.model.StoredTensor.read`."""
        self._check_scales()
        stated = Stated.of(end - start)
        if out is not None:
            stated = stated._replace(value=out)
        self.intervals(start, end, stated)
        return stated.value

    def round_to(
        self, kind: TensorType, start: int, end: int, out: U8Array, shift: float = 0.0
    ) -> Rounding:
        """See `recover.containers.model.StoredTensor.round_to`."""
        self._check_scales()
        rounding = Rounding()
        for coded, at in self._coded(start, end):
            own = coded._replace(base=coded.base + shift) if shift else coded
            part = out[kind.n_bytes(at) : kind.n_bytes(at + coded.codes.size)]
            rounding += own.store(kind, part)
        return rounding

    def _coded(self, start: int, end: int) -> Iterator[tuple[Coded, int]]:
        """What the weights of a range are, and where in the range they begin."""
        for run, first, last, at in self._shares(start, end):
            if (span := run.span(first, last)) is None:
                for piece in run.pieces(first, last):
                    yield run.matrix.coded(piece.start, piece.end), at + piece.at
                continue
            whole, length = run.matrix.coded(span.start, span.end), run.matrix.row_length
            done = -span.offset
            for row in span.rows.tolist():
                begin, stop = max(0, -done), min(length, last - first - done)
                yield whole.part(row * length + begin, row * length + stop), at + done + begin
                done += length

    def _check_scales(self) -> None:
        """Refuse weights that are none of the original's."""
        if any(isinstance(run.matrix, ScaledMatrix) for run in self.runs):
            raise QuantError(
                f"tensor {quoted(self.name)}: its columns were scaled before they were quantized"
                f" ({self.label}), so that it holds no weights of the original; merge the folder"
                " with a GGUF file of the same model, which tells the scales"
            )

    def part(self, start: int, end: int) -> U8Array:
        """What it states of weights `start` to `end`, which are whole groups of 16.

        For each group 16 values, lower bounds and upper bounds, as float32.
        """
        if start % GROUP or end % GROUP:
            raise QuantError(f"weights {start} to {end} are no whole groups of {GROUP}")
        stated = Stated.of(end - start)
        self.intervals(start, end, stated)
        groups = [each.reshape(-1, GROUP) for each in (stated.value, stated.lower, stated.upper)]
        return np.stack(groups, 1).view(np.uint8).reshape(-1)


@kernel
def widen(lower: F32Array, upper: F32Array, relative: np.float32, absolute: np.float32) -> None:
    """Bounds of rounded weights become those of the weights before they were rounded.

    ``|x - r| <= relative |r| + absolute`` for the rounded weight r; a thousandth more covers the
    rounding of this arithmetic.
    """
    relative *= np.float32(1.001)
    for i in range(lower.size):
        lower[i] -= relative * abs(lower[i]) + absolute
        upper[i] += relative * abs(upper[i]) + absolute

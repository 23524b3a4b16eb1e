"""Matrices whose columns or rows were scaled before they were quantized: AWQ, SmoothQuant.

A column of the stored weights is that of the original times a scale; a row is that of the original
over one. The scales make codes spend their errors where they matter least, and other tensors of the
folder take them back: norms, and matrices in front. So nothing that is stored is the original's,
and neither are those norms. Beside an input that has the original's the scales can be found (see
`recover.inputs.scaled`).
"""

from dataclasses import dataclass, replace

import numpy as np

from recover._compiled.jit import kernel
from recover.containers.forwarding import Forwarded
from recover.containers.huggingface.formats._coded import Coded
from recover.containers.huggingface.formats.base import Matrix, is_soft
from recover.quants import F32Array, Stated

_DEVIATIONS = np.float32(3)
_ULPS = np.float32(2.0**-21)
_FAR = np.float32(np.inf)
_ONE = np.float32(1)


@dataclass(frozen=True, eq=False)
class Scales:
    """Scales of columns or rows, as far as they are known."""

    values: F32Array
    """float32 (n,): of a column: stored over original. Of a row: original over stored."""
    deviations: F32Array
    """float32 (n,): standard deviations to expect, relative; infinite where nothing is known."""
    is_measured: bool = False
    """Whether they were found by what is likely, so that three deviations are not sure to hold."""


def no_scales(n: int) -> Scales:
    """Of columns or rows that were not scaled."""
    return Scales(np.ones(n, np.float32), np.zeros(n, np.float32))


def behind_plain(n: int, scales: Scales) -> Scales:
    """Scales behind `n` columns or rows that were not scaled."""
    plain = no_scales(n)
    return Scales(
        np.concatenate([plain.values, scales.values]),
        np.concatenate([plain.deviations, scales.deviations]),
        scales.is_measured,
    )


@dataclass(frozen=True)
class _OfStored:
    """What a matrix has in common with the one that is stored."""

    stored: Matrix

    n_rows = Forwarded("stored")
    row_length = Forwarded("stored")
    type = Forwarded("stored")
    seen_as = Forwarded("stored")
    leaves = Forwarded("stored")


@dataclass(frozen=True)
class ScaledMatrix(_OfStored):
    """The weights of a module as another original's: nothing is known until the scales are.

    It has what `recover.containers.huggingface.formats.base.Matrix` asks for, and states values
    without bounds whose errors are not known, so that an estimate takes no notice of them.

    Attributes
    ----------
    stored : Matrix
        What is stored of the scaled weights.
    """

    @property
    def has_cells(self) -> bool:
        """No."""
        return False

    @property
    def label(self) -> str:
        """For people."""
        return self.stored.label

    def intervals(self, start: int, end: int, out: Stated) -> None:
        """See `Matrix.intervals`."""
        self.stored.intervals(start, end, out)
        out.lower[:], out.upper[:], out.variance[:] = -np.inf, np.inf, np.inf

    def coded(self, start: int, end: int) -> Coded:
        """See `Matrix.coded`; of the scaled weights."""
        return self.stored.coded(start, end)

    def with_scales(self, columns: Scales | None, rows: Scales | None = None) -> "UnscaledMatrix":
        """The original's weights, by scales (row_length,) and (n_rows,); None if there are none."""
        return UnscaledMatrix(
            self.stored,
            no_scales(self.row_length) if columns is None else columns,
            no_scales(self.n_rows) if rows is None else rows,
        )


@dataclass(frozen=True)
class UnscaledMatrix(_OfStored):
    """The original's weights: those stored, times the scales of rows, over those of columns.

    Bounds are wider by three standard deviations of the scales.

    Attributes
    ----------
    stored : Matrix
        What is stored of the scaled weights.
    columns, rows : Scales
        (row_length,) and (n_rows,).
    """

    columns: Scales
    rows: Scales

    @property
    def noise(self) -> float | None:
        """That of the stored matrix (see `SoftMatrix`)."""
        return self.stored.noise if is_soft(self.stored) else None

    def with_noise(self, noise: float) -> "UnscaledMatrix":
        """The same with errors that were measured beside another input."""
        assert is_soft(self.stored)
        return replace(self, stored=self.stored.with_noise(noise))

    @property
    def has_cells(self) -> bool:
        """See `Matrix`."""
        return self.stored.has_cells

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.stored.label}, scales undone"

    def intervals(self, start: int, end: int, out: Stated) -> None:
        """See `Matrix.intervals`."""
        self.stored.intervals(start, end, out)
        columns = self.columns.values, self.columns.deviations
        rows = self.rows.values, self.rows.deviations
        _unscale(start, columns, rows, *out)

    def coded(self, start: int, end: int) -> Coded:
        """See `Matrix.coded`; by the scales that are likely."""
        row, column = np.divmod(np.arange(start, end), self.row_length)
        factor = self.rows.values[row].astype(np.float64) / self.columns.values[column]
        own = self.stored.coded(start, end).by_weight()
        return own._replace(scale=own.scale * factor, base=own.base * factor)


@kernel
def _unscale(
    start: int,
    columns: tuple[F32Array, F32Array],
    rows: tuple[F32Array, F32Array],
    value: F32Array,
    lower: F32Array,
    upper: F32Array,
    variance: F32Array,
) -> None:
    """Undo scales from flat position `start` on; see `UnscaledMatrix`."""
    row_length = columns[0].size
    at = 0
    while at < value.size:
        row, k = (start + at) // row_length, (start + at) % row_length
        n = min(row_length - k, value.size - at)
        scale, deviation = rows[0][row], rows[1][row]
        for i in range(at, at + n):
            factor = scale / columns[0][k + i - at]
            off = columns[1][k + i - at] + deviation
            wide = _DEVIATIONS * off + _ULPS
            known = abs(factor) < _FAR and factor > 0 and wide < _ONE
            factor = factor if known else _ONE
            x, low, high = value[i] * factor, lower[i] * factor, upper[i] * factor
            low *= _ONE + wide if low < 0 else _ONE - wide
            high *= _ONE - wide if high < 0 else _ONE + wide
            error = variance[i] * factor * factor + x * x * off * off
            value[i] = x
            lower[i] = low if known else -_FAR
            upper[i] = high if known else _FAR
            variance[i] = error if known else _FAR
        at += n

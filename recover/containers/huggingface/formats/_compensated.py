"""Codes that make up for each other's errors, which GPTQ and its kin choose: `CompensatedMatrix`.

Such a code is the rounded sum of a weight and of what the errors of earlier codes in its row add to
it. It confines the weight to no interval; it is the weight with an error that looks normal, of a
variance that is the same multiple of the squared scale all over a matrix. What the multiple is
depends on the layer's inputs, which the file does not tell; beside another input it is measured.

The codes of the column that comes first make up for nothing: they are rounded weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.formats._coded import WHOLE_NUMBERS, Coded, Runs, in_order
from recover.containers.huggingface.formats._columns import (
    confine_rounded,
    state_groups,
    state_scattered,
)
from recover.quants import F32Array, IntervalType, Stated, U8Array

TYPICAL_NOISE = 1.4 / 12
"""Mean square error in units of the squared scale: 1.3 to 1.7 times that of rounded weights."""

_SLACK = np.float32(2.0**-8)

Codes = Callable[[int, int, U8Array], None]


@dataclass(frozen=True, kw_only=True)
class CompensatedMatrix:
    """A matrix of such codes; see `recover.containers.huggingface.formats.base.Matrix`.

    Attributes
    ----------
    n_rows, row_length, type, seen_as, leaves, label
        See `Matrix`.
    group : int
        Weights along a row that share a scale, where the columns are in order.
    places : int32 (2, row_length) or None
        Where the code of each column is in its row, and its group, where they are not.
    codes : callable
        ``codes(first, last, out: uint8 (last - first, row_length))``: of rows.
    codes_of : callable
        ``codes_of(columns) -> codes``: the same of some columns alone, int64 (n,).
    first_columns : int64 (n,)
        Among these is the one that comes first, if the encoder went through them as the file tells.
    scales, zeros : callable
        ``scales(first, last) -> float32 (last - first, n_groups)``. A weight is code less zero
        point, times scale.
    n_codes : int64 (n_groups,)
        Of each group; codes are less.
    noise : float
        Mean square error in units of the squared scale.
    is_rounded : bool
        Whether it has the cells that its codes would have if all of them were rounded weights.
    """

    n_rows: int
    row_length: int
    type: IntervalType
    seen_as: str
    leaves: frozenset[str]
    label: str
    group: int
    places: NDArray[np.int32] | None
    codes: Codes
    codes_of: Callable[[NDArray[np.int64]], Codes]
    first_columns: NDArray[np.int64]
    scales: Callable[[int, int], F32Array]
    zeros: Callable[[int, int], F32Array]
    n_codes: NDArray[np.int64]
    noise: float = TYPICAL_NOISE
    is_rounded: bool = False

    @property
    def has_cells(self) -> bool:
        """No, unless they are to be tried."""
        return self.is_rounded

    @property
    def as_rounded(self) -> "CompensatedMatrix":
        """See `recover.containers.huggingface.formats.base.SoftMatrix`."""
        return replace(self, is_rounded=True)

    def with_noise(self, noise: float) -> "CompensatedMatrix":
        """The same, with the error that was measured beside another input."""
        return replace(self, noise=noise)

    def intervals(self, start: int, end: int, out: Stated) -> None:
        """See `Matrix.intervals`."""
        out.lower[:], out.upper[:] = -np.inf, np.inf
        first, last = start // self.row_length, -(-end // self.row_length)
        codes = np.empty((last - first, self.row_length), np.uint8)
        self.codes(first, last, codes)
        table = codes, self.scales(first, last), self.zeros(first, last)
        noise, begin = np.float32(self.noise), start - first * self.row_length
        if self.places is None:
            state_groups(*table, self.group, noise, begin, out.value, out.variance)
        else:
            state_scattered(*table, self.places, noise, begin, out.value, out.variance)
        if self.is_rounded:
            self._confine(codes, begin, out)

    def _confine(self, codes: U8Array, begin: int, out: Stated) -> None:
        """Bounds of rounded weights around their values, from a position in rows of codes on.

        Scales were searched and then stored as floats of 11 bits or 8, and the encoder may have
        seen such floats: that moves an edge by 1/256 of the value at most. End codes may stand for
        weights beyond them.
        """
        places = self.places
        if places is None:
            numbers = np.arange(self.row_length)
            places = np.stack([numbers, numbers // self.group]).astype(np.int32)
        with np.errstate(invalid="ignore"):
            scaled = np.float32(self.noise), _SLACK
            bounds = out.lower, out.upper
            said = out.value, out.variance
            confine_rounded(codes, places, self.n_codes, scaled, begin, *said, bounds)

    def strip(self, columns: NDArray[np.int64]) -> "CompensatedMatrix":
        """Some of the columns alone, int64 (n,)."""
        groups = columns // self.group if self.places is None else self.places[1, columns]
        numbers = np.arange(columns.size)
        return replace(
            self,
            row_length=columns.size,
            places=np.stack([numbers, groups]).astype(np.int32),
            codes=self.codes_of(columns),
        )

    def coded(self, start: int, end: int) -> Coded:
        """See `Matrix.coded`."""
        length = self.row_length
        first, last = start // length, -(-end // length)
        codes = np.empty((last - first, length), np.uint8)
        self.codes(first, last, codes)
        scales, zeros = self.scales(first, last), self.zeros(first, last)
        if self.places is not None:
            whole = in_order(self.places, codes, scales, zeros)
        else:
            scale, zero = (each.reshape(-1).astype(np.float64) for each in (scales, zeros))
            runs = Runs(length, self.group, 0)
            whole = Coded(codes.reshape(-1), WHOLE_NUMBERS, runs, scale, zero)
        return whole.part(start - first * length, end - first * length)

"""Tensors that state intervals: GGUF's types without their grid, and steps that fit no grid."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from recover.containers.gguf.header import TensorInfo
from recover.containers.gguf.tensor import Tensor
from recover.evidence.buffer import EvidenceBuffer, Source, take_one
from recover.evidence.cells import intersect_cells
from recover.evidence.densities import (
    ABOVE,
    BELOW,
    HIGHEST,
    INTERIOR,
    LOWEST,
    VARYING,
    density,
    end_codes,
)
from recover.quants import F32Array, IntervalType, ScalarType, Stated, U8Array, type_by_name

_SQUARE = 0.2
"""Mean of z**2 (see `recover.evidence.densities`) where the largest weight has an end code."""


@dataclass(frozen=True)
class GridStated:
    """What a tensor of a scalar type says, stated as intervals: its values and cells."""

    type: IntervalType
    tensor: Tensor
    has_cells: bool = True

    def intervals(self, start: int, end: int, out: Stated) -> None:
        """See `recover.quants.IntervalTensor`."""
        value, lower, upper, variance = out
        kind = self.tensor.type
        evidence = EvidenceBuffer([Source(kind)]).read([self.tensor], start, end)
        take_one(evidence, 0, value)
        intersect_cells(evidence, lower, upper)
        squares = np.square(evidence.scale[0]) * np.float32(evidence.noise[0])
        variance[:] = np.repeat(squares, 16)


@cache
def stated_type(name: str) -> IntervalType:
    """What an interval type can tell of the density of a scalar type.

    For all weights with two bounds that of typical codes, which hardly differ in it but for Q6_K.
    Those with one bound have the density of an end code, which for types whose scales have both
    signs is the one or the other.
    """
    kind = type_by_name(name)
    assert isinstance(kind, ScalarType)
    table = density(kind)
    table[INTERIOR, 1] += np.float32(_SQUARE) * table[VARYING, 1]
    return type_with(kind, table)


def type_with(kind: ScalarType, table: F32Array) -> IntervalType:
    """An interval type with what it can tell of the density of a scalar type, a `table` of that."""
    last = end_codes(kind)[1]
    is_bounded = np.isfinite(kind.upper_levels[last])
    is_wider = is_bounded and table[HIGHEST, ABOVE] > table[INTERIOR, ABOVE]
    both = table[INTERIOR, :2], [-np.inf, np.inf] if is_wider else table[INTERIOR, [BELOW, ABOVE]]
    ends = [(table[which, :2], table[which, [BELOW, ABOVE]]) for which in (LOWEST, HIGHEST)]
    rows = [tuple(float(each) for part in row for each in part) for row in (both, *ends)]
    return IntervalType(
        name=f"{kind.name} stated",
        relative_mse=kind.relative_mse,
        noise=kind.noise,
        density=tuple(rows),
        alike=kind,
    )


def tensor_of(raw: U8Array, name: str, n_weights: int) -> Tensor:
    """Stored bytes as a tensor of a scalar type."""
    return Tensor(TensorInfo("weight", (n_weights,), type_by_name(name), 0), raw)


def state(raw: U8Array, name: str, n_weights: int) -> GridStated:
    """The same, which states intervals."""
    return GridStated(stated_type(name), tensor_of(raw, name, n_weights))


@dataclass(frozen=True)
class ColumnScaled:
    """Weights (n_rows, ne0) rounded to multiples of a step of their column; 8 bits, clipped.

    Attributes
    ----------
    type : IntervalType
        With the density that has the stated variance.
    codes : int (n_rows * ne0,)
        Multiples; the outermost ones stand for all that lies beyond, too.
    steps : float32 (ne0,)
        One per column.
    reach : float
        How far bounds are from the values, in steps.
    """

    type: IntervalType
    codes: np.ndarray
    steps: F32Array
    has_cells: bool = True
    reach: float = 0.5

    def intervals(self, start: int, end: int, out: Stated) -> None:
        """See `recover.quants.IntervalTensor`."""
        value, lower, upper, variance = out
        q = self.codes[start:end].astype(np.float64)
        step = self.steps.astype(np.float64)[np.arange(start, end) % self.steps.size]
        slack = np.abs(q * step) * 2.0**-20 + 1e-30
        value[:] = q * step
        lower[:] = np.where(q == -128, -np.inf, (q - self.reach) * step - slack)
        upper[:] = np.where(q == 127, np.inf, (q + self.reach) * step + slack)
        variance[:] = self.type.noise * step**2


def round_columns(x: F32Array, largest: float, relative_mse: float) -> ColumnScaled:
    """Round weights to multiples of what takes each column's largest one to code `largest`."""
    steps = np.abs(x).max(0) / np.float32(largest)
    codes = np.clip(np.rint(x.astype(np.float64) / steps), -128, 127).astype(np.int64)
    kind = IntervalType(name=f"I{largest}", relative_mse=relative_mse)
    return ColumnScaled(kind, codes.reshape(-1), steps)

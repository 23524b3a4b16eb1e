"""Matrices whose codes are rounded to a grid of equal steps, a scale and an offset per group.

A weight is ``(code - shift) * step + base``. What a code proves is given in steps from a place that
is known better than the decoded value: by the code, and by a row of a table that the group chooses.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inner, kernel
from recover.containers.huggingface.formats._coded import WHOLE_NUMBERS, Coded, Runs, in_order
from recover.containers.huggingface.modules import as_float32, values
from recover.containers.safetensors.reader import Tensor
from recover.quants import F32Array, IntervalType, Stated, U8Array

F64 = NDArray[np.float64]
N_CODES = 256
SOFT = 1.45
"""Mean square error of codes that make up for the errors of others, over that of plain rounding.

Measured with GPTQ: 1.32 to 1.46 in the order of the columns, 1.37 to 1.66 in another one."""

_PIECE = 1 << 17
_FEW = 8  # codes of a table that take as long as one alone
_ROUNDING = 2.0**-22


class Steps(NamedTuple):
    """What codes of groups of weights mean: ``(code - shift) * step + base``; each (n,)."""

    step: F32Array
    """With its sign."""
    shift: F32Array | None = None
    """None where it is 0 everywhere; and so is `base`."""
    base: F32Array | None = None

    def coded(self, codes: U8Array, runs: Runs) -> Coded:
        """Codes of groups that are such runs."""
        found = Coded(codes, WHOLE_NUMBERS, runs, self.step.astype(np.float64))
        if self.shift is not None:
            found = found._replace(shift=self.shift.astype(np.float64))
        return found if self.base is None else found._replace(base=self.base.astype(np.float64))


class Order(NamedTuple):
    """Columns whose groups are scattered."""

    groups: NDArray[np.int64]
    """Of each column (row_length,)."""
    n_groups: int
    """Of a row."""


class Groups(NamedTuple):
    """What is stored for groups of weights that share a scale; each (n,).

    A code means ``(code - shift) * step + base``. A weight that is between `a` and `b` in steps, by
    the tables of `Cells`, lies between ``a - zero`` and ``b - zero`` times the scale, plus `base`.
    """

    step: F32Array
    """With its sign."""
    base: F32Array
    shift: F32Array
    zero: F32Array
    small: F32Array
    """The size of the scale that the encoder used is this or more; infinite if nothing is known."""
    large: F32Array
    """It is this or less."""
    top: F32Array
    """No weight is more steps than this from code 0."""
    loose: F32Array
    """How far `zero` may be off, in steps."""
    row: NDArray[np.int32]
    """Where the group's table begins, for code 0."""
    doubt: F32Array
    """Variance of the scale, over the square of half of what lies between `small` and `large`."""


ANYWHERE = np.float32(1 / 3)
"""`Groups.doubt` of scales that may be anywhere between both."""


class Cells(NamedTuple):
    """What a code says of the weight, in steps; by `Groups.row` plus code."""

    lower: F32Array
    upper: F32Array
    centre: F32Array
    """Mean of the weights that get the code."""
    variance: F32Array
    """And their variance."""
    slack: F32Array
    """(2,): what both bounds are off for the sake of rounding, for every code and per step from
    the zero."""


@inner
def _tabulate(g: int, first: int, last: int, groups: Groups, cells: Cells, table: F32Array) -> None:
    """What codes of group `g` say: value, lower, upper, variance (4, `last` or more)."""
    step, base, shift, zero = groups.step[g], groups.base[g], groups.shift[g], groups.zero[g]
    small, large, top = groups.small[g], groups.large[g], groups.top[g]
    loose, third = groups.loose[g], np.float32(1 / 3)
    row, flat, steep = groups.row[g], cells.slack[0] + loose, cells.slack[1]
    half, ulp, doubt = np.float32(0.5), np.float32(2.0**-23), groups.doubt[g]
    middle, spread = np.copysign(half * small + half * large, step), half * large - half * small
    below, above, centres = cells.lower[row:], cells.upper[row:], cells.centre[row:]
    variances = cells.variance[row:]
    for q in range(first, last):
        slack = flat + steep * abs(np.float32(q) - zero)
        low = below[q] - zero - slack
        high = min(above[q], top) - zero + slack
        low = low * (large if low < 0 else small)
        high = high * (small if high < 0 else large)
        least, most = (-high if step < 0 else low) + base, (-low if step < 0 else high) + base
        if small == np.inf:
            least, most = -small, small
        value = (np.float32(q) - shift) * step + base
        centre, known = centres[q], variances[q]
        if above[q] == np.inf and below[q] < top < np.inf:  # a cell that the group closes
            centre, known = half * (below[q] + top), third * (half * (top - below[q])) ** 2
        away = centre - zero
        off = value - (away * middle + base)
        unsure = doubt * (away * spread) ** 2 + third * (loose * step) ** 2
        variance = step * step * known + off * off + unsure
        table[0, q] = value
        table[1, q] = least - abs(least) * ulp
        table[2, q] = most + abs(most) * ulp
        table[3, q] = variance if variance < np.inf else np.float32(np.inf)


@inner
def _look_up(codes: U8Array, table: F32Array, said: Stated, at: int) -> None:
    """What a table has for some codes, written from `at` on."""
    n = codes.size
    value, lower = said.value[at : at + n], said.lower[at : at + n]
    upper, variance = said.upper[at : at + n], said.variance[at : at + n]
    for k in range(n):
        q = np.int64(codes[k])
        value[k] = table[0, q]
        lower[k] = table[1, q]
        upper[k] = table[2, q]
        variance[k] = table[3, q]


@kernel
def state(
    codes: U8Array,
    passed: int,
    run: int,
    n_codes: int,
    groups: Groups,
    cells: Cells,
    said: Stated,
) -> None:
    """What codes say of their weights; groups are runs of so many weights, the first begun before.

    Parameters
    ----------
    codes : uint8 (n,)
    passed : int
        Weights of the first group in front of these.
    run : int
        Weights of a group.
    n_codes : int
        All codes are less.
    groups, cells, said
        See there.
    """
    n, i, g = codes.size, 0, 0
    left = run - passed
    table = np.empty((4, N_CODES), np.float32)
    while i < n:
        m = min(left, n - i)
        if m * _FEW > n_codes:
            _tabulate(g, 0, n_codes, groups, cells, table)
        else:
            for q in codes[i : i + m]:
                _tabulate(g, q, q + 1, groups, cells, table)
        _look_up(codes[i : i + m], table, said, i)
        i, g, left = i + m, g + 1, run


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A matrix of codes on grids: a `recover.containers.huggingface.formats.Matrix`.

    Attributes
    ----------
    run : int
        Consecutive weights of the flattened matrix that share a scale.
    n_codes : int
        Codes are less than this.
    codes : callable
        ``codes(start, out: uint8 (n,))`` fills in the codes of the flattened matrix from `start`
        on.
    steps : callable
        ``steps(first, last) -> Steps`` of these runs.
    groups : callable
        ``groups(first, last, codes) -> Groups`` of these runs; `codes` are all of theirs if
        `by_codes`, otherwise empty.
    cells : Cells
        The tables.
    by_codes : bool
        Whether the codes of a run choose its table.
    period : int
        After so many runs, of one weight each, their scales begin again; 0 if they do not.
    order : Order or None
        Of a matrix whose runs are weights since its columns are in another order; `steps` are then
        those of the groups of all rows.
    may_be_f16 : bool
        See `recover.containers.huggingface.formats.base.may_be_f16`.
    as_rounded : Grid or None
        Of codes that prove nothing, the same with the cells that they would have if they had been
        rounded plainly.
    is_untried : bool
        Whether they may have been.
    is_tried : bool
        Whether these are cells that other inputs were found not to contradict: no proof.
    """

    n_rows: int
    row_length: int
    type: IntervalType
    has_cells: bool
    seen_as: str
    leaves: frozenset[str]
    label: str
    run: int
    n_codes: int
    codes: Callable[[int, U8Array], None]
    steps: Callable[[int, int], Steps]
    groups: Callable[[int, int, U8Array], Groups]
    cells: Cells
    by_codes: bool = False
    period: int = 0
    order: Order | None = None
    may_be_f16: bool = False
    as_rounded: "Grid | None" = None
    is_untried: bool = False
    is_tried: bool = False

    @property
    def noise(self) -> float | None:
        """Mean square error of codes that prove nothing, in units of the squared step."""
        return None if self.has_cells else float(self.cells.variance.max())

    def with_noise(self, noise: float) -> "Grid":
        """The same with errors that were measured beside another input."""
        variance = np.full_like(self.cells.variance, noise)
        return replace(self, cells=self.cells._replace(variance=variance))

    def with_cells(self) -> "Grid":
        """The matrix with cells that are to be tried against other inputs, or as it is."""
        if self.as_rounded is None or not self.is_untried:
            return self
        return replace(self.as_rounded, is_tried=True)

    def intervals(self, start: int, end: int, out: Stated) -> None:
        """See `recover.containers.huggingface.formats.Matrix`."""
        with np.errstate(all="ignore"):
            for first in range(start, end, _PIECE):
                last = min(first + _PIECE, end)
                self._state(first, last, out.part(first - start, last - start))

    def coded(self, start: int, end: int) -> Coded:
        """See `recover.containers.huggingface.formats.Matrix`."""
        if self.order is not None:
            return self._coded_rows(start, end, self.order)
        first, last = start // self.run, -(-end // self.run)
        codes = np.empty(end - start, np.uint8)
        self.codes(start, codes)
        runs = Runs(self.run, self.run, start % self.run)
        if self.period:
            first, last, runs = 0, self.period, Runs(self.period, 1, start % self.period)
        return self.steps(first, last).coded(codes, runs)

    def _coded_rows(self, start: int, end: int, order: Order) -> Coded:
        """Whole rows, of which a part is taken."""
        length, n_groups = self.row_length, order.n_groups
        first, last = start // length, -(-end // length)
        codes = np.empty((last - first, length), np.uint8)
        self.codes(first * length, codes.reshape(-1))
        steps = self.steps(first * n_groups, last * n_groups)
        assert steps.shift is not None
        places = np.stack([np.arange(length), order.groups]).astype(np.int32)
        scale, shift = (each.reshape(-1, n_groups) for each in (steps.step, steps.shift))
        whole = in_order(places, codes, scale, shift)
        return whole.part(start - first * length, end - first * length)

    def _state(self, start: int, end: int, said: Stated) -> None:
        first, last = start // self.run, -(-end // self.run)
        begin = first * self.run if self.by_codes else start
        codes = np.empty((last * self.run if self.by_codes else end) - begin, np.uint8)
        self.codes(begin, codes)
        groups = self.groups(first, last, codes if self.by_codes else codes[:0])
        own = codes[start - begin : end - begin]
        state(own, start - first * self.run, self.run, self.n_codes, groups, self.cells, said)


def soft(
    grid: Grid, kind: IntervalType, nominal: NDArray[np.float64], label: str, *, is_corrected: bool
) -> Grid:
    """A matrix whose codes prove nothing: the tool that chose them corrects, or is not known."""
    return replace(
        grid,
        type=kind,
        has_cells=False,
        label=label,
        cells=soft_cells(nominal),
        as_rounded=grid,
        is_untried=not is_corrected,
    )


def soft_cells(nominal: NDArray[np.float64]) -> Cells:
    """No bounds, and the errors of codes that make up for the errors of others; see `cells_of`."""
    open_end = np.full(nominal.shape, np.inf)
    return cells_of(-open_end, open_end, nominal, end=SOFT / 12)


def cells_of(
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    nominal: NDArray[np.float64],
    slack: tuple[float, float] = (0.0, 0.0),
    inner: float = 1 / 12,
    end: float = 1 / 12,
) -> Cells:
    """Tables of codes whose weights lie between two edges.

    Parameters
    ----------
    lower, upper : float64 (n_tables, n_codes)
        In steps; infinite where the cell is open.
    nominal : float64 (n_tables, n_codes)
        What the codes mean, in steps.
    slack : float, float
        See `Cells.slack`.
    inner, end : float
        Mean square error to expect, in units of the squared width of a cell, and of a code whose
        cell is open on a side.
    """
    closed = np.isfinite(lower) & np.isfinite(upper)
    with np.errstate(invalid="ignore"):
        centre = np.where(closed, (lower + upper) / 2, nominal)
        variance = np.where(closed, np.maximum((upper - lower) ** 2 * inner, 1e-8), end)
    tables = by_code(lower), by_code(upper), by_code(centre), by_code(variance)
    return Cells(*tables, np.array(slack, np.float32))


def by_code(numbers: F64) -> F32Array:
    """Numbers of each code (n_tables, n_codes) as `Cells` has them."""
    padded = np.zeros((len(numbers), N_CODES), np.float32)
    padded[:, : numbers.shape[1]] = numbers
    return padded.reshape(-1)


def rounding_interval(kind: str, numbers: NDArray[np.float64]) -> tuple[F64, F64]:
    """The sizes of the numbers that are rounded to stored floats: from and to, float64.

    Parameters
    ----------
    kind : str
        What they are: ``F32``, ``F16`` or ``BF16``.
    numbers : float64 (n,)
        Some of them.
    """
    n_bits, least = {"F32": (24, 2.0**-150), "F16": (11, 2.0**-25), "BF16": (8, 2.0**-134)}[kind]
    size = np.abs(numbers)
    power = (size.view(np.uint64) & np.uint64(0x7FF0000000000000)).view(np.float64)
    with np.errstate(invalid="ignore"):
        half = np.maximum(power * 2.0**-n_bits, least)
        # below a power of two the next number is half as far away, if it is no subnormal one
        below = np.where((size == power) & (half > least), half / 2, half)
        return size - below, size + half


def widened(small: F64, large: F64) -> tuple[F32Array, F32Array]:
    """Sizes of scales as `Groups` has them, with the rounding of what is multiplied by them."""
    known = (small > 0) & (small <= large) & (large < np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        from_ = np.where(known, small * (1 - _ROUNDING), np.inf).astype(np.float32)
        to = np.where(known, large * (1 + _ROUNDING), np.inf).astype(np.float32)
    return from_, to


def floats(tensor: Tensor, first: int, last: int) -> F32Array:
    """Numbers `first` to `last` of a flattened array of floats, as float32."""
    return as_float32(tensor, values(tensor).reshape(-1)[first:last])

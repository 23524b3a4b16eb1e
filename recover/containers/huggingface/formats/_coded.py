"""What codes stand for, and nothing else: weights in float64, rounded once where they are stored.

A weight is ``(level - shift) * scale + base``, by the level of its code and by what the run of
weights has that it is in. Whatever a format calls these, and wherever it has them, its `Coded` has
them in one form.
"""

from operator import attrgetter
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import any_lane, sum_lanes
from recover._compiled.doubles import load_f64, n_true, to_f64
from recover._compiled.jit import bare_inlined, bare_kernel, kernel
from recover._compiled.lanes import LANES, gather, load_bytes, splat, to_f32
from recover.quants import F32Array, TensorType, U8Array
from recover.quants.rounding import ENOUGH, Rounding, Target, padded, put

F64 = NDArray[np.float64]

WHOLE_NUMBERS = np.arange(256, dtype=np.float32)
"""Levels of codes that are numbers themselves."""
_NOTHING = np.array([-0.0])  # added to any number, -0 included, it leaves it as it is
_NO_SHIFT = np.zeros(1)


class Runs(NamedTuple):
    """Which weights share a scale."""

    row_length: int
    """Weights of a row."""
    width: int
    """Weights along a row that share a scale; the last run of a row may be shorter."""
    first: int
    """Position of the range's first weight in the row that the first scale belongs to."""
    columns: NDArray[np.int32] | None = None
    """Which run of its row each weight of a row is in, where these are scattered (row_length,)."""
    n_scattered: int = 0
    """So many runs there are then in a row."""

    @property
    def per_row(self) -> int:
        """Runs in a row."""
        return self.n_scattered or -(-self.row_length // self.width)

    def of_weights(self, n: int) -> NDArray[np.int64]:
        """The run of each of the first weights of the range, (n,)."""
        row, column = np.divmod(np.arange(self.first, self.first + n), self.row_length)
        within = column // self.width if self.columns is None else self.columns[column]
        numbers: NDArray[np.int64] = row * self.per_row + within
        return numbers


class Coded(NamedTuple):
    """Codes, and what they stand for: ``(levels[code] - shift) * scale + base``.

    Attributes
    ----------
    codes : uint8 (n,)
        One for each weight.
    levels : float32 (256,)
        By code.
    runs : Runs
        Which weights share what follows.
    scale, shift, base : float64 (n_runs,)
        Of each run; or, where all rows have the same, of each run of a row; or one for all.
    """

    codes: U8Array
    levels: F32Array
    runs: Runs
    scale: F64
    shift: F64 = _NO_SHIFT
    base: F64 = _NOTHING

    def part(self, start: int, end: int) -> Self:
        """Weights `start` to `end` of these."""
        row, column = divmod(self.runs.first + start, self.runs.row_length)
        first = row * self.runs.per_row
        alike = 1, self.runs.per_row
        rest = (each if each.size in alike else each[first:] for each in self[3:])
        runs = self.runs._replace(first=column)
        return self.__class__(self.codes[start:end], self.levels, runs, *rest)

    def by_weight(self) -> Self:
        """The same with runs of one weight."""
        run = self.runs.of_weights(self.codes.size)
        rest = (each if each.size == 1 else each[run % each.size] for each in self[3:])
        n = max(1, self.codes.size)
        return self.__class__(self.codes, self.levels, Runs(n, 1, 0), *rest)

    def taken(self, order: NDArray[np.int64]) -> Self:
        """Weights (n,) of these, in any order."""
        own = self.by_weight()
        rest = (each if each.size == 1 else each[order] for each in own[3:])
        return own.__class__(own.codes[order], own.levels, Runs(max(1, order.size), 1, 0), *rest)

    def store(self, kind: TensorType, out: U8Array) -> Rounding:
        """Store the weights as F32, F16 or BF16.

        Parameters
        ----------
        kind : TensorType
            As what.
        out : uint8 (n * 2 or n * 4,)
            To be filled.

        Returns
        -------
        Rounding
        """
        runs, n = self.runs, self.codes.size
        if not any(size % LANES for size in (runs.row_length, runs.first, n)):
            if runs.columns is not None and self.scale.size == self.shift.size > self.base.size:
                lines = np.empty((2, runs.row_length))
                return Rounding(*_store_scattered(*self, Target.of(kind, out), lines))
            if runs.columns is None and runs.width % LANES == 0:
                numbers = self.scale, self.shift, self.base, Target.of(kind, out)
                return Rounding(*_store_runs(self.codes, self.levels, runs[:3], *numbers))
        own, sizes = self, {self.scale.size, self.shift.size, self.base.size} - {1}
        if runs.width > 1 or len(sizes) > 1 or any(i % LANES for i in (n, runs.first, *sizes)):
            own = self.by_weight()
        codes, own_numbers = padded(own.codes), (own.scale, own.shift, own.base)
        scale, shift, base = (each if each.size == 1 else padded(each) for each in own_numbers)
        into = out if codes.size == n else np.empty(kind.n_bytes(codes.size), np.uint8)
        target = Target.of(kind, into)
        stored = _store_each(codes, own.levels, own.runs.first, scale, shift, base, target)
        if into is not out:
            out[:] = into[: out.size]
        return Rounding(*stored)


def in_order(
    places: NDArray[np.int32], codes: U8Array, scales: F32Array, shifts: F32Array
) -> Coded:
    """Whole numbers whose columns are stored in another order than that of the matrix.

    Parameters
    ----------
    places : int32 (2, row_length)
        Where the code of a column is in its row of `codes`, and its group.
    codes : uint8 (n_rows, row_length)
    scales, shifts : float32 (n_rows, n_groups)
    """
    if np.any(np.diff(places[0]) != 1):
        own = np.empty_like(codes)
        _take_columns(places[0], codes, own)
        codes = own
    length, n_groups = codes.shape[1], scales.shape[1]
    runs = Runs(length, length, 0, places[1], n_groups)
    scale, shift = (each.reshape(-1).astype(np.float64) for each in (scales, shifts))
    return Coded(codes.reshape(-1), WHOLE_NUMBERS, runs, scale, shift)


@kernel
def _take_columns(places: NDArray[np.int32], codes: U8Array, own: U8Array) -> None:
    """See `in_order`."""
    for row in range(codes.shape[0]):
        for k in range(places.size):
            own[row, k] = codes[row, places[k]]


def joined(parts: list[Coded]) -> Coded:
    """Parts of a matrix, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    each = [part.by_weight() for part in parts]
    codes = np.concatenate([part.codes for part in each])
    numbers = (
        np.concatenate([np.broadcast_to(read(part), part.codes.size) for part in each])
        for read in map(attrgetter, ("scale", "shift", "base"))
    )
    return Coded(codes, each[0].levels, Runs(codes.size, 1, 0), *numbers)


@bare_inlined
def _levels_of(codes: U8Array, at: int, levels: F32Array, are_whole: bool) -> Any:
    """The levels of 16 codes, as float64."""
    q = load_bytes(codes, at)
    return to_f64(to_f32(q) + levels[0] if are_whole else gather(levels, q))


@bare_inlined
def _are_whole(levels: F32Array) -> bool:
    """Whether the levels are consecutive integers, so that no table is needed."""
    return levels[255] == levels[0] + np.float32(255)


@bare_kernel
def _store_runs(
    codes: U8Array,
    levels: F32Array,
    runs: Any,
    scale: F64,
    shift: F64,
    base: F64,
    target: Target,
) -> tuple[int, float, float, bool]:
    """See `Coded.store`; runs, row length, width and first weight, are whole vectors."""
    row_length, width, column = runs
    per_row, row, begin = (row_length + width - 1) // width, 0, 0
    n, error, squares, due = 0, 0.0, 0.0, ENOUGH
    are_whole, fits = _are_whole(levels), splat(target.limit) == target.limit
    e, s = splat(np.float32(0)), splat(np.float32(0))
    while begin < codes.size:
        run = column // width
        end = begin + min(min((run + 1) * width, row_length) - column, codes.size - begin, ENOUGH)
        at = row * per_row + run
        times, less, more = scale[at % scale.size], shift[at % shift.size], base[at % base.size]
        for i in range(begin, end, LANES):
            x = (_levels_of(codes, i, levels, are_whole) - less) * times + more
            rounded, near, off, is_small = put(x, i, target)
            n += n_true(rounded)
            e = e + off * off
            s = s + near * near
            fits = fits & is_small
        column, begin = column + end - begin, end
        if column == row_length:
            row, column = row + 1, 0
        if begin >= due:
            error, squares, due = error + sum_lanes(e), squares + sum_lanes(s), begin + ENOUGH
            e, s = splat(np.float32(0)), splat(np.float32(0))
    return n, error + sum_lanes(e), squares + sum_lanes(s), not any_lane(~fits)


@bare_kernel
def _store_scattered(
    codes: U8Array,
    levels: F32Array,
    runs: Any,
    scale: F64,
    shift: F64,
    base: F64,
    target: Target,
    lines: F64,
) -> tuple[int, float, float, bool]:
    """See `Coded.store`; what a row's runs have is spread over its columns, in `lines`, first."""
    row_length, _, column, columns, per_row = runs
    row, begin, n, error, squares = 0, 0, 0, 0.0, 0.0
    are_whole, fits = _are_whole(levels), splat(target.limit) == target.limit
    times, less = lines[0], lines[1]
    while begin < codes.size:
        end = begin + min(min(row_length - column, codes.size - begin), ENOUGH)
        own, owns = scale[row * per_row :], shift[row * per_row :]
        for k in range(column, column + end - begin):
            times[k], less[k] = own[columns[k]], owns[columns[k]]
        e, s = splat(np.float32(0)), splat(np.float32(0))
        for i in range(begin, end, LANES):
            k = column + i - begin
            x = (_levels_of(codes, i, levels, are_whole) - load_f64(less, k)) * load_f64(times, k)
            rounded, near, off, is_small = put(x + base[0], i, target)
            n += n_true(rounded)
            e = e + off * off
            s = s + near * near
            fits = fits & is_small
        error += sum_lanes(e)
        squares += sum_lanes(s)
        column, begin = column + end - begin, end
        if column == row_length:
            row, column = row + 1, 0
    return n, error, squares, not any_lane(~fits)


@bare_kernel
def _store_each(
    codes: U8Array,
    levels: F32Array,
    begin: int,
    scale: F64,
    shift: F64,
    base: F64,
    target: Target,
) -> tuple[int, float, float, bool]:
    """See `Coded.store`; each weight has numbers of its own, from `begin` on, again and again."""
    n, error, squares = 0, 0.0, 0.0
    are_whole, fits = _are_whole(levels), splat(target.limit) == target.limit
    for first in range(0, codes.size, ENOUGH):
        e, s = splat(np.float32(0)), splat(np.float32(0))
        for i in range(first, min(first + ENOUGH, codes.size), LANES):
            x, at = _levels_of(codes, i, levels, are_whole), begin + i
            x = x - load_f64(shift, at % shift.size) if shift.size > 1 else x - shift[0]
            x = x * load_f64(scale, at % scale.size) if scale.size > 1 else x * scale[0]
            x = x + load_f64(base, at % base.size) if base.size > 1 else x + base[0]
            rounded, near, off, is_small = put(x, i, target)
            n += n_true(rounded)
            e = e + off * off
            s = s + near * near
            fits = fits & is_small
        error += sum_lanes(e)
        squares += sum_lanes(s)
    return n, error, squares, not any_lane(~fits)

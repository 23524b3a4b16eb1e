"""Hidden grids: tensors of floats that were once integers times a scale."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover.execution.tiles import Tile, available_cores, for_each_tile, whole_rows
from recover.inputs.originals._fit import (
    INEXACT,
    MAX_CODE,
    NONE,
    OFF_GRID,
    ON_GRID,
    PATCHED,
    STORAGES,
    ZERO,
    Expected,
    all_have_grids,
    reach,
    read_runs,
    scratch,
)
from recover.inputs.originals.codes import BLOCK, as_float64
from recover.quants import U8Array

# What decides whether there is a grid at all.
_N_PROBED_ROWS = 64
_N_PROBES_PER_ROW = 4
_FEWEST_NONZERO = 16
_N_SAMPLED_ROWS = 24

MOST_FAILED_RUNS = 0.1
"""Of all runs: where more have no grid, the tensor has none."""
MOST_OFF_WEIGHTS = 0.01
"""The same of weights off the grid of their run."""


@dataclass(frozen=True, eq=False)
class Floats:
    """A matrix of stored floats.

    Attributes
    ----------
    raw : uint8 (n_bytes,)
        The stored bytes, little-endian; perhaps not aligned.
    type_name : str
        ``F32``, ``F16`` or ``BF16``.
    row_length : int
        Weights of a row.
    """

    raw: U8Array
    type_name: str
    row_length: int

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return self.raw.size // self._item_size

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.n_weights // self.row_length

    @property
    def _item_size(self) -> int:
        return 4 if self.type_name == "F32" else 2

    def words(self, start: int, end: int) -> NDArray[Any]:
        """A copy of the bits of weights `start` to `end`, uint32 or uint16."""
        size = self._item_size
        return self.raw[start * size : end * size].copy().view(f"<u{size}")

    def words_of_rows(
        self, first: int, last: int, chosen: NDArray[np.int64] | None = None
    ) -> NDArray[Any]:
        """The bits of rows `first` to `last`, or of `chosen` rows with these places in there."""
        length = self.row_length
        if chosen is None:
            return self.words(first * length, last * length)
        parts = [self.words(row * length, (row + 1) * length) for row in chosen[first:last]]
        return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class TransposedFloats(Floats):
    """Matrices whose rows are the columns of what is stored.

    Attributes
    ----------
    n_columns : int
        Numbers of a line of what is stored: rows of each matrix.
    """

    n_columns: int

    def words(self, start: int, end: int) -> NDArray[Any]:
        """As of `Floats`."""
        length, lines = self.row_length, self.raw.view(f"<u{self._item_size}")
        first, last = start // length, -(-end // length)
        stored = lines.reshape(-1, length, self.n_columns)
        parts, at = [], first
        while at < last:
            matrix, row = divmod(at, self.n_columns)
            n = min(last - at, self.n_columns - row)
            parts.append(stored[matrix, :, row : row + n].T.reshape(-1))
            at += n
        begin = start - first * length
        return np.concatenate(parts)[begin : begin + end - start]


FEW = 1000
"""One weight of so many may be off a grid without making a tensor one of floats."""

LONGEST_ROW = 1 << 20
"""Of longer rows, which no matrix has, some are too large to be looked at."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of a tensor.

    Attributes
    ----------
    run_length : int
        Weights along a row that share a scale: the longest that divides the rows.
    expected : Expected
        What nearly all of its runs are.
    reach : int
        The largest magnitude of a code, or one more (see `recover.inputs.originals._fit.reach`).
    largest : int
        The largest magnitude of a code.
    off_rows : int64 (n,)
        Rows with weights off the grid, ascending.
    n_off : int
        Weights off the grid, in runs that have one.
    n_failed : int
        Runs without a grid, among them replaced rows.
    n_inexact : int
        Runs whose scale cannot be an F16 number.
    has_zeros : bool
        Whether there are codes 0 beside others.
    """

    run_length: int
    expected: Expected
    reach: int
    largest: int
    off_rows: NDArray[np.int64]
    n_off: int
    n_failed: int
    n_inexact: int
    has_zeros: bool


@dataclass(frozen=True, eq=False)
class Runs:
    """Consecutive runs, read.

    Attributes
    ----------
    codes : int16 (n,)
        `recover.inputs.originals._fit.OFF_GRID` where a weight is off the grid.
    scales : float64 (n_runs,)
        F16 numbers, but for runs that are `INEXACT`; 0 for zeros and where there is no grid.
    status : int8 (n_runs,)
        See `recover.inputs.originals._fit`.
    n_off : int
        Weights off the grid of their run.
    """

    codes: NDArray[np.int16]
    scales: NDArray[np.float64]
    status: NDArray[np.int8]
    n_off: int


def anything(run_length: int) -> Expected:
    """Any grid that can be found, with some weights off it."""
    return Expected(MAX_CODE, 10, 2 + run_length // 64, 0)


STRICT = Expected(MAX_CODE, 10, 0, 0)
"""Any grid that can be found, with all weights on it."""


def read(words: NDArray[Any], type_name: str, run_length: int, expected: Expected) -> Runs:
    """Scales and codes of whole runs.

    Parameters
    ----------
    words : uint32 or uint16 (n,)
        Stored bits.
    type_name : str
        ``F32``, ``F16`` or ``BF16``.
    run_length : int
        Divides n.
    expected : Expected
        What the grids are expected to be.

    Returns
    -------
    Runs
    """
    n_runs = words.size // run_length
    codes, status = np.empty(words.size, np.int16), np.empty(n_runs, np.int8)
    scales = np.empty(n_runs)
    missed = read_runs(words, STORAGES[type_name], expected, scratch(), codes, (status, scales))
    return Runs(codes, scales, status, missed)


def find_grid(floats: Floats, *, n_threads: int | None = None) -> Grid | None:
    """Look for a grid, and prove it on every weight.

    Parameters
    ----------
    floats : Floats
        Rows that are whole multiples of 32.
    n_threads : int, optional
        Default: the cores that this process may use.

    Returns
    -------
    Grid or None
        None if there is none, or too few nonzero weights to tell. A tensor without a grid costs
        little: some blocks of 32 are tried first.
    """
    if floats.row_length % BLOCK or floats.row_length > LONGEST_ROW or not _may_have_one(floats):
        return None
    rows = [
        floats.words(row * floats.row_length, (row + 1) * floats.row_length)
        for row in spread(floats.n_rows, _N_SAMPLED_ROWS)
    ]
    run_length = _run_length(rows, floats)
    if run_length is None:
        return None
    return _prove(floats, run_length, _expected(rows, floats.type_name, run_length), n_threads)


def spread(n: int, most: int) -> list[int]:
    """At most so many of n indices, the first and the last among them."""
    return sorted({int(i) for i in np.linspace(0, n - 1, min(n, most)).round()})


def _may_have_one(floats: Floats) -> bool:
    """Whether most blocks of 32 weights, of those that can tell, lie on a grid."""
    n_told, n_on = 0, 0
    for row in spread(floats.n_rows, _N_PROBED_ROWS):
        for block in spread(floats.row_length // BLOCK, _N_PROBES_PER_ROW):
            start = row * floats.row_length + block * BLOCK
            words = floats.words(start, start + BLOCK)
            if np.count_nonzero(as_float64(words, floats.type_name)) >= _FEWEST_NONZERO:
                n_told += 1
                n_on += int(
                    read(words, floats.type_name, BLOCK, STRICT).status[0] in (ON_GRID, INEXACT)
                )
    return 2 * n_on > n_told


def _run_length(rows: list[NDArray[Any]], floats: Floats) -> int | None:
    """The longest run that all the sampled rows are made of.

    A run can only be on a grid if its parts are: so run lengths grow by one prime factor of the
    row at a time, as long as all the runs hold. Rows with other things on them do not take part.
    Two runs of one magnitude each are a run of two, on some grid: where blocks have one, runs have.
    """
    is_of_one = False

    def holds(row: NDArray[Any], length: int) -> bool:
        expected = anything(length)
        if is_of_one:
            runs = read(row, floats.type_name, length, expected)
            return bool(np.all((np.abs(runs.codes) <= 1) | (runs.codes == OFF_GRID)))
        return all_have_grids(row, STORAGES[floats.type_name], expected, scratch(), length)

    rows = [row for row in rows if holds(row, BLOCK)]
    if not rows:
        return None
    is_of_one = _are_of_one(_reaches(rows, floats.type_name, BLOCK)[2])
    length = BLOCK
    for prime in _prime_factors(floats.row_length // BLOCK):
        if all(holds(row, length * prime) for row in rows):
            length *= prime
    return length


def _expected(rows: list[NDArray[Any]], type_name: str, run_length: int) -> Expected:
    """What nearly all of the sampled runs are.

    A patched weight may lie on a much finer grid together with the rest of its run; where all
    other runs are of int4 or have BF16 scales, it does not.
    """
    of_blocks, scales, largest = _reaches(rows, type_name, BLOCK)
    of_runs, _, extremes = _reaches(rows, type_name, run_length)
    widest = anything(run_length)
    if not scales.size or not of_runs.size:
        return widest
    # Fewer runs than blocks are free of patched weights.
    max_code = MAX_CODE
    for limit in (16, 8):
        if np.mean(of_blocks <= limit) >= 0.9 and np.mean(of_runs <= limit) >= 0.1:
            max_code = limit
    if _are_of_one(largest):
        max_code = 1
    is_bf16 = scales.astype(np.float32).view(np.uint32) & 0xFFFF == 0
    usual = int(np.bincount(extremes).argmax())
    extreme = usual if np.mean(extremes == usual) >= 0.9 else 0
    return Expected(max_code, 7 if np.mean(is_bf16) >= 0.9 else 10, widest.most_off, extreme)


def _are_of_one(largest: NDArray[np.int64]) -> bool:
    """Whether nearly all blocks, by their largest codes, have no magnitude but one."""
    return bool(largest.size and np.mean(largest <= 1) >= 0.9)


def _reaches(
    rows: list[NDArray[Any]], type_name: str, length: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Reaches, scales and largest magnitudes of the runs that are on a grid throughout."""
    reaches, scales, extremes = [], [], []
    for row in rows:
        runs = read(row, type_name, length, STRICT)
        is_on = np.isin(runs.status, (ON_GRID, INEXACT))
        codes = runs.codes.reshape(-1, length)[is_on]
        reaches += [reach(each) for each in codes]
        scales.append(runs.scales[is_on])
        extremes.append(np.abs(codes).max(1).astype(np.int64))
    return np.array(reaches, np.int64), np.concatenate(scales), np.concatenate(extremes)


def _prime_factors(n: int) -> list[int]:
    factors, prime = [], 2
    while prime * prime <= n:
        while n % prime == 0:
            factors.append(prime)
            n //= prime
        prime += 1
    return [*factors, n] if n > 1 else factors


class _Tile(NamedTuple):
    """What the runs of a tile add up to."""

    n_off: int
    n_failed: int
    n_inexact: int
    has_zeros: bool
    n_beyond: int
    """Blocks of 32 with codes that nearly no other has."""
    reach: int
    largest: int
    usual_reach: int
    usual_largest: int
    """The same without those blocks."""


def _prove(
    floats: Floats, run_length: int, expected: Expected, n_threads: int | None
) -> Grid | None:
    """Read every run of the tensor, a tile at a time."""
    runs_per_row = floats.row_length // run_length
    is_off, is_beyond = np.zeros((2, floats.n_rows), np.bool_)
    tiles: list[_Tile] = []

    def work(tile: Tile) -> None:
        words = floats.words(tile.start, tile.end)
        runs = read(words, floats.type_name, run_length, expected)
        status = runs.status.reshape(-1, runs_per_row)
        first = tile.start // floats.row_length
        rows = slice(first, first + len(status))
        is_off[rows] = ((status == NONE) | (status == PATCHED)).any(1)
        found = _add_up(runs, run_length, expected)
        tiles.append(found[0])
        is_beyond[rows] = found[1].reshape(len(status), -1).any(1)

    workers = [work] * (n_threads or available_cores())
    for_each_tile([floats.n_weights], workers, steps=[whole_rows(floats.row_length)])
    n_off, n_failed, n_inexact, n_beyond = (
        sum(of)
        for of in zip(*((t.n_off, t.n_failed, t.n_inexact, t.n_beyond) for t in tiles), strict=True)
    )
    n_runs = floats.n_rows * runs_per_row
    if n_failed > MOST_FAILED_RUNS * n_runs or n_off > MOST_OFF_WEIGHTS * floats.n_weights:
        return None
    far, largest = max(t.reach for t in tiles), max(t.largest for t in tiles)
    if n_off + n_failed + n_inexact and n_beyond * BLOCK * FEW <= floats.n_weights:
        # Where weights were touched, some of them look like codes.
        far, largest = max(t.usual_reach for t in tiles), max(t.usual_largest for t in tiles)
        n_off += n_beyond
        is_off |= is_beyond
    return Grid(
        run_length=run_length,
        expected=expected,
        reach=far,
        largest=largest,
        off_rows=np.flatnonzero(is_off),
        n_off=n_off,
        n_failed=n_failed,
        n_inexact=n_inexact,
        has_zeros=any(t.has_zeros for t in tiles),
    )


def _add_up(runs: Runs, run_length: int, expected: Expected) -> tuple[_Tile, NDArray[np.bool_]]:
    """The sums, and which blocks of 32 have unusual codes."""
    codes, status = runs.codes, runs.status
    blocks = np.where(codes == OFF_GRID, 0, codes).reshape(-1, BLOCK)
    high, low = blocks.max(1), blocks.min(1)
    largest = np.maximum(high, -low)
    reaches = largest + ((high == -low) & (high > 0))
    beyond = reaches > max(expected.max_code, 2)
    zeros = (codes.reshape(-1, run_length) == 0).any(1) & (status != ZERO)
    n_failed, n_inexact = (int(np.count_nonzero(status == kind)) for kind in (NONE, INEXACT))
    return _Tile(
        n_off=runs.n_off,
        n_failed=n_failed,
        n_inexact=n_inexact,
        has_zeros=bool(zeros.any()),
        n_beyond=int(np.count_nonzero(beyond)),
        reach=int(reaches.max(initial=0)),
        largest=int(largest.max(initial=0)),
        usual_reach=int(reaches[~beyond].max(initial=0)),
        usual_largest=int(largest[~beyond].max(initial=0)),
    ), beyond

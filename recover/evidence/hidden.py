"""Scales that chose the codes but were changed before they were stored.

Some encoders fit the scale of a superblock once more after they chose the codes (see
`recover.quants._hidden_scales`). The cells of the codes then are those of the stored scale times a
ratio that nobody stored. It is one for all of the superblock, so that every weight that the other
inputs confine says something of it: the cell times the ratio must meet their bounds. What is left
of the possible ratios is an interval, and the cells are the union over it.

Which ratios are possible at all was measured: what is sure are all that were ever found, on weights
of any kind, with a margin; what is usual are those of trained weights. Estimates start from the
latter, and take the former where the other inputs exclude them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import any_lane
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import LANES, load, store, where
from recover.evidence.cells import intersect_cells
from recover.evidence.tile import Evidence
from recover.quants import TILE, BlockIntervals, F32Array, IntervalType, Stated, U8Array
from recover.quants.interval import SUPERBLOCK, spread

_N_ROUNDS = 2  # inputs with hidden scales narrow each other
_OUTWARD = np.float32(1 + 2.0**-20)
_NONE, _FAR = np.float32(0), np.float32(np.inf)


class HiddenScales:
    """Cells of the interval inputs with hidden scales, and what narrows them.

    Parameters
    ----------
    kinds : sequence of IntervalType
        Those of all interval inputs.
    weighted : sequence of bool
        Of each whether its encoder had an importance matrix.
    proven : bool
        Whether bounds are to be sure, not only usual.
    """

    def __init__(
        self, kinds: Sequence[IntervalType], weighted: Sequence[bool], *, proven: bool
    ) -> None:
        self._weighted = tuple(weighted)
        self._kinds = {
            row: kind
            for row, kind in enumerate(kinds)
            if isinstance(kind, BlockIntervals) and kind.hidden is not None
        }
        self._rows = np.array([*self._kinds], np.int64)
        self._others = [row for row in range(len(kinds)) if row not in self._kinds]
        self._proven = proven
        n = len(self._kinds)
        self._possible = np.empty((2, n, TILE // SUPERBLOCK), np.float32)
        self._usual = np.empty((2, n, TILE // SUPERBLOCK), np.float32)

    def __contains__(self, row: int) -> bool:
        return row in self._kinds

    def state(self, row: int, raw: U8Array, out: Stated) -> None:
        """Fill what an input states, with the cells of the ratio 1.

        Parameters
        ----------
        row : int
            Which of the interval inputs.
        raw : uint8 (n_bytes,)
            Its blocks.
        out : Stated
            To be filled.
        """
        kind, place = self._kinds[row], [*self._kinds].index(row)
        assert kind.hidden is not None
        (kind.hidden.state_weighted if self._weighted[row] else kind.state)(raw, out)
        n = -(-out.value.size // SUPERBLOCK)
        low, high = self._possible[:, place, :n]
        kind.hidden.possible(raw, low, high)
        low, high = self._usual[:, place, :n]
        (kind.hidden.possible if self._proven else kind.hidden.usual)(raw, low, high)

    def narrow(self, tile: Evidence) -> None:
        """Turn the cells of the ratio 1 into those of all ratios that are left."""
        if not self._kinds:
            return
        n = tile.interval_values.shape[1]
        cells = tile.interval_lower, tile.interval_upper
        if len(tile.codes) + len(tile.interval_values) == 1:  # nothing narrows it
            spread(cells[0][0], cells[1][0], *self._usual[:, 0, : -(-n // SUPERBLOCK)])
            return
        lower, upper = np.empty((2, n), np.float32)
        alone = tile._replace(
            interval_lower=np.ascontiguousarray(tile.interval_lower[self._others]),
            interval_upper=np.ascontiguousarray(tile.interval_upper[self._others]),
        )
        intersect_cells(alone, lower, upper)
        n_blocks = -(-n // SUPERBLOCK)
        possible = np.ascontiguousarray(self._possible[:, :, :n_blocks])
        ranges = np.ascontiguousarray(self._usual[:, :, :n_blocks])
        self._narrow_all(cells, (lower, upper), possible, ranges)
        if _take_back(self._rows, cells, (lower, upper), possible, ranges):
            self._narrow_all(cells, (lower, upper), possible, ranges)
        for place, row in enumerate(self._rows):
            spread(cells[0][row], cells[1][row], *ranges[:, place])

    def _narrow_all(
        self,
        cells: tuple[F32Array, F32Array],
        known: tuple[F32Array, F32Array],
        possible: F32Array,
        ranges: F32Array,
    ) -> None:
        for _ in range(_N_ROUNDS if len(self._rows) > 1 else 1):
            for place in range(len(self._rows)):
                _narrow(place, self._rows, cells, known, possible, ranges)


@kernel
def _narrow(
    place: int,
    rows: NDArray[np.int64],
    cells: tuple[F32Array, F32Array],
    known: tuple[F32Array, F32Array],
    possible: F32Array,
    ranges: F32Array,
) -> None:
    """Narrow the ratios of one input by the bounds of the others.

    Parameters
    ----------
    place : int
        Which of `rows`.
    rows : int64 (H,)
        Of `cells` with hidden scales.
    cells : pair of float32 (I, n)
        Those of the ratio 1.
    known : pair of float32 (n,)
        Bounds of the inputs without hidden scales.
    possible, ranges : float32 (2, H, n / 256)
        Least and largest ratio: what is sure, and what is left so far, which is changed.
    """
    n = known[0].size
    lower, upper = np.empty(SUPERBLOCK, np.float32), np.empty(SUPERBLOCK, np.float32)
    for b in range(ranges.shape[2]):
        start, end = SUPERBLOCK * b, min(SUPERBLOCK * (b + 1), n)
        _fill_bounds(place, rows, cells, known, ranges, b, lower, upper)
        own = cells[0][rows[place], start:end], cells[1][rows[place], start:end]
        least, most = _left(own, lower, upper, ranges[0, place, b], ranges[1, place, b])
        if least > most:  # what is usual is excluded
            least, most = possible[0, place, b], possible[1, place, b]
            left = _left(own, lower, upper, least, most)
            if left[0] <= left[1]:
                least, most = left
        ranges[0, place, b], ranges[1, place, b] = least, most


@inner
def _fill_bounds(
    place: int,
    rows: NDArray[np.int64],
    cells: tuple[F32Array, F32Array],
    known: tuple[F32Array, F32Array],
    ranges: F32Array,
    b: int,
    lower: F32Array,
    upper: F32Array,
) -> None:
    """What all inputs but one say of the weights of superblock `b`, sixteen at a time."""
    start = SUPERBLOCK * b
    for i in range(0, min(SUPERBLOCK, known[0].size - start), LANES):
        low, high = load(known[0], start + i), load(known[1], start + i)
        for k in range(rows.size):
            if k != place:
                a, z = ranges[0, k, b], ranges[1, k, b]
                below = _least_places(load(cells[0][rows[k]], start + i), a, z)
                above = -_least_places(-load(cells[1][rows[k]], start + i), a, z)
                low = where(below > low, below, low)
                high = where(above < high, above, high)
        store(lower, i, low)
        store(upper, i, high)


@inner
def _least_places(edge: Any, low: np.float32, high: np.float32) -> Any:
    """`least_place` of sixteen edges."""
    return where(edge == -_FAR, edge, where(edge < _NONE, edge * high, edge * low))


@kernel
def _take_back(
    rows: NDArray[np.int64],
    cells: tuple[F32Array, F32Array],
    known: tuple[F32Array, F32Array],
    possible: F32Array,
    ranges: F32Array,
) -> bool:
    """Where the inputs contradict each other, take all ratios that are possible; whether any do.

    What is usual of one input may have excluded what is true of another one.
    """
    found = False
    lower, upper = np.empty(SUPERBLOCK, np.float32), np.empty(SUPERBLOCK, np.float32)
    for b in range(ranges.shape[2]):
        _fill_bounds(-1, rows, cells, known, ranges, b, lower, upper)
        for i in range(0, min(SUPERBLOCK, known[0].size - SUPERBLOCK * b), LANES):
            if any_lane(load(lower, i) > load(upper, i)):
                ranges[:, :, b] = possible[:, :, b]
                found = True
                break
    return found


@inner
def _left(
    own: tuple[F32Array, F32Array],
    lower: F32Array,
    upper: F32Array,
    least: np.float32,
    most: np.float32,
) -> tuple[np.float32, np.float32]:
    """The ratios of a superblock for which every cell meets the bounds of the others.

    Few weights exclude any: what sixteen at once do not is not looked at one by one.
    """
    for i in range(0, own[0].size, LANES):
        low, high = load(own[0], i), load(own[1], i)
        below, above = load(lower, i), load(upper, i)
        excludes = (low > _NONE) & (above > _NONE) & (above < low * most)
        excludes = excludes | (~(low > _NONE) & (above < low * least) & (above < _NONE))
        excludes = excludes | ((high < _NONE) & (high * most < below) & (below < _NONE))
        excludes = excludes | (~(high < _NONE) & (high * least < below) & (below > _NONE))
        if any_lane(excludes):
            for k in range(i, i + LANES):
                least, most = _left_by(own[0][k], own[1][k], lower[k], upper[k], least, most)
    return least, most


@inner
def _left_by(
    low: np.float32,
    high: np.float32,
    below: np.float32,
    above: np.float32,
    least: np.float32,
    most: np.float32,
) -> tuple[np.float32, np.float32]:
    """The same of one weight."""
    # low * ratio <= above and high * ratio >= below: a division only where that excludes some.
    if low > 0:
        if 0 < above < low * most:
            most = above / low * _OUTWARD
    elif above < low * least and above < 0:
        least = above / low / _OUTWARD
    if high < 0:
        if high * most < below < 0:
            most = below / high * _OUTWARD
    elif high * least < below and below > 0:
        least = below / high / _OUTWARD
    return least, most

"""The scales of rows or columns under which cells of two inputs overlap most.

A weight is told to lie in ``[a s, b s]`` by one input, whose scale `s` is not known, and in
``[c, d]`` by the other. The likelihood of `s` is the probability of what both have in common: its
length, times a density that falls with the size of the weight. (Without the latter scales would be
found that are too large, by 0.7% beside Q4_K.) Mean squares give a start, a coarse grid of scales
around it the region, and a fine one mean and deviation.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inner, kernel
from recover.containers.huggingface.formats.base import Matrix
from recover.containers.huggingface.scaled import Scales
from recover.quants import F32Array, Stated

F64Array = NDArray[np.float64]

_ENOUGH = 1024  # weights that tell a scale
_FEWEST = 16
_ROWS = 8  # so many rows are whole blocks of every type
_PART = 262_144
_MOST = 64  # overlaps whose product stays within float64
_COARSE = np.linspace(-0.09, 0.09, 37)  # logarithms
_FINE = np.linspace(-1, 1, 33)
_LEAST_REACH, _DEVIATIONS = 0.004, 4.5
_MOST_SEARCHES = 4
_LEAST = np.float32(1e-3)  # of an overlap over the narrower cell: an input may be off
_FAR = np.float32(np.inf)
_QUARTER = np.float32(0.25)


@dataclass(frozen=True)
class Side:
    """A matrix with scales that are not known.

    Attributes
    ----------
    matrix : Matrix
        What one input says, but for the scales.
    bounds : callable
        ``bounds(start, end) -> lower, upper`` by the other.
    by_row : bool
        Whether rows are to be multiplied by the scales; otherwise columns are to be divided.
    """

    matrix: Matrix
    bounds: Callable[[int, int], tuple[F32Array, F32Array]]
    by_row: bool

    @property
    def n_told(self) -> int:
        """Weights that tell one scale."""
        return self.matrix.row_length if self.by_row else self.matrix.n_rows

    @property
    def stride(self) -> int:
        """Of so many weights that tell one scale one is looked at, in each row that is read."""
        return max(1, self.n_told // _ENOUGH) if self.by_row else 1

    def parts(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows to be read."""
        n_rows, row_length = self.matrix.n_rows, self.matrix.row_length
        starts: Iterable[int]
        step = min(max(_PART // row_length // _ROWS * _ROWS, _ROWS), _MOST)
        if self.by_row or n_rows <= _ENOUGH:
            starts = range(0, n_rows, step)
        else:
            n_parts = max(_ENOUGH // step, 1)
            blocks = (n_rows - step) // _ROWS
            starts = [i * blocks // max(n_parts - 1, 1) * _ROWS for i in range(n_parts)]
        return ((first, min(first + step, n_rows)) for first in starts)

    def read(self) -> Iterator[tuple[int, tuple[F32Array, ...]]]:
        """First row of each part; bounds by the one input and by the other."""
        row_length = self.matrix.row_length
        stated = Stated.of(0)
        for first, last in self.parts():
            start, end = first * row_length, last * row_length
            if stated.value.size != end - start:
                stated = Stated.of(end - start)
            self.matrix.intervals(start, end, stated)
            yield first, (stated.lower, stated.upper, *self.bounds(start, end))


def most_likely(sides: Sequence[Side], n: int) -> Scales:
    """The scales (n,) that all sides tell together."""
    centers, n_seen, powers = _mean_squares(sides, n)
    at_end = np.ones(n, np.bool_)
    for _ in range(_MOST_SEARCHES):
        near, wide = _posterior(sides, centers, powers, np.broadcast_to(_COARSE, (n, _COARSE.size)))
        centers, at_end = centers + near, np.abs(near) > _COARSE[-1] - 3 * (_COARSE[1] - _COARSE[0])
        if not at_end.any():
            break
    reach = np.maximum(_DEVIATIONS * wide, _LEAST_REACH)
    off, deviation = _posterior(sides, centers, powers, reach[:, None] * _FINE)
    known = (n_seen >= _FEWEST) & ~at_end & np.isfinite(centers)
    step = reach * (_FINE[1] - _FINE[0])
    deviation = np.hypot(deviation, step / np.sqrt(12))
    values = np.exp(np.where(known, centers + off, 0))
    deviations = np.where(known, deviation, np.inf).astype(np.float32)
    return Scales(values.astype(np.float32), deviations, is_measured=True)


def _mean_squares(sides: Sequence[Side], n: int) -> tuple[F64Array, F64Array, list[F64Array]]:
    """Logarithms of scales, and how many weights with two pairs of bounds tell each.

    And, for each side, the mean square of the weights that do.
    """
    total, count, powers = np.zeros(n), np.zeros(n), []
    for side in sides:
        sums = np.zeros((n, 3))
        for first, said in side.read():
            _add_squares(
                first if side.by_row else -1, side.matrix.row_length, side.stride, said, sums
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            found = 0.5 * np.log(sums[:, 1] / sums[:, 0])
            powers.append(sums[:, 1] / sums[:, 2])
        seen = np.where(np.isfinite(found), sums[:, 2], 0)
        total += seen * np.where(seen > 0, found if side.by_row else -found, 0)
        count += seen
    with np.errstate(invalid="ignore"):
        return total / count, count, powers


def _posterior(
    sides: Sequence[Side], centers: F64Array, powers: Sequence[F64Array], offsets: F64Array
) -> tuple[F64Array, F64Array]:
    """Means and deviations of logarithms of scales, less their centers (n,), by a grid (n, m)."""
    logs = np.where(np.isfinite(centers), centers, 0)[:, None] + offsets
    score = np.zeros(logs.shape)
    for side, power in zip(sides, powers, strict=True):
        products, squares = np.ones(logs.shape), np.zeros(logs.shape)
        factors = np.exp(logs if side.by_row else -logs).astype(np.float32)
        row_length, n_multiplied = side.matrix.row_length, 0
        for first, said in side.read():
            n_rows = said[0].size // row_length
            if n_multiplied + n_rows > _MOST:
                _collect_all(products, score)
                n_multiplied = 0
            row = first if side.by_row else -1
            _overlap(row, row_length, side.stride, said, factors, (products, squares), score)
            n_multiplied += n_rows
        _collect_all(products, score)
        score -= squares / np.where(power > 0, 2 * power, np.inf)[:, None]
    likelihood = np.exp(score - score.max(1, keepdims=True))
    likelihood /= likelihood.sum(1, keepdims=True)
    mean = (likelihood * offsets).sum(1)
    variance = (likelihood * np.square(offsets - mean[:, None])).sum(1)
    return mean, np.sqrt(variance)


@kernel
def _add_squares(
    row: int, row_length: int, stride: int, said: tuple[F32Array, ...], sums: F64Array
) -> None:
    """Add to `sums` (n, 3): the squares of the weights by both inputs, and how many there are.

    Only weights count that have two bounds by both. `row` is the first row if scales are those of
    rows, otherwise -1.
    """
    lower, upper, low, high = said
    for r in range(lower.size // row_length):
        for k in range(r % stride, row_length, stride):
            i = r * row_length + k
            width, other = np.float64(upper[i] - lower[i]), np.float64(high[i] - low[i])
            if 0 <= width < np.inf and 0 <= other < np.inf:
                u = row + r if row >= 0 else k
                x, y = np.float64(lower[i] + upper[i]) / 2, np.float64(low[i] + high[i]) / 2
                sums[u, 0] += x * x + width * width / 12
                sums[u, 1] += y * y + other * other / 12
                sums[u, 2] += 1


@kernel
def _overlap(
    row: int,
    row_length: int,
    stride: int,
    said: tuple[F32Array, ...],
    factors: F32Array,
    sums: tuple[F64Array, F64Array],
    score: F64Array,
) -> None:
    """Multiply products (n, m) by the overlaps of cells under each factor (n, m).

    `sums` are these products, and the squares of the overlaps' middles, added up. Products of rows
    are collected in `score` now and then, those of columns by the caller.
    """
    lower, upper, low, high = said
    products, squares = sums
    for r in range(lower.size // row_length):
        n_multiplied = 0
        for k in range(r % stride, row_length, stride):
            i = r * row_length + k
            a, b, c, d = lower[i], upper[i], low[i], high[i]
            width = min(b - a, d - c)
            if b - a < _FAR and d - c < _FAR and width > 0:
                u = row + r if row >= 0 else k
                _multiply((a, b, c, d), width, factors[u], products[u], squares[u])
                n_multiplied += 1
            if row >= 0 and n_multiplied == _MOST:
                _collect(products[row + r : row + r + 1], score[row + r : row + r + 1])
                n_multiplied = 0
        if row >= 0:
            _collect(products[row + r : row + r + 1], score[row + r : row + r + 1])


@inner
def _multiply(
    edges: tuple[np.float32, np.float32, np.float32, np.float32],
    width: np.float32,
    factors: F32Array,
    products: F64Array,
    squares: F64Array,
) -> None:
    a, b, c, d = edges
    inverse = np.float32(1) / width
    for g in range(factors.size):
        far, near = min(b * factors[g], d), max(a * factors[g], c)
        products[g] *= np.float64(max((far - near) * inverse, _LEAST))
        squares[g] += np.float64((far + near) * (far + near) * _QUARTER)


@inner
def _collect(products: F64Array, score: F64Array) -> None:
    """Add logarithms of `products` to `score`, and begin again."""
    for u in range(score.shape[0]):
        for g in range(score.shape[1]):
            score[u, g] += np.log(products[u, g])
            products[u, g] = 1


@kernel
def _collect_all(products: F64Array, score: F64Array) -> None:
    _collect(products, score)

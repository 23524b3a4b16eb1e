"""The encoder of the trellis types: for each sub-block the scale and seeds of least squared error.

Rows are encoded alone, in these steps:

1. Of each sub-block of 32 weights, how large the error is at scales that are some 19% apart,
   around the best of them: all seeds are searched, with a free scale.
2. The scale of the row is the one for which the sum of these errors is least, if each sub-block has
   the best of the scales that its code can say.
3. Each sub-block tries the codes whose scales are about as good, of both signs and with all sets of
   seeds. One is given up as soon as the groups that were looked at have a larger error than the
   best. Errors of neighbouring scales differ by chance, so that many tries are worth it.
4. The scale of the row is fitted once more (least squares), and the seeds are searched again.

The error is the sum of squares, each weight's times its importance.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import bare_inner, bare_kernel
from recover.quants._trellis import fill_group
from recover.quants._trellis_book import Book, Shape, book_of
from recover.quants._trellis_marks import marked
from recover.quants._trellis_search import FAR, Work, nearest
from recover.quants.base import F32Array

SUB_BLOCK = 32
"""Weights that have a scale."""

_DEVIATION = 37
"""Of the levels, about; sub-blocks are looked at in units in which this is theirs."""
_LARGEST_LEVEL = 127

_PER_OCTAVE = 4
_UNIT_AT = 20
_N_SCALES = 2 * _UNIT_AT
"""Scales at which errors are known: quarters of octaves, that of number `_UNIT_AT` is 1."""

_FLOOR = 0.01
"""The least importance of a weight, over the mean of its row: no weight may become anything."""
_LEAST = 2.0**-40
"""The least unit of a sub-block: what is so small beside the largest weight of its row is 0."""
_LIMIT = np.float32(1.4)
"""Scales whose errors are expected to be larger by this factor than the least one are not tried."""
_THIN = np.float32(1.03)
"""Of scales nearer to each other than this factor one is tried, then what is next to the best."""
_AT_ONCE = 65_536
"""Weights whose rows are worked on together."""

_LARGEST = np.float64(np.finfo(np.float32).max)

F64Array = NDArray[np.float64]
Integers = NDArray[np.int64]


class SubBlocks(NamedTuple):
    """Sub-blocks in units in which their weighted mean square is that of the levels.

    Attributes
    ----------
    weights, importance : float32 (n, 32)
        The weights; their importances, 1 on average.
    order : int64 (n, n_groups)
        The groups, that of the largest weights first.
    unit : float64 (n,)
        What 1 is, where the largest weight of the row is between 1/2 and 1.
    share : float64 (n,)
        How much an error in these units counts in the row.
    errors : float32 (n, n_scales)
        The least errors at some scales.
    total : float32 (n,)
        The error if all weights are taken for 0.
    """

    weights: F32Array
    importance: F32Array
    order: Integers
    unit: F64Array
    share: F64Array
    errors: F32Array
    total: F32Array


class Found(NamedTuple):
    """What is stored of sub-blocks.

    Attributes
    ----------
    codes, sets : int64 (n,)
        Code of the scale; the set of the seeds.
    seeds : uint16 (n, n_groups)
        A seed for each group.
    """

    codes: Integers
    sets: Integers
    seeds: NDArray[np.uint16]


def encode(shape: Shape, x: F32Array, imatrix: F32Array) -> tuple[F32Array, Found]:
    """Scales of the rows, and what is stored of their sub-blocks.

    Parameters
    ----------
    shape : Shape
        The type.
    x : float32 (n_rows, ne0)
        The weights, finite; `ne0` is a multiple of 32.
    imatrix : float32 (ne0,) or (0,)
        The importance of each column; none if it is empty.

    Returns
    -------
    float32 (n_rows,)
        The scales.
    Found
        Of all sub-blocks, row after row.
    """
    n_rows, ne0 = x.shape
    n, per_row = x.size // SUB_BLOCK, ne0 // SUB_BLOCK
    book, work = book_of(shape), Work.new()
    codes, sets = np.zeros((2, n), np.int64)
    seeds = np.zeros((n, SUB_BLOCK // shape.n_together), np.uint16)
    scales = np.zeros(n_rows, np.float32)
    importance = _importance(imatrix, ne0)
    step = max(_AT_ONCE // max(ne0, 1), 1)
    for first in range(0, n_rows, step):
        rows = slice(first, first + step)
        part = slice(first * per_row, (first + step) * per_row)
        blocks, units = _sub_blocks(shape, x[rows], importance)
        _look_at_scales(book, blocks, work)
        found = Found(codes[part], sets[part], seeds[part])
        _encode_rows(book, blocks, units, scales[rows], found, work)
    return scales, Found(codes, sets, seeds)


def _importance(imatrix: F32Array, ne0: int) -> F64Array:
    """Importances (ne0,) whose mean is 1."""
    mean = imatrix.mean(dtype=np.float64) if imatrix.size else 0.0
    if not mean:
        return np.ones(ne0)
    return np.maximum(imatrix / mean, _FLOOR)


def _sub_blocks(shape: Shape, x: F32Array, importance: F64Array) -> tuple[SubBlocks, F64Array]:
    """The sub-blocks of rows, and for each row the power of 2 that is their unit's unit."""
    exponent = np.frexp(np.abs(x).max(axis=1))[1]
    weights = np.ldexp(x.astype(np.float64), -exponent[:, None]).reshape(-1, SUB_BLOCK)
    if shape.is_absolute:
        weights = np.abs(weights)
    each = np.broadcast_to(importance, x.shape).reshape(-1, SUB_BLOCK)
    sums = each.sum(axis=1)
    unit = np.sqrt((each * weights**2).sum(axis=1) / sums) / _DEVIATION
    unit = np.maximum(unit, _LEAST)
    share = sums / SUB_BLOCK * unit**2
    weights /= unit[:, None]
    each = each * (SUB_BLOCK / sums[:, None])
    squares = each * weights**2
    by_group = squares.reshape(len(weights), -1, shape.n_together).sum(axis=2)
    blocks = SubBlocks(
        weights.astype(np.float32),
        each.astype(np.float32),
        np.argsort(-by_group, axis=1, kind="stable"),
        unit,
        share,
        np.empty((len(weights), _N_SCALES), np.float32),
        squares.sum(axis=1).astype(np.float32),
    )
    return blocks, np.ldexp(1.0, exponent)


@bare_inner
def _error(
    book: Book, blocks: SubBlocks, s: int, k: int, scale: np.float32, bound: np.float32, work: Work
) -> np.float32:
    """The least error of a sub-block with a scale and a set; `FAR` if it is not below `bound`."""
    if scale == 0:
        work.seeds[:] = 0
        return blocks.total[s] if blocks.total[s] < bound else FAR
    n_together = SUB_BLOCK // blocks.order.shape[1]
    total, factor, square = np.float32(0), np.float32(1) / scale, scale * scale
    for g in blocks.order[s]:
        first, end = n_together * g, n_together * (g + 1)
        for i in range(n_together):
            work.target[i] = blocks.weights[s, first + i] * factor
        importance = blocks.importance[s, first:end]
        least, place = nearest(book, k, importance, (bound - total) / square, work)
        if place < 0:
            return FAR
        total += least * square
        work.seeds[g] = place
    return total if total < bound else FAR


@bare_kernel
def _look_at_scales(book: Book, blocks: SubBlocks, work: Work) -> None:
    """Fill in the errors at the scales around the best one; beyond them, what they are at most."""
    for s in range(blocks.unit.size):
        errors = blocks.errors[s]
        if blocks.total[s] == 0:
            for at in range(_N_SCALES):
                errors[at] = 2.0 ** ((at - _UNIT_AT) * 2 / _PER_OCTAVE)
            continue
        low = high = best = _UNIT_AT + 1
        errors[best] = _error_at(book, blocks, s, best, work)
        while low > 0 and high < _N_SCALES - 1 and (low == best or high == best):
            at = low - 1 if low == best else high + 1
            low, high = min(low, at), max(high, at)
            errors[at] = _error_at(book, blocks, s, at, work)
            best = at if errors[at] < errors[best] else best
        for at in range(low - 1, -1, -1):
            errors[at] = min(errors[at + 1] * np.float32(2), blocks.total[s])
        for at in range(high + 1, _N_SCALES):
            errors[at] = errors[at - 1] * np.float32(2 ** (2 / _PER_OCTAVE))


@bare_inner
def _error_at(book: Book, blocks: SubBlocks, s: int, at: int, work: Work) -> np.float32:
    scale = np.float32(2.0 ** ((at - _UNIT_AT) / _PER_OCTAVE))
    return _error(book, blocks, s, 0, scale, FAR, work)


@bare_inner
def _expected(blocks: SubBlocks, s: int, octave: float) -> np.float32:
    """The error to expect at a scale of ``2**octave``."""
    place = octave * _PER_OCTAVE + _UNIT_AT
    if place < 0:
        return blocks.total[s]
    errors, last = blocks.errors[s], _N_SCALES - 1
    if place >= last:
        return errors[last] * np.float32(2.0 ** min((place - last) * 2 / _PER_OCTAVE, 60.0))
    at = int(place)
    rest = np.float32(place - at)
    return errors[at] * (np.float32(1) - rest) + errors[at + 1] * rest


@bare_inner
def _best_magnitude(book: Book, blocks: SubBlocks, s: int, octave: float) -> Any:
    """Which magnitude of factors has the least error to expect, and that, at a scale of the row."""
    best, least = 0, FAR
    for m in range(book.magnitudes.size):
        error = _expected(blocks, s, book.octaves[m] + octave)
        if error < least:
            best, least = m, error
    return best, least


@bare_inner
def _scale_of_row(book: Book, blocks: SubBlocks, first: int, end: int) -> float:
    """The scale whose errors to expect are least in sum, for sub-blocks `first` to `end`."""
    top = 0.0
    for s in range(first, end):
        if blocks.total[s] > 0:
            octave = (np.argmin(blocks.errors[s]) - _UNIT_AT) / _PER_OCTAVE
            top = max(top, blocks.unit[s] * 2.0**octave)
    if top == 0:
        return top
    start, best, least = np.log2(top) - book.octaves[-1], 0.0, np.inf
    for step in range(-32, 5):
        total = 0.0
        for s in range(first, end):
            octave = start + step / 8 - np.log2(blocks.unit[s])
            total += blocks.share[s] * _best_magnitude(book, blocks, s, octave)[1]
        if total < least:
            best, least = 2.0 ** (start + step / 8), total
    return best


@bare_inner
def _stored(scale: float, unit: float, book: Book) -> float:
    """A scale as it is stored, in units of the row: marked, and such that weights are finite."""
    most = _LARGEST / _LARGEST_LEVEL / book.magnitudes[-1]
    return np.float64(marked(np.float32(min(scale * unit, most)))) / unit


@bare_inner
def _try(
    book: Book, blocks: SubBlocks, s: int, m: int, scale: float, bound: np.float32, work: Work
) -> np.float32:
    """The least error with factors of a magnitude, or `bound`; what is better is kept in `work`."""
    for side in range(2):
        code = book.codes[m, side]
        if code < 0:
            continue
        factor = np.float32(scale * book.factors[code])
        for k in range(book.seeds.shape[0]):
            error = _error(book, blocks, s, k, factor, bound, work)
            if error < bound:
                bound = error
                work.choice[0], work.choice[1] = code, k
                for g in range(work.best.size):
                    work.best[g] = work.seeds[g]
    return bound


@bare_inner
def _choose(book: Book, blocks: SubBlocks, s: int, scale: float, work: Work) -> None:
    """Find code, set and seeds of a sub-block; they are in `work`."""
    scale /= blocks.unit[s]
    octave, n = np.log2(scale), book.magnitudes.size
    middle, least = _best_magnitude(book, blocks, s, octave)
    best, error = middle, _try(book, blocks, s, middle, scale, FAR, work)
    for step in (1, -1):
        at = middle
        while True:
            at = _next(book, at, step)
            if not 0 <= at < n:
                break
            if _expected(blocks, s, book.octaves[at] + octave) > _LIMIT * least:
                break
            found = _try(book, blocks, s, at, scale, error, work)
            best, error = (at, found) if found < error else (best, error)
    for step in (1, -1):
        for at in range(best + step, _next(book, best, step), step):
            error = _try(book, blocks, s, at, scale, error, work)


@bare_inner
def _next(book: Book, m: int, step: int) -> int:
    """The first magnitude in a direction that is not too near; or the end."""
    at, n = m + step, book.magnitudes.size
    while 0 <= at < n:
        a, b = book.magnitudes[m], book.magnitudes[at]
        if max(a, b) >= _THIN * min(a, b):
            break
        at += step
    return at


@bare_inner
def _fit(book: Book, blocks: SubBlocks, first: int, end: int, found: Found, work: Work) -> float:
    """The scale of a row of least weighted squares, for its codes; 0 if all levels are 0."""
    n_groups = blocks.order.shape[1]
    n_together, levels = SUB_BLOCK // n_groups, work.target
    products = squares = 0.0
    for s in range(first, end):
        factor, product, square = book.factors[found.codes[s]], 0.0, 0.0
        for g in range(n_groups):
            seed = found.seeds[s, g] + found.sets[s] * book.seeds.shape[1]
            fill_group(seed, levels[:n_together], False)
            for i in range(n_together):
                at = g * n_together + i
                level = factor * (abs(levels[i]) if book.is_absolute else levels[i])
                product += blocks.importance[s, at] * blocks.weights[s, at] * level
                square += blocks.importance[s, at] * level * level
        products += product * blocks.share[s] / blocks.unit[s]
        squares += square * blocks.share[s] / blocks.unit[s] ** 2
    return products / squares if squares > 0 else 0.0


@bare_kernel
def _encode_rows(
    book: Book,
    blocks: SubBlocks,
    units: F64Array,
    scales: F32Array,
    found: Found,
    work: Work,
) -> None:
    """Scales and codes of rows, when the errors at some scales are known."""
    n = blocks.unit.size // max(units.size, 1)
    for row in range(units.size):
        first, end, unit = row * n, (row + 1) * n, units[row]
        scale = _stored(_scale_of_row(book, blocks, first, end), unit, book)
        if not scale:
            continue
        for s in range(first, end):
            _choose(book, blocks, s, scale, work)
            found.codes[s], found.sets[s] = work.choice[0], work.choice[1]
            for g in range(found.seeds.shape[1]):
                found.seeds[s, g] = book.seeds[found.sets[s], work.best[g]]
        fitted = _stored(_fit(book, blocks, first, end, found, work), unit, book)
        fitted = fitted if fitted > 0 else scale
        scales[row] = np.float32(fitted * unit)
        for s in range(first, end):
            factor = np.float32(fitted / blocks.unit[s] * book.factors[found.codes[s]])
            _error(book, blocks, s, found.sets[s], factor, FAR, work)
            for g in range(found.seeds.shape[1]):
                found.seeds[s, g] = book.seeds[found.sets[s], work.seeds[g]]

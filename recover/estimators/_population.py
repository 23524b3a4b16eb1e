"""Weights that are drawn as the cells of given ones tell: with zeros, gaps, outliers and columns.

How weights are distributed, relative to the typical size of their superblock, is told by their
cells: the distribution of most likelihood of such intervals, by its self-consistent equation
(Turnbull, "The empirical distribution function with arbitrarily grouped, censored and truncated
data", Journal of the Royal Statistical Society B 38(3), 1976). It has an atom at 0. Where no
interval tells of weights near 0 but that they may be 0, they are: the atom has most of the mass at
the beginning. Of each weight one is drawn from that distribution within its cells.

It is multiplied by a random factor near 1. Otherwise weights would lie near the levels of the
inputs' own scales, and an encoder that searches for scales would fit them too well.
"""

import math

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inner, kernel
from recover.evidence.buffer import Evidence
from recover.evidence.cells import intersect_cells
from recover.quants import F32Array

_SUPERBLOCK = 256
_PER_OCTAVE, _SMALLEST, _LARGEST = 4, -10, 9  # bins of relative sizes, powers of two
_N_SIZES = _PER_OCTAVE * (_LARGEST - _SMALLEST)
_N_BINS = 2 * _N_SIZES
_N_STEPS = 30
_ATOM = 0.9  # of the mass, to begin with: cells that hold 0 are not told to be empty
_LEAST = 1e-8  # mass of a bin
_LARGE = 16.0  # sizes beyond so many means do not count as more
_BEYOND = 4.0  # deviations from the mean, where a cell has no end
_SPREAD = 0.25  # of the random factors


def draw(evidence: Evidence, mean: F32Array, deviation: F32Array, seed: int) -> F32Array:
    """Weights like those that evidence tells of.

    Parameters
    ----------
    evidence : Evidence
        Of whole superblocks.
    mean, deviation : float32 (n,)
        Estimates, and how far they may be off: finite, and none of the superblocks all 0.
    seed : int
        Of the random numbers, which depend on it and on `n` alone.

    Returns
    -------
    float32 (n / 256, 256)
    """
    low, high = np.empty((2, mean.size), np.float32)
    intersect_cells(evidence, low, high)
    size = np.empty(mean.size // _SUPERBLOCK)
    bins, counts = np.empty((2, mean.size), np.int16), np.zeros((3, 2, _N_BINS, _N_BINS))
    _tabulate(mean, deviation, low, high, size, bins, counts)
    between = np.stack(np.nonzero(counts[0]))
    known = counts[:, *between]
    mass = np.full(_N_BINS + 1, (1 - _ATOM) / _N_BINS)
    mass[_N_BINS] = _ATOM
    _distribute(between, known, mass)
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    chances = generator.random((2, mean.size), np.float32)
    x = np.empty((size.size, _SUPERBLOCK), np.float32)
    _draw_each(low, high, size, bins, mass, chances, x.reshape(-1))
    return x


def _edges() -> NDArray[np.float64]:
    """Of the bins of relative sizes, with their signs."""
    sizes = np.exp2(_SMALLEST + np.arange(1, _N_SIZES + 1) / _PER_OCTAVE)
    return np.concatenate([-sizes[::-1], [0.0], sizes])


_EDGES = _edges()


@inner
def _bin_of(x: float, beyond: bool) -> int:
    """Number of the bin of a relative size; 0 counts as positive if `beyond`, else as negative."""
    if x == 0:
        return _N_SIZES if beyond else _N_SIZES - 1
    fraction, exponent = math.frexp(abs(x))  # from 1/2 to 1
    quarter = (fraction >= 2**-0.75) + (fraction >= 2**-0.5) + (fraction >= 2**-0.25)
    place = _PER_OCTAVE * (exponent - 1 - _SMALLEST) + quarter
    place = min(max(place, 0), _N_SIZES - 1)
    return _N_SIZES + place if x > 0 else _N_SIZES - 1 - place


@inner
def _part_covered(low: float, high: float, at: int) -> float:
    """The part of a bin that lies in an interval which meets it; a little at least."""
    inside = min(high, _EDGES[at + 1]) - max(low, _EDGES[at])
    return min(max(inside / (_EDGES[at + 1] - _EDGES[at]), 1e-3), 1.0)


@kernel
def _tabulate(
    mean: F32Array,
    deviation: F32Array,
    low: F32Array,
    high: F32Array,
    size: NDArray[np.float64],
    bins: NDArray[np.int16],
    counts: NDArray[np.float64],
) -> None:
    """Make bounds finite, and count intervals that are alike.

    Fills the typical sizes of superblocks, the first and the last bin of each weight, and `counts`
    (3, 2, n_bins, n_bins): how many intervals there are, and the sums of the parts of the first and
    the last bin that they cover, by whether they hold 0 and by these bins.
    """
    for b in range(size.size):
        first = whole = 0.0
        for i in range(256 * b, 256 * b + 256):
            first += abs(mean[i]) / 256
        for i in range(256 * b, 256 * b + 256):
            whole += min(np.float64(abs(mean[i])), _LARGE * first) / 256
        size[b], per_size = whole, 1 / whole
        for i in range(256 * b, 256 * b + 256):
            lower, upper, reach = low[i], high[i], np.float32(_BEYOND) * deviation[i]
            conflict = lower > upper
            if conflict or not abs(lower) < np.inf:
                lower = mean[i] - reach
            if conflict or not abs(upper) < np.inf:
                upper = mean[i] + reach
            low[i], high[i] = min(lower, upper), max(lower, upper)
            x, y = low[i] * per_size, high[i] * per_size
            at, end = _bin_of(x, True), _bin_of(y, False)
            end = max(at, end)
            bins[0, i], bins[1, i] = at, end
            zero = 1 if x <= 0 and y >= 0 else 0
            counts[0, zero, at, end] += 1
            counts[1, zero, at, end] += _part_covered(x, y, at)
            counts[2, zero, at, end] += _part_covered(x, y, end)


@inner
def _below(x: float, at: int, total: NDArray[np.float64], mass: NDArray[np.float64]) -> float:
    """The mass below a number of the bin `at`."""
    place = min(max(x, _EDGES[0]), _EDGES[-1]) - _EDGES[at]
    return total[at] + mass[at] / (_EDGES[at + 1] - _EDGES[at]) * place


@kernel
def _draw_each(
    low: F32Array,
    high: F32Array,
    size: NDArray[np.float64],
    bins: NDArray[np.int16],
    mass: NDArray[np.float64],
    chances: F32Array,
    out: F32Array,
) -> None:
    """Draw a weight between each two bounds, and multiply it by a random factor."""
    total = np.empty(_N_BINS + 1)
    total[0] = 0.0
    for j in range(_N_BINS):
        total[j + 1] = total[j] + mass[j]
    for i in range(out.size):
        x, y, at = low[i] / size[i // 256], high[i] / size[i // 256], int(bins[0, i])
        before, after = _below(x, at, total, mass), _below(y, int(bins[1, i]), total, mass)
        atom = mass[_N_BINS] if x <= 0 and y >= 0 else 0.0
        place = np.float64(chances[0, i]) * (after - before + atom) - atom
        if place < 0:
            drawn = 0.0
        elif after - before > 1e-12:
            place += before
            at = max(at, int(np.searchsorted(total, place, "right")) - 1)
            at = min(at, int(bins[1, i]))
            drawn = _EDGES[at] + (place - total[at]) / mass[at] * (_EDGES[at + 1] - _EDGES[at])
        else:  # beyond all bins
            drawn = x + (y - x) * np.float64(chances[0, i])
        drawn = min(max(drawn, x), y) * size[i // 256]
        out[i] = drawn * (1 + _SPREAD * (2 * np.float64(chances[1, i]) - 1))


@kernel
def _distribute(
    between: NDArray[np.int64], known: NDArray[np.float64], mass: NDArray[np.float64]
) -> None:
    """The distribution of most likelihood: `mass` of the bins, and of the atom at 0.

    `between` (3, n) has whether intervals hold 0, and their first and last bin; `known` (3, n) is
    what `_tabulate` counts of them.
    """
    n_bins = mass.size - 1
    total, more, less = np.empty(n_bins + 1), np.empty(n_bins + 1), np.empty(n_bins)
    for _ in range(_N_STEPS):
        total[0] = 0.0
        for i in range(n_bins):
            total[i + 1] = total[i] + mass[i]
        more[:], less[:], at_zero, n = 0.0, 0.0, 0.0, 0.0
        for j in range(between.shape[1]):
            first, last = between[1, j], between[2, j]
            off_first, off_last = 1 - known[1, j] / known[0, j], 1 - known[2, j] / known[0, j]
            if first == last:
                off_last = 0.0
            inside = total[last + 1] - total[first]
            inside -= off_first * mass[first] + off_last * mass[last]
            if between[0, j]:
                inside += mass[n_bins]
            each = known[0, j] / max(inside, 1e-12)
            more[first] += each
            more[last + 1] -= each
            less[first] += off_first * each
            less[last] += off_last * each
            if between[0, j]:
                at_zero += each
            n += known[0, j]
        each = 0.0
        for i in range(n_bins):
            each += more[i]
            mass[i] = max(mass[i] * (each - less[i]) / n, _LEAST)
        mass[n_bins] *= at_zero / n
        mass /= mass.sum()

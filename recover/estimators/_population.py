"""Weights that are drawn as the cells of given ones tell: with zeros, gaps, outliers and columns.

How weights are distributed, relative to the typical size of their superblock, is told by their
cells: the distribution of most likelihood of such intervals, by its self-consistent equation
(Turnbull, "The empirical distribution function with arbitrarily grouped, censored and truncated
data", Journal of the Royal Statistical Society B 38(3), 1976), and an atom at 0. A few steps from a
density without gaps: where cells that hold 0 tell no more, small weights are as likely as their
neighbours, and all others are 0. Of each weight one is drawn from that distribution within its
cells. Groups of which all inputs say that they are 0 are, unless they are lost beside an outlier.

It is multiplied by a random factor near 1, nearer where a block has one sign. Otherwise weights
would lie near the levels of the inputs' own scales, and an encoder that searches for scales would
fit them too well.
"""

import math

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inner, kernel
from recover.estimators._unlike import BLOCK, share_of_mean
from recover.evidence.buffer import Evidence
from recover.evidence.cells import intersect_cells
from recover.quants import GROUP, F32Array

_SUPERBLOCK = 256
_PER_OCTAVE, _SMALLEST, _LARGEST = 4, -10, 9  # bins of relative sizes, powers of two
_N_SIZES = _PER_OCTAVE * (_LARGEST - _SMALLEST)
_N_BINS = 2 * _N_SIZES
_N_FIRST, _N_STEPS = 20, 8  # steps for the atom alone, and for all
_LEAST_SHARE = 1e-3  # of weights that are 0, and of others, to begin with
_LEAST = 1e-8  # mass of a bin
_LARGE, _LARGEST_COUNTED = 16.0, 64.0  # larger than so many means of its superblock, of all
_OUTLIER = 5.0  # than so many means of those that are not 0
_LOST = 2.0  # sizes: cells that hold 0 and are wider do not tell how large a weight is
_SMALL = 0.25  # sizes: what is smaller in a group that seems to be 0 is taken to be
_BEYOND = 4.0  # deviations from the mean, where a cell has no end
_SPREAD = 0.25  # of the random factors


def draw(
    evidence: Evidence,
    mean: F32Array,
    deviation: F32Array,
    weights: NDArray[np.float64],
    seed: int,
) -> F32Array:
    """Weights like those that evidence tells of.

    Parameters
    ----------
    evidence : Evidence
        Of whole superblocks.
    mean, deviation : float32 (n,)
        Estimates, and how far they may be off: finite, and none of the superblocks all 0.
    weights : float64 (n / 256,)
        How many superblocks each one stands for, but for a factor.
    seed : int
        Of the random numbers, which depend on it and on `n` alone.

    Returns
    -------
    float32 (n / 256, 256)
    """
    low, high = np.empty((2, mean.size), np.float32)
    intersect_cells(evidence, low, high)
    size = np.empty(mean.size // _SUPERBLOCK)
    _find_sizes(mean, low, high, np.inf, size)
    typical = _median(size, weights)
    _find_sizes(mean, low, high, typical, size)
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    chances = generator.random((2, mean.size), np.float32)
    of_groups = generator.random(mean.size // GROUP, np.float32)
    dead = _find_dead(evidence, deviation, typical, weights, of_groups)
    bins, counts = np.empty((2, mean.size), np.int16), np.zeros((2, 3, 2, _N_BINS, _N_BINS))
    _tabulate(mean, deviation, low, high, size, weights, dead, bins, counts)
    mass = _likely_mass(counts[0], counts[0] + counts[1])
    x = np.empty((size.size, _SUPERBLOCK), np.float32)
    _draw_each(low, high, size, bins, mass, chances, x.reshape(-1))
    x.reshape(-1, GROUP)[dead] = 0
    return x


def _likely_mass(others: NDArray[np.float64], every: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distribution by counts of all intervals, with an atom by those of the `others`.

    The largest weight of a block decides whether its cells tell anything. Counted as any other it
    would make zeros too rare beside it.
    """
    mass = _at_first(every[0])
    places = np.flatnonzero(every[0])
    between = np.stack(np.unravel_index(places, every[0].shape))
    known, known_others = (each.reshape(3, -1)[:, places] for each in (every, others))
    beside = mass.copy()
    _distribute(between, known_others, beside, _N_FIRST, 0)
    _distribute(between, known, mass, _N_FIRST, 0)
    more = beside[-1] / (1 - beside[-1]) / (mass[-1] / (1 - mass[-1]))
    _distribute(between, known, mass, 0, _N_STEPS)
    mass[-1] *= more
    return mass / mass.sum()


def _median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """The weighted median."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(total, total[-1] / 2)]])


def _find_dead(
    evidence: Evidence,
    deviation: F32Array,
    typical: float,
    weights: NDArray[np.float64],
    chances: NDArray[np.float32],
) -> NDArray[np.bool_]:
    """Groups that are 0: all inputs say so.

    Where they may say so as the group is lost beside an outlier, it is 0 as often as others are.
    """
    n = deviation.size // GROUP
    is_zero: NDArray[np.bool_] = (evidence.scale[:, :n] == 0).all(0)
    is_zero &= (evidence.offset[:, :n] == 0).all(0)
    is_lost = is_zero & (deviation.reshape(-1, GROUP).max(1) >= _SMALL * typical)
    each = np.repeat(weights, _SUPERBLOCK // GROUP)
    n_zero, n_lost = float(each @ is_zero), float(each @ is_lost)
    known = float(each.sum()) - n_lost
    share = (n_zero - n_lost) / known if known > 0 else 0.0
    return is_zero & (~is_lost | (chances < share))


def _edges() -> NDArray[np.float64]:
    """Of the bins of relative sizes, with their signs."""
    sizes = np.exp2(_SMALLEST + np.arange(1, _N_SIZES + 1) / _PER_OCTAVE)
    return np.concatenate([-sizes[::-1], [0.0], sizes])


_EDGES = _edges()


def _at_first(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """What `_distribute` begins with.

    As many weights are taken not to be 0 as have cells that do not hold it, and their density to be
    Cauchy's, with their median size.
    """
    by_bin = counts[0].sum(0) + counts[0].sum(1)
    by_size = np.cumsum(by_bin[_N_SIZES:] + by_bin[_N_SIZES - 1 :: -1])
    median = _EDGES[_N_SIZES + 1 + int(np.searchsorted(by_size, by_size[-1] / 2))]
    below = np.arctan(_EDGES / median)
    share = min(max(counts[0].sum() / counts.sum(), _LEAST_SHARE), 1 - _LEAST_SHARE)
    return np.append(share * np.diff(below) / (below[-1] - below[0]), 1 - share)


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
def _find_sizes(
    mean: F32Array, low: F32Array, high: F32Array, typical: float, size: NDArray[np.float64]
) -> None:
    """Typical sizes of superblocks: mean sizes of their weights.

    Outliers count for less. Weights lost beside them count as `typical`, which is infinite at
    first.
    """
    for b in range(size.size):
        first = whole = known = 0.0
        for i in range(256 * b, 256 * b + 256):
            first += abs(mean[i]) / 256
        n_known = 0
        for i in range(256 * b, 256 * b + 256):
            if low[i] > 0 or high[i] < 0:
                n_known += 1
                known += min(np.float64(abs(mean[i])), _LARGE * first)
        limit = _OUTLIER * known / n_known if n_known > 0 else _LARGE * first
        limit = min(limit, _LARGEST_COUNTED * typical)
        for i in range(256 * b, 256 * b + 256):
            is_lost = low[i] <= 0 <= high[i] and high[i] - low[i] > _LOST * typical
            whole += (typical if is_lost else min(np.float64(abs(mean[i])), limit)) / 256
        size[b] = whole


@kernel
def _tabulate(
    mean: F32Array,
    deviation: F32Array,
    low: F32Array,
    high: F32Array,
    size: NDArray[np.float64],
    weights: NDArray[np.float64],
    dead: NDArray[np.bool_],
    bins: NDArray[np.int16],
    counts: NDArray[np.float64],
) -> None:
    """Make bounds finite, and count intervals that are alike, but those of `dead` groups.

    Fills the first and the last bin of each weight, and `counts` (2, 3, 2, n_bins, n_bins): how
    many intervals there are, and the sums of the parts of the first and the last bin that they
    cover, by whether they hold 0 and by these bins; the largest weight of each block is apart.
    """
    for b in range(size.size):
        per_size = 1 / size[b]
        largest = 256 * b
        for i in range(256 * b, 256 * b + 256):
            if i % BLOCK == 0:
                largest = i
                for j in range(i + 1, i + BLOCK):
                    if abs(mean[j]) > abs(mean[largest]):
                        largest = j
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
            if not dead[i // 16]:
                zero = 1 if x <= 0 and y >= 0 else 0
                which = 1 if i == largest else 0
                counts[which, 0, zero, at, end] += weights[b]
                counts[which, 1, zero, at, end] += weights[b] * _part_covered(x, y, at)
                counts[which, 2, zero, at, end] += weights[b] * _part_covered(x, y, end)


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
    """Draw a weight between each two bounds, and multiply it by a random factor.

    Where the weights of a block are of one sign, the factor changes them by less.
    """
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
        out[i] = min(max(drawn, x), y) * size[i // 256]
    for start in range(0, out.size, BLOCK):
        share = min(max(1 - share_of_mean(out, start), 0.0), 1.0)  # beside the mean
        spread = _SPREAD * math.sqrt(share)
        for i in range(start, start + BLOCK):
            out[i] *= 1 + spread * (2 * np.float64(chances[1, i]) - 1)


@kernel
def _distribute(
    between: NDArray[np.int64],
    known: NDArray[np.float64],
    mass: NDArray[np.float64],
    n_first: int,
    n_steps: int,
) -> None:
    """The distribution of most likelihood: `mass` of the bins, and of the atom at 0.

    At first the atom alone is weighed against all bins together.

    `between` (3, n) has whether intervals hold 0, and their first and last bin; `known` (3, n) is
    what `_tabulate` counts of them.
    """
    n_bins = mass.size - 1
    total, more, less = np.empty(n_bins + 1), np.empty(n_bins + 1), np.empty(n_bins)
    for step in range(n_first + n_steps):
        total[0] = 0.0
        for i in range(n_bins):
            total[i + 1] = total[i] + mass[i]
        more[:], less[:], at_zero, n = 0.0, 0.0, 0.0, 0.0
        for j in range(between.shape[1]):
            if known[0, j] == 0:
                continue
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
        atom, each = min(max(mass[n_bins] * at_zero / n, _LEAST), 1 - _LEAST), 0.0
        if step < n_first:
            mass[:n_bins] *= (1 - atom) / (1 - mass[n_bins])
            mass[n_bins] = atom
            continue
        for i in range(n_bins):
            each += more[i]
            mass[i] = max(mass[i] * (each - less[i]) / n, _LEAST)
        mass[n_bins] = atom
        mass /= mass.sum()

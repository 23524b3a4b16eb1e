"""Expected errors of weights unlike the shipped sample: measured on weights like those at hand.

The sample of `recover.estimators.error_calibration` has no zeros and no far outliers. Where many
weights of a tensor seem to be 0, or the tails are far heavier than the sample's, what is expected
is corrected by a parametric bootstrap (Efron and Tibshirani, "An introduction to the bootstrap",
1993, chapter 6.5). Some superblocks are looked at:

1. How weights are distributed, relative to the typical size of their superblock, is told by their
   cells: the distribution of most likelihood of such intervals, by its self-consistent equation
   (Turnbull, "The empirical distribution function with arbitrarily grouped, censored and truncated
   data", Journal of the Royal Statistical Society B 38(3), 1976). It has an atom at 0.
2. Of each weight one is drawn from that distribution within its cells. So zeros, outliers and
   columns stay where they seem to be.
3. Each is multiplied by a random factor near 1. Otherwise they would lie near the levels of the
   inputs' own scales, and an encoder that searches for scales would fit them too well.
4. They are encoded as the inputs are and estimated again. Now the errors are known.

Superblocks with a spike at 0, those with outliers and others differ in what measured errors are
over expected ones: each class has a factor of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inner, kernel
from recover.estimators._request import MEAN, Request
from recover.estimators.base import estimator
from recover.estimators.tally import ALONE, VARIANCE, Tally
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Evidence, Source, rows_of
from recover.evidence.cells import intersect_cells
from recover.inputs.matching import typical_error
from recover.quants import F32Array, ScalarType, U8Array, dequantize, quantize

_SUPERBLOCK = 256
_DRAWN = 2, 64, 256  # one superblock in so many, but so many at least and at most
_LOOKED_AT = 128, 4, 16  # where zeros are looked for
_STEP = 7919  # a prime: the next one of so many superblocks is so many places further
_SEED = 8

_FAR_TAILS = 25.0  # kurtosis
_SPARSE = 0.25  # of the superblocks
_COMMON, _BESIDE = 24, 1.4  # weights of one that may be 0, and over those beside
_TOO_COARSE = 0.05  # relative error of types with too few codes to tell
_ZEROS, _TINY = 0.05, 1e-3  # share of estimates, and of their mean size
_UNEVEN = 3.5  # the largest squared scale over the mean, as in `_outliers.py`

_PER_OCTAVE, _SMALLEST, _LARGEST = 4, -10, 9  # bins of relative sizes, powers of two
_N_SIZES = _PER_OCTAVE * (_LARGEST - _SMALLEST)
_N_BINS = 2 * _N_SIZES
_N_STEPS = 30
_ATOM = 0.9  # of the mass, to begin with: cells that hold 0 are not told to be empty
_LEAST = 1e-8  # mass of a bin
_LARGE = 16.0  # sizes beyond so many means do not count as more
_BEYOND = 4.0  # deviations from the mean, where a cell has no end
_SPREAD = 0.25  # of the random factors
_TOO_LARGE = 1e30  # for what encoders reckon with
_LEAST_SHARE = 0.02  # of the expected error, of a class with a factor of its own


@dataclass(frozen=True)
class Measured:
    """Measured over expected errors of weights like those of a tensor.

    Attributes
    ----------
    merged : float64 (3,)
        Of the estimates of superblocks of each class (see `classes_of`).
    shares : float64 (3,)
        Those of the classes in the error that is expected of the estimates.
    alone : float64 (n_inputs,)
        Of each input alone.
    """

    merged: NDArray[np.float64]
    shares: NDArray[np.float64]
    alone: NDArray[np.float64]

    def correct(
        self,
        tally: NDArray[np.float64],
        estimates: F32Array,
        scale: F32Array,
        deviation: F32Array | None = None,
    ) -> None:
        """Multiply sums of errors, and standard deviations.

        Parameters
        ----------
        tally : float64 (2 + n_inputs,)
            The array of the tensor's tally.
        estimates, scale
            See `classes_of`.
        deviation : float32 (n,) or (0,), optional
            Of its weights.
        """
        shares = self.shares
        if deviation is not None and deviation.size:
            classes = classes_of(estimates, scale)
            shares = _sums(classes, deviation)
            rows = deviation.reshape(-1, _SUPERBLOCK)
            rows *= np.sqrt(self.merged[classes, None]).astype(np.float32)
        total = float(shares.sum())
        tally[VARIANCE] *= shares @ self.merged / total if total > 0 else 1.0
        tally[ALONE:] *= self.alone


class Bootstrap:
    """Looks for tensors that the sample does not fit, and measures on weights like theirs.

    Parameters
    ----------
    sources : sequence of Source
        The inputs.
    method, estimate : str
        As of `recover.estimators.tile.TileEstimator`.

    Attributes
    ----------
    applies : bool
        Whether weights like those at hand can be drawn: our encoders make what the inputs hold,
        without a calibration, and the method takes more than the first one.
    """

    def __init__(self, sources: Sequence[Source], method: str, estimate: str = MEAN) -> None:
        self._sources, self._method, self._estimate = tuple(sources), method, estimate
        self.applies = all(map(_can_be_drawn, sources)) and not estimator(method).takes_first
        errors = {k: typical_error(each.type) for k, each in enumerate(sources) if each.has_cells}
        known = [k for k, error in errors.items() if error < _TOO_COARSE]
        self._finest = min(known, key=errors.__getitem__, default=-1)

    @cached_property
    def _tile(self) -> UncorrectedTileEstimator:
        """Estimates what was drawn."""
        return UncorrectedTileEstimator(self._sources, self._method, self._estimate)

    def unlike(self, evidence: Evidence, kurtosis: NDArray[np.float64]) -> NDArray[np.int64]:
        """Which tensors of one size may be unlike the sample, at a glance.

        Parameters
        ----------
        evidence : Evidence
            Of all of them, one behind the other.
        kurtosis : float64 (n_tensors,)
            Of their estimates.

        Returns
        -------
        int64 (n_unlike,)
            Their numbers.
        """
        n_tensors, n = kurtosis.size, evidence.codes.shape[1]
        if n % (n_tensors * _SUPERBLOCK) or n == 0:
            return np.empty(0, np.int64)
        found = kurtosis > _FAR_TAILS
        if self._finest >= 0:
            rows = _chosen(n // n_tensors, *_LOOKED_AT)
            counts, k = np.zeros(n_tensors, np.int64), self._finest
            _count_sparse(
                evidence.codes[k],
                evidence.scale[k],
                evidence.offset[k],
                evidence.lower_levels[k],
                evidence.upper_levels[k],
                rows,
                counts,
            )
            found |= counts > _SPARSE * rows.size
        return np.flatnonzero(found)

    def measure(self, evidence: Evidence, start: int, end: int) -> Measured | None:
        """Draw weights like those of a tensor, and compare their errors with what is expected.

        Parameters
        ----------
        evidence : Evidence
            Of a tile.
        start, end : int
            Where in it the tensor lies; whole superblocks.

        Returns
        -------
        Measured or None
            None if nothing can be drawn.
        """
        rows = start // _SUPERBLOCK + _chosen(end - start, *_DRAWN)
        part, mean, deviation = self._estimates(evidence, rows)
        if not part.codes.size:
            return None
        x = _draw(part, mean, deviation)
        raws = [self._encode(x, source) for source in self._sources]
        before = _sums(classes_of(mean, part.scale[0]), deviation)
        out, deviation = np.empty((2, x.size), np.float32)
        tally = self._tile.estimate(raws, 0, x.size, out, deviation)
        classes = classes_of(out, self._tile.evidence.scale[0])
        after, errors = _sums(classes, deviation), _sums(classes, out - x.reshape(-1))
        pairs = zip(raws, self._sources, strict=True)
        alone = np.array([_square_error(raw, source, x) for raw, source in pairs])
        if not (np.isfinite(errors).all() and after.sum() > 0 and (tally.alone > 0).all()):
            return None
        whole = errors.sum() / after.sum()
        known = after > _LEAST_SHARE * after.sum()
        merged = np.divide(errors, after, out=np.full(3, whole), where=known)
        return Measured(merged, before, alone / tally.alone)

    def _estimates(
        self, evidence: Evidence, rows: NDArray[np.int64]
    ) -> tuple[Evidence, F32Array, F32Array]:
        """The evidence on superblocks of which something is known; estimates, and deviations."""
        part = rows_of(evidence, rows, _SUPERBLOCK)
        out, deviation = np.empty((2, part.codes.shape[1]), np.float32)
        tallies = np.zeros((1, Tally.size_for(len(self._sources))))
        request = Request(self._estimate, deviation, self._sources)
        estimator(self._method).estimate_each(part, out, tallies, request)
        largest = np.abs(out.reshape(-1, _SUPERBLOCK)).max(1)
        reach = deviation.reshape(-1, _SUPERBLOCK).max(1)
        known = (largest > 0) & (largest < _TOO_LARGE) & (reach < _TOO_LARGE)
        if known.all():
            return part, out, deviation
        kept = np.flatnonzero(known)
        out, deviation = (
            each.reshape(-1, _SUPERBLOCK)[kept].reshape(-1) for each in (out, deviation)
        )
        return rows_of(part, kept, _SUPERBLOCK), out, deviation

    def _encode(self, x: F32Array, source: Source) -> U8Array:
        """What the encoder of an input makes of weights; with a random importance matrix."""
        if source.has_cells and not source.weighted:
            return quantize(x, source.type)
        matrices = sorted({each.imatrix for each in self._sources})
        number = matrices.index(source.imatrix)
        generator = np.random.Generator(np.random.Philox(key=[_SEED, (1 << 32) + number]))
        importance = generator.lognormal(size=(x.shape[1],)).astype(np.float32)
        return quantize(x, source.type, importance)


_ORDINARY, _WITH_SPIKE, _WITH_OUTLIERS = range(3)


def classes_of(estimates: F32Array, scale: F32Array) -> NDArray[np.int64]:
    """Classes of superblocks: 1 of those with a spike at 0, 2 with uneven scales, 0 others.

    Parameters
    ----------
    estimates : float32 (n,)
        Of whole superblocks.
    scale : float32 (n / 16,)
        Of the first input.
    """
    sizes = np.abs(estimates.reshape(-1, _SUPERBLOCK))
    tiny = np.count_nonzero(sizes < _TINY * sizes.mean(1, keepdims=True), axis=1)
    squares = np.square(scale.reshape(len(sizes), -1), dtype=np.float64)
    uneven = squares.max(1) > _UNEVEN * squares.mean(1)
    classes = np.where(uneven, _WITH_OUTLIERS, _ORDINARY)
    classes[tiny > _ZEROS * _SUPERBLOCK] = _WITH_SPIKE
    return classes


def _can_be_drawn(source: Source) -> bool:
    """Whether our encoders make what an input holds, and its densities are the shipped ones."""
    is_plain = source.noise is None and source.density is None and source.weight is None
    return isinstance(source.type, ScalarType) and is_plain and not source.side_scaled


@cache
def _chosen(n_weights: int, one_in: int, fewest: int, most: int) -> NDArray[np.int64]:
    """Superblocks of a tensor that are looked at."""
    n = n_weights // _SUPERBLOCK
    n_chosen = min(n, max(fewest, min(most, n // one_in)))
    stride = n // n_chosen
    i = np.arange(n_chosen)
    return i * stride + i * _STEP % stride


@kernel
def _count_sparse(
    codes: U8Array,
    scale: F32Array,
    offset: F32Array,
    lower: F32Array,
    upper: F32Array,
    rows: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    """Count superblocks of tensors in which far more weights may be 0 than lie beside.

    As `recover.estimators._zeros.near_zero` does with the cells of all inputs.
    """
    size = codes.size // counts.size
    for i in range(counts.size):
        for row in rows:
            start, n_zero, n_beside = i * size + 256 * row, 0, 0
            for j in range(start, start + 256):
                s, o, q = scale[j // 16], offset[j // 16], codes[j]
                low, high = s * lower[q] + o, s * upper[q] + o
                if s < 0:
                    low, high = high, low
                width = high - low
                if not 0 < width < np.inf:
                    continue
                if low <= np.float32(1e-3) * width and high >= np.float32(-1e-3) * width:
                    n_zero += 1
                elif abs(low + high) < 4 * width:
                    n_beside += 1
            counts[i] += n_zero >= _COMMON and n_zero >= _BESIDE * n_beside


def _sums(classes: NDArray[np.int64], values: F32Array) -> NDArray[np.float64]:
    """The sums of squares over superblocks of each class (3,)."""
    squares = np.square(values.reshape(-1, _SUPERBLOCK), dtype=np.float64).sum(1)
    return np.bincount(classes, squares, 3).astype(np.float64)


def _square_error(raw: U8Array, source: Source, x: F32Array) -> float:
    off = dequantize(raw, source.type) - x.reshape(-1)
    return float(np.sum(np.square(off, dtype=np.float64)))


def _draw(part: Evidence, mean: F32Array, deviation: F32Array) -> F32Array:
    """Weights (n_superblocks, 256) like those that evidence tells of."""
    low, high = np.empty((2, mean.size), np.float32)
    intersect_cells(part, low, high)
    size = np.empty(mean.size // _SUPERBLOCK)
    bins, counts = np.empty((2, mean.size), np.int16), np.zeros((3, 2, _N_BINS, _N_BINS))
    _tabulate(mean, deviation, low, high, size, bins, counts)
    between = np.stack(np.nonzero(counts[0]))
    known = counts[:, *between]
    mass = np.full(_N_BINS + 1, (1 - _ATOM) / _N_BINS)
    mass[_N_BINS] = _ATOM
    _distribute(between, known, mass)
    generator = np.random.Generator(np.random.Philox(key=[_SEED, 0]))
    chances = generator.random((2, mean.size))
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
    chances: NDArray[np.float64],
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
        place = chances[0, i] * (after - before + atom) - atom
        if place < 0:
            drawn = 0.0
        elif after - before > 1e-12:
            place += before
            at = max(at, int(np.searchsorted(total, place, "right")) - 1)
            at = min(at, int(bins[1, i]))
            drawn = _EDGES[at] + (place - total[at]) / mass[at] * (_EDGES[at + 1] - _EDGES[at])
        else:  # beyond all bins
            drawn = x + (y - x) * chances[0, i]
        drawn = min(max(drawn, x), y) * size[i // 256]
        out[i] = drawn * (1 + _SPREAD * (2 * chances[1, i] - 1))


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

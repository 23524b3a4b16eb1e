"""Expected errors of weights unlike the shipped sample: measured on weights like those at hand.

Where the weights of a tensor are unlike the sample of `recover.estimators.error_calibration`
(`recover.estimators._unlike` tells), what is expected is corrected by a parametric bootstrap (Efron
and Tibshirani, "An introduction to the bootstrap", 1993, chapter 6.5). Where the estimator takes
far longer than that, the expected errors of all tensors that are less than a tile are corrected by
both, weighed by what is known of their own errors. Some superblocks are looked at:

1. How weights are distributed is told by their cells, and of each weight one is drawn from that
   distribution within its cells (`recover.estimators._population`). So zeros, outliers and columns
   stay where they seem to be.
2. They are encoded as the inputs are, and estimated again. Now the errors are known.

Superblocks with a spike at 0, those with outliers and others differ in what measured errors are
over expected ones: each class has a factor of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import sum_lanes
from recover._compiled.doubles import to_f64
from recover._compiled.jit import kernel
from recover._compiled.lanes import load, splat
from recover.estimators._outliers import UNEVEN
from recover.estimators._population import draw
from recover.estimators._request import MEAN, Request
from recover.estimators._unlike import FEWEST_KNOWN, find_unlike, hardly_held
from recover.estimators.base import estimator
from recover.estimators.tally import ALONE, CONFLICTS, VARIANCE, Tally
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Evidence, Source, rows_of, take_one
from recover.inputs.matching import typical_error
from recover.quants import GROUP, TILE, F32Array, ScalarType, U8Array, dequantize, quantize

_SUPERBLOCK = 256
_FEWEST, _MOST = 64, 256  # superblocks that are drawn, of half of them
_OF_WHOLE = 128  # of a whole tile: tensors that have one mostly have several
_SHARE = 8  # one of so many is drawn, of weights like the sample: estimates take longer than that
_AT_LEAST = 0.25  # of the chances of others
_SEED = 8
_POSTERIORS = "posterior", "joint"  # whose deviations tell where errors are
_RATIOS = 2.0**-24, 128.0  # and those beyond are of a few weights

_OFF = 0.02**2  # of weights like the sample: by how much what it says is off, squared
_TOO_COARSE = 0.05  # relative error of types with too few codes to tell
_ZEROS, _TINY = 0.05, 1e-3  # share of estimates, and of their mean size
_TOO_LARGE = 1e30  # for what encoders reckon with
_LEAST_SHARE = 0.02  # of the expected error, of a class with a factor of its own


@dataclass(frozen=True)
class Measured:
    """Measured over expected errors of weights like those of a tensor.

    Attributes
    ----------
    merged : float64 (3,)
        Of the estimates of superblocks of each class (see `classes_of`).
    ratios : float64 (1 + n_inputs,)
        Of all estimates, and of each input alone.
    likely : float64 (1 + n_inputs,), optional
        What these ratios are of, if not of the expected errors: what the posterior says.
    taken : int
        The input that is decoded, in the order of the evidence; -1 if others have a part.
    trust : float
        How much it counts beside what the shipped sample says, from 0 to 1.
    """

    merged: NDArray[np.float64]
    ratios: NDArray[np.float64]
    likely: NDArray[np.float64] | None
    taken: int
    trust: float

    def correct(
        self,
        tally: NDArray[np.float64],
        estimates: F32Array,
        scale: F32Array,
        deviation: F32Array,
    ) -> None:
        """Multiply sums of errors, and standard deviations.

        Parameters
        ----------
        tally : float64 (2 + n_inputs,)
            The array of the tensor's tally.
        estimates, scale
            See `classes_of`.
        deviation : float32 (n,) or (0,)
            Of its weights.
        """
        errors = tally[[VARIANCE, *range(ALONE, tally.size)]]
        errors, before = self.ratios * (errors if self.likely is None else self.likely), errors[0]
        if deviation.size:
            classes = classes_of(estimates, scale)
            sums = _by_class(classes, _sums_of_rows(deviation))
            expected, is_told = float(sums @ self.merged) * before, np.isfinite(sums).all()
            share = float(sums.sum() * errors[0]) / expected if is_told and expected > 0 else 1.0
            rows = deviation.reshape(-1, _SUPERBLOCK)
            rows *= np.sqrt(share * self.merged[classes, None]).astype(np.float32)
        tally[VARIANCE], tally[ALONE:] = errors[0], errors[1:]
        if self.taken >= 0:
            tally[ALONE + self.taken] = tally[VARIANCE]


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
        without a calibration.
    """

    def __init__(self, sources: Sequence[Source], method: str, estimate: str = MEAN) -> None:
        self._sources, self._method, self._estimate = tuple(sources), method, estimate
        self._is_likely = method in _POSTERIORS and estimate == MEAN
        self.applies = all(map(_can_be_drawn, sources))
        errors = {k: typical_error(each.type) for k, each in enumerate(sources) if each.has_cells}
        known = [k for k, error in errors.items() if error < _TOO_COARSE]
        self._finest = min(known, key=errors.__getitem__, default=-1)
        self._limits: F32Array | None = None
        serves = estimator(method).serves
        self._always = serves is not None and serves(sources) and estimate == MEAN

    @cached_property
    def _tile(self) -> UncorrectedTileEstimator:
        """Estimates what was drawn."""
        return UncorrectedTileEstimator(self._sources, self._method, self._estimate)

    def measured(
        self, evidence: Evidence, estimates: F32Array, kurtosis: NDArray[np.float64]
    ) -> dict[int, Measured]:
        """What was measured on weights like those of tensors that the sample does not fit.

        Parameters
        ----------
        evidence : Evidence
            Of tensors of one size, one behind the other.
        estimates : float32 (n,)
            Of all of their weights.
        kurtosis : float64 (n_tensors,)
            Of the estimates.

        Returns
        -------
        dict
            By the number of the tensor, from 0. Those of which nothing can be drawn are not in it,
            nor those that are like the sample, unless the estimator takes far longer than this.
        """
        if not self.applies:
            return {}
        if self._limits is None:
            self._limits = hardly_held(evidence)
        unlike = find_unlike(evidence, self._limits, self._finest, estimates, kurtosis)
        size = estimates.size // kurtosis.size
        found: dict[int, Measured] = {}
        for i in np.flatnonzero(unlike | self._always).tolist():
            n = _n_drawn(size, is_unlike=bool(unlike[i]))
            if n < FEWEST_KNOWN:
                continue
            rows = np.arange(i * size // _SUPERBLOCK, (i + 1) * size // _SUPERBLOCK)
            own = evidence if kurtosis.size == 1 else rows_of(evidence, rows, _SUPERBLOCK)
            with np.errstate(all="ignore"):  # what is drawn may be too large for a type's scales
                measured = self._measure(own, estimates[i * size : (i + 1) * size], n)
            if measured is not None:
                found[i] = replace(measured, trust=1.0) if unlike[i] else measured
        return found

    def _measure(self, evidence: Evidence, estimates: F32Array, n: int) -> Measured | None:
        """Draw weights like those of `n` superblocks of a tensor; None if that tells nothing.

        What other methods than the posterior expect does not tell where their errors are; what the
        posterior says does. So errors of more superblocks are told by it, and some of these drawn.
        """
        rows, weights = _chosen_by_size(self._rough_errors(evidence, estimates), n)
        part = rows_of(evidence, rows, _SUPERBLOCK)
        posterior = self._posterior(part)
        largest = np.abs(posterior).reshape(2, -1, _SUPERBLOCK).max(2)
        kept = np.flatnonzero((largest[0] > 0) & (largest < _TOO_LARGE).all(0))
        if kept.size < FEWEST_KNOWN:
            return None
        likely, weights = None, weights[kept]
        if not self._is_likely:
            chosen = estimates.reshape(-1, _SUPERBLOCK)[rows].reshape(-1)
            each = self._likely_errors(part, chosen, posterior)[:, kept] * weights
            likely = each.sum(1)
            some, more = _chosen_by_size(each[0], max(_FEWEST, n // 2))
            kept, weights = kept[some], weights[some] * more
        part = rows_of(part, kept, _SUPERBLOCK)
        posterior = posterior.reshape(2, -1, _SUPERBLOCK)[:, kept].reshape(2, -1)
        x = draw(part, posterior[0], posterior[1], weights, _SEED)
        return self._compare(x, weights, likely)

    def _rough_errors(self, evidence: Evidence, estimates: F32Array) -> NDArray[np.float64]:
        """About how large errors of superblocks are: squared scales, or more where inputs differ.

        An input whose scale was rounded may be far off: estimates are, too, if it had a part.
        """
        k = max(self._finest, 0)
        scales = evidence.scale[k, : estimates.size // GROUP].astype(np.float64)
        squares = np.square(scales).reshape(-1, _SUPERBLOCK // GROUP).sum(1)
        if self._is_likely:
            return squares
        values = np.empty_like(estimates)
        take_one(evidence, k, values)
        rough: NDArray[np.float64] = GROUP * evidence.noise[k] * squares
        rough += _sums_of_rows(values, estimates)
        return rough

    def _compare(
        self, x: F32Array, weights: NDArray[np.float64], likely: NDArray[np.float64] | None
    ) -> Measured | None:
        """See `_measure`; of superblocks (n, 256) that each stand for so many."""
        raws = [self._encode(x, source) for source in self._sources]
        out, deviation = np.empty((2, x.size), np.float32)
        tallies = self._tile.estimate_each(raws, 0, x.size, len(x), out, deviation)
        evidence = self._tile.evidence
        classes = classes_of(out, evidence.scale[0])
        variances, squares = _sums_of_rows(deviation), _sums_of_rows(out, x.reshape(-1))
        after, errors = (_by_class(classes, weights * each) for each in (variances, squares))
        pairs = zip(raws, self._sources, strict=True)
        off = [dequantize(raw, source.type) for raw, source in pairs]
        measured = [errors.sum(), *(weights @ _sums_of_rows(each, x.reshape(-1)) for each in off)]
        if likely is None:
            expected = np.delete(weights @ tallies, CONFLICTS)
        else:
            expected = self._likely_errors(evidence, out, self._posterior(evidence)) @ weights
        whole = errors.sum() / after.sum()
        known = after > _LEAST_SHARE * after.sum()
        merged = np.divide(errors, after, out=np.full(3, whole), where=known)
        ratios = np.array(measured) / expected
        if not _are_told(np.concatenate([merged, ratios])):
            return None
        taken = evidence.finest if estimator(self._method).takes_first else -1
        chance = np.sum(np.square(weights * (squares - whole * variances))) / errors.sum() ** 2
        return Measured(merged, ratios, likely, taken, float(_OFF / (_OFF + chance)))

    def _posterior(self, evidence: Evidence) -> F32Array:
        """Means and standard deviations (2, n) of what the inputs say."""
        found = np.empty((2, evidence.codes.shape[1]), np.float32)
        tallies = np.zeros((1, Tally.size_for(len(self._sources))))
        request = Request(MEAN, found[1], self._sources)
        estimator(_POSTERIORS[0]).estimate_each(evidence, found[0], tallies, request)
        return found

    def _likely_errors(
        self, evidence: Evidence, estimates: F32Array, posterior: F32Array
    ) -> NDArray[np.float64]:
        """Square errors of estimates and of each input, by the posterior: (1 + n_inputs, n / 256).

        They are 0 where it is broken.
        """
        values, (mean, deviation) = np.empty_like(estimates), posterior
        each = np.empty((1 + len(self._sources), estimates.size // _SUPERBLOCK))
        each[0] = _sums_of_rows(estimates, mean)
        for k in range(len(self._sources)):
            take_one(evidence, k, values)
            each[1 + k] = _sums_of_rows(values, mean)
        each += _sums_of_rows(deviation)
        each[~np.isfinite(each)] = 0
        return each

    def _encode(self, x: F32Array, source: Source) -> U8Array:
        """What the encoder of an input makes of weights; with a random importance matrix."""
        if source.has_cells and not source.weighted:
            return quantize(x, source.type)
        matrices = sorted({each.imatrix for each in self._sources})
        number = matrices.index(source.imatrix)
        generator = np.random.Generator(np.random.Philox(key=[_SEED, (1 << 32) + number]))
        importance = generator.lognormal(size=(x.shape[1],)).astype(np.float32)
        return quantize(x, source.type, importance)


def _are_told(ratios: NDArray[np.float64]) -> bool:
    """Whether all measured over expected errors are finite, and of more than a few weights."""
    return bool(((ratios > _RATIOS[0]) & (ratios < _RATIOS[1])).all())


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
    uneven = squares.max(1) > UNEVEN * squares.mean(1)
    classes = np.where(uneven, _WITH_OUTLIERS, _ORDINARY)
    classes[tiny > _ZEROS * _SUPERBLOCK] = _WITH_SPIKE
    return classes


def _can_be_drawn(source: Source) -> bool:
    """Whether our encoders make what an input holds, and its densities are the shipped ones."""
    is_plain = source.noise is None and source.density is None and source.weight is None
    return isinstance(source.type, ScalarType) and is_plain and not source.side_scaled


def _n_drawn(size: int, *, is_unlike: bool) -> int:
    """How many superblocks are drawn of a tensor with that many weights in a tile."""
    whole, n_superblocks = size == TILE, size // _SUPERBLOCK
    if size % _SUPERBLOCK:
        return 0
    if is_unlike:
        most = _OF_WHOLE if whole else _MOST
        return min(n_superblocks, max(_FEWEST, min(most, n_superblocks // 2)))
    return 0 if whole else min(_OF_WHOLE, n_superblocks // _SHARE)


def _chosen_by_size(
    sizes: NDArray[np.float64], n_drawn: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Superblocks that are drawn, and how many each stands for.

    Errors are about as large as `sizes` (n,). So are the chances of superblocks: where a few have
    most of the error they are drawn several times. (Hansen and Hurwitz, "On the theory of sampling
    from finite populations", Annals of Mathematical Statistics 14(4), 1943.)
    """
    sizes = np.where(np.isfinite(sizes), sizes, 0)
    n_drawn = min(n_drawn, sizes.size)
    sizes += sizes.mean() * _AT_LEAST
    total = np.cumsum(sizes)
    if n_drawn == sizes.size or not total[-1] > 0:
        return np.arange(n_drawn), np.full(n_drawn, sizes.size / n_drawn)
    places = (np.arange(n_drawn) + 0.5) / n_drawn * total[-1]
    rows = np.minimum(np.searchsorted(total, places, "right"), sizes.size - 1)
    return rows, total[-1] / n_drawn / sizes[rows]


def _by_class(classes: NDArray[np.int64], sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums of superblocks (n,), added up over those of each class (3,)."""
    return np.bincount(classes, sums, 3).astype(np.float64)


def _sums_of_rows(values: F32Array, others: F32Array | None = None) -> NDArray[np.float64]:
    """The sums over superblocks of squares, or of squared differences."""
    sums = np.empty(values.size // _SUPERBLOCK)
    _add_squares(values, values if others is None else others, others is not None, sums)
    return sums


@kernel
def _add_squares(
    values: F32Array, others: F32Array, is_less: bool, sums: NDArray[np.float64]
) -> None:
    """See `_sums_of_rows`."""
    for b in range(sums.size):
        total = to_f64(splat(np.float32(0)))
        for at in range(256 * b, 256 * b + 256, 16):
            each = to_f64(load(values, at))
            if is_less:
                each = each - to_f64(load(others, at))
            total = total + each * each
        sums[b] = sum_lanes(total)

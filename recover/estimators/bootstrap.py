"""Expected errors of weights unlike the shipped sample: measured on weights like those at hand.

The sample of `recover.estimators.error_calibration` has no zeros and no far outliers. Where many
weights of a tensor seem to be 0, or the tails are far heavier than the sample's, what is expected
is corrected by a parametric bootstrap (Efron and Tibshirani, "An introduction to the bootstrap",
1993, chapter 6.5). Some superblocks are looked at:

1. How weights are distributed is told by their cells, and of each weight one is drawn from that
   distribution within its cells (`recover.estimators._population`). So zeros, outliers and columns
   stay where they seem to be.
2. They are encoded as the inputs are, and estimated again. Now the errors are known.

Superblocks with a spike at 0, those with outliers and others differ in what measured errors are
over expected ones: each class has a factor of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import inner, kernel
from recover.estimators._outliers import UNEVEN
from recover.estimators._population import draw
from recover.estimators._request import MEAN, Request
from recover.estimators._variances import STEP
from recover.estimators._zeros import FEWEST, MORE
from recover.estimators.base import estimator
from recover.estimators.tally import ALONE, VARIANCE, Tally
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Evidence, Source, rows_of
from recover.inputs.matching import typical_error
from recover.quants import GROUP, TILE, F32Array, ScalarType, U8Array, dequantize, quantize

_SUPERBLOCK = 256
_FEWEST, _MOST = 64, 256  # superblocks that are drawn, of half of them
_OF_WHOLE = 128  # of a whole tile: tensors that have one mostly have several
_AT_LEAST = 0.25  # of the chances of others
_LOOKED_AT = 12  # where zeros are looked for
_SEED = 8
_FEWEST_KNOWN = 32  # superblocks: ratios of fewer are chance
_LARGEST_RATIO = 128.0  # and those beyond are of a few weights

_FAR_TAILS = 25.0  # kurtosis
_SPARSE = 0.25  # of the superblocks
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
    shares : float64 (3,)
        Those of the classes in the error that is expected of the estimates.
    in_deviations : float
        The sum of squared deviations over the error that is expected of the estimates.
    alone : float64 (n_inputs,)
        Of each input alone.
    taken : int
        The input that is decoded, in the order of the evidence; -1 if others have a part.
    """

    merged: NDArray[np.float64]
    shares: NDArray[np.float64]
    in_deviations: float
    alone: NDArray[np.float64]
    taken: int

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
        shares = self.shares
        if deviation.size:
            classes = classes_of(estimates, scale)
            own = _sums(classes, deviation)
            shares = own if np.isfinite(own).all() else shares
            rows = deviation.reshape(-1, _SUPERBLOCK)
            rows *= np.sqrt(self.merged[classes, None]).astype(np.float32)
        total = float(shares.sum())
        tally[VARIANCE] *= self.in_deviations * (shares @ self.merged) / total if total > 0 else 1.0
        tally[ALONE:] *= self.alone
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
        self.applies = all(map(_can_be_drawn, sources))
        errors = {k: typical_error(each.type) for k, each in enumerate(sources) if each.has_cells}
        known = [k for k, error in errors.items() if error < _TOO_COARSE]
        self._finest = min(known, key=errors.__getitem__, default=-1)

    @cached_property
    def _tile(self) -> UncorrectedTileEstimator:
        """Estimates what was drawn."""
        return UncorrectedTileEstimator(self._sources, self._method, self._estimate)

    def measured(self, evidence: Evidence, kurtosis: NDArray[np.float64]) -> dict[int, Measured]:
        """What was measured on weights like those of tensors that the sample does not fit.

        Parameters
        ----------
        evidence : Evidence
            Of tensors of one size, one behind the other.
        kurtosis : float64 (n_tensors,)
            Of their estimates.

        Returns
        -------
        dict
            By the number of the tensor, from 0; those that are like the sample are not in it, nor
            those of which nothing can be drawn.
        """
        unlike = np.empty(kurtosis.size, np.bool_)
        if not self.applies or not _find_unlike(
            evidence.codes,
            evidence.scale,
            evidence.offset,
            evidence.lower_levels,
            evidence.upper_levels,
            self._finest,
            kurtosis,
            unlike,
        ):
            return {}
        size = evidence.codes.shape[1] // kurtosis.size
        numbers = np.flatnonzero(unlike).tolist()
        all_measured = {i: self._measure(evidence, i * size, (i + 1) * size) for i in numbers}
        return {i: measured for i, measured in all_measured.items() if measured is not None}

    def _measure(self, evidence: Evidence, start: int, end: int) -> Measured | None:
        """Draw weights like those from `start` to `end`; None if that tells nothing."""
        part, estimates, weights = self._looked_at(evidence, start, end)
        if weights.size < _FEWEST_KNOWN:
            return None
        with np.errstate(all="ignore"):  # what is drawn may be too large for a type's scales
            return self._compare(part, estimates, weights)

    def _compare(
        self, part: Evidence, estimates: tuple[F32Array, F32Array], weights: NDArray[np.float64]
    ) -> Measured | None:
        """See `_measure`; of superblocks that each stand for so many."""
        x = draw(part, *estimates, _SEED)
        before = _sums(classes_of(estimates[0], part.scale[0]), estimates[1], weights)
        raws = [self._encode(x, source) for source in self._sources]
        out, deviation = np.empty((2, x.size), np.float32)
        tallies = self._tile.estimate_each(raws, 0, x.size, len(x), out, deviation)
        classes = classes_of(out, self._tile.evidence.scale[0])
        after = _sums(classes, deviation, weights)
        errors = _sums(classes, out - x.reshape(-1), weights)
        pairs = zip(raws, self._sources, strict=True)
        off = [dequantize(raw, source.type) - x.reshape(-1) for raw, source in pairs]
        alone = np.array([_sums(classes, each, weights).sum() for each in off])
        variance, _, *expected = weights @ tallies
        whole = errors.sum() / after.sum()
        known = after > _LEAST_SHARE * after.sum()
        merged = np.divide(errors, after, out=np.full(3, whole), where=known)
        in_deviations = after.sum() / variance
        alone /= expected
        ratios = np.array([*merged, in_deviations, *alone])
        if not (np.isfinite(before).all() and _are_told(ratios)):
            return None
        taken = part.finest if estimator(self._method).takes_first else -1
        return Measured(merged, before, float(in_deviations), alone, taken)

    def _looked_at(
        self, evidence: Evidence, start: int, end: int
    ) -> tuple[Evidence, tuple[F32Array, F32Array], NDArray[np.float64]]:
        """Evidence on superblocks of which something is known.

        Estimates with their deviations, and how many superblocks each stands for.
        """
        rows, weights = _chosen_by_size(evidence.scale[max(self._finest, 0)], start, end)
        part = rows_of(evidence, rows, _SUPERBLOCK)
        out, deviation = np.empty((2, part.codes.shape[1]), np.float32)
        tallies = np.zeros((1, Tally.size_for(len(self._sources))))
        request = Request(self._estimate, deviation, self._sources)
        estimator(self._method).estimate_each(part, out, tallies, request)
        largest = np.abs(out.reshape(-1, _SUPERBLOCK)).max(1)
        reach = deviation.reshape(-1, _SUPERBLOCK).max(1)
        known = (largest > 0) & (largest < _TOO_LARGE) & (reach < _TOO_LARGE)
        if known.all():
            return part, (out, deviation), weights
        kept = np.flatnonzero(known)
        out, deviation = (
            each.reshape(-1, _SUPERBLOCK)[kept].reshape(-1) for each in (out, deviation)
        )
        return rows_of(part, kept, _SUPERBLOCK), (out, deviation), weights[kept]

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
    return bool(((ratios * _LARGEST_RATIO > 1) & (ratios < _LARGEST_RATIO)).all())


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


def _chosen_by_size(
    scale: F32Array, start: int, end: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Superblocks of a tensor that are drawn, and how many each stands for, but for a factor.

    Errors are about as large as squared scales. So are the chances of superblocks: where a few have
    most of the error they are drawn several times. (Hansen and Hurwitz, "On the theory of sampling
    from finite populations", Annals of Mathematical Statistics 14(4), 1943.)
    """
    first, most = start // _SUPERBLOCK, _OF_WHOLE if end - start == TILE else _MOST
    squares = np.square(scale[start // GROUP : end // GROUP], dtype=np.float64)
    sizes = squares.reshape(-1, _SUPERBLOCK // GROUP).sum(1)
    sizes[~np.isfinite(sizes)] = 0
    n_drawn = min(sizes.size, max(_FEWEST, min(most, sizes.size // 2)))
    sizes += sizes.mean() * _AT_LEAST
    total = np.cumsum(sizes)
    if n_drawn == sizes.size or not total[-1] > 0:
        return first + np.arange(n_drawn), np.ones(n_drawn)
    places = (np.arange(n_drawn) + 0.5) / n_drawn * total[-1]
    rows = np.minimum(np.searchsorted(total, places, "right"), sizes.size - 1)
    return first + rows, sizes.min() / sizes[rows]


@kernel
def _find_unlike(
    codes: NDArray[np.uint8],
    scale: F32Array,
    offset: F32Array,
    lower: F32Array,
    upper: F32Array,
    k: int,
    kurtosis: NDArray[np.float64],
    found: NDArray[np.bool_],
) -> int:
    """See `Bootstrap.measured`; cells of input `k` are looked at, if it is not negative."""
    size, n_found = codes.shape[1] // found.size, 0
    is_whole = size >= 256 * _FEWEST_KNOWN and codes.shape[1] % (256 * found.size) == 0
    n_looked_at = min(size // 256, _LOOKED_AT)
    for i in range(found.size):
        n_sparse = 0
        if is_whole and k >= 0:
            stride = size // 256 // n_looked_at
            for j in range(n_looked_at):
                start = i * size + 256 * (j * stride + j * STEP % stride)
                n_sparse += _is_sparse(codes[k], scale[k], offset[k], lower[k], upper[k], start)
        found[i] = is_whole and (kurtosis[i] > _FAR_TAILS or n_sparse > _SPARSE * n_looked_at)
        n_found += found[i]
    return n_found


@inner
def _is_sparse(
    codes: U8Array, scale: F32Array, offset: F32Array, lower: F32Array, upper: F32Array, start: int
) -> bool:
    """Whether far more weights of a superblock may be 0 than lie beside.

    As `recover.estimators._zeros` tells by the cells of all inputs.
    """
    n_zero = n_beside = 0
    for g in range(start // 16, start // 16 + 16):
        s, o = abs(scale[g]), offset[g] if scale[g] > 0 else -offset[g]
        if not 0 < s < np.inf:
            continue
        at = -o / s
        for i in range(16 * g, 16 * g + 16):
            low, high = lower[codes[i]] - at, upper[codes[i]] - at
            width = high - low
            slack = np.float32(1e-3) * width
            if not width < np.inf:
                continue
            if low <= slack and high >= -slack:
                n_zero += 1
            elif abs(low + high) < 4 * width:
                n_beside += 1
    return bool(n_zero >= FEWEST and n_zero >= MORE * n_beside)


def _sums(
    classes: NDArray[np.int64], values: F32Array, weights: NDArray[np.float64] | float = 1.0
) -> NDArray[np.float64]:
    """The sums of squares over superblocks of each class (3,)."""
    squares = np.square(values.reshape(-1, _SUPERBLOCK), dtype=np.float64).sum(1)
    return np.bincount(classes, weights * squares, 3).astype(np.float64)

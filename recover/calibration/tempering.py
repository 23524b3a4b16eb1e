"""What types say together, from simulated weights.

That is the exponents of likelihoods, and how errors of vector types go together.

Makes the rest of what `recover.evidence.densities` ships (see `recover.calibration.simulate`).
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from recover.calibration.simulate import CHUNK, SEED, importance, student_t
from recover.estimators import DEFAULT_METHOD
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Evidence, Source
from recover.evidence.densities import DEGREE, N_ALIKE, density
from recover.quants import (
    F32Array,
    ScalarType,
    TensorType,
    U8Array,
    VectorType,
    dequantize,
    quantize,
)

_N_BISECTIONS = 8
_MOST_UNPROVEN = 2.5
_LEAST_OF_PAIR, _CLOSE = 0.25, 0.01  # a claim is close enough to what is measured


def find_tempering(kind: ScalarType, *, seed: int = SEED) -> list[float]:
    """The exponents for each of `N_ALIKE` inputs of a type.

    See `recover.evidence.densities.tempering`.

    The inputs differ in their importance matrix, drawn per column from lognormal(0, 1); the first
    has none.
    """
    x = student_t(seed, as_trained=kind.scales_are_coarse)(0)
    others = [importance(seed, number, CHUNK[1]) for number in range(1, max(N_ALIKE))]
    raws = [quantize(x, kind), *(quantize(x, kind, each) for each in others)]
    errors = [_error(dequantize(raw, kind), x) for raw in raws]
    has_cells = not kind.refits_scale_with_imatrix
    weighted = density(kind, has_cells=has_cells, weighted=True)
    tables = [weighted if has_cells else density(kind), *[weighted] * (max(N_ALIKE) - 1)]
    sources = [Source(kind), *[Source(kind, has_cells)] * (max(N_ALIKE) - 1)]
    exponents: list[float] = []
    for n_alike in N_ALIKE:
        tile = UncorrectedTileEstimator(sources[:n_alike], DEFAULT_METHOD)
        tile.read(raws[:n_alike], 0, x.size)

        def ratio(
            exponent: float, n: int = n_alike, tile: UncorrectedTileEstimator = tile
        ) -> float:
            scaled = np.stack([_times(table, exponent) for table in tables[:n]])
            evidence = tile.evidence._replace(density=scaled)
            return _claim_over_measured(tile, evidence, errors[:n], x)

        # Among cells estimates are the better the more the densities count.
        least = 1 - _CLOSE if has_cells else 1.0
        exponents.append(_largest(ratio, 1 / n_alike, exponents[-1] if exponents else 1.0, least))
    return exponents


def find_tempering_of_pairs(
    kinds: Sequence[ScalarType | VectorType], encode: Callable[[TensorType, F32Array], U8Array]
) -> dict[str, dict[str, float]]:
    """What the coarser of two types counts beside the finer, by their names.

    Parameters
    ----------
    kinds : sequence of ScalarType or VectorType
        The types.
    encode : Callable
        Encodes weights (n_rows, ne0) as a type; returns the bytes.
    """
    exponents: dict[str, dict[str, float]] = {kind.name: {} for kind in kinds}
    for as_trained in (False, True):
        x = student_t(as_trained=as_trained)(0)
        raws = {kind.name: encode(kind, x) for kind in kinds}
        for fine, coarse in product(kinds, kinds):
            if all(isinstance(kind, VectorType) for kind in (fine, coarse)):
                continue  # their errors are known to go together
            if as_trained != any(_is_coarse(kind) for kind in (fine, coarse)):
                continue
            if fine.relative_mse < coarse.relative_mse:
                pair = [raws[kind.name] for kind in (fine, coarse)]
                exponents[coarse.name][fine.name] = find_pair_tempering(fine, coarse, pair, x)
    return exponents


def find_unproven_tempering_of_pairs(
    kinds: Sequence[ScalarType | VectorType], encode: Callable[[TensorType, F32Array], U8Array]
) -> dict[str, dict[str, float]]:
    """What an input whose codes prove nothing counts beside one of a finer type, by their names.

    See `find_tempering_of_pairs`; the first type's encoder has an importance matrix.
    """
    exponents: dict[str, dict[str, float]] = {}
    for kind in kinds:
        if not (isinstance(kind, ScalarType) and kind.refits_scale_with_imatrix):
            continue
        exponents[kind.name] = {}
        for other in kinds:
            if other.relative_mse >= kind.relative_mse:
                continue
            x = student_t(as_trained=_is_coarse(other))(0)
            columns = importance(SEED, 1, x.shape[1])
            # Another of these types is likely to be from the same hands.
            alike = isinstance(other, ScalarType) and other.refits_scale_with_imatrix
            raw = quantize(x, other, columns) if alike else encode(other, x)
            raws = [quantize(x, kind, columns), raw]
            exponents[kind.name][other.name] = find_unproven_tempering(kind, other, raws, x)
    return exponents


def find_unproven_tempering(
    kind: ScalarType, other: ScalarType | VectorType, raws: Sequence[U8Array], x: F32Array
) -> float:
    """What `kind` without cells counts beside a finer type, given the bytes of `x` as both."""
    alike = isinstance(other, ScalarType) and other.refits_scale_with_imatrix
    pair = (Source(kind, has_cells=False), Source(other, has_cells=not alike))
    ratio = _ratio_of_pair(pair, 0, raws, x)
    return _largest(ratio, _LEAST_OF_PAIR, _MOST_UNPROVEN)


def _is_coarse(kind: TensorType) -> bool:
    return isinstance(kind, ScalarType) and kind.scales_are_coarse


def find_pair_tempering(
    fine: ScalarType | VectorType,
    coarse: ScalarType | VectorType,
    raws: Sequence[U8Array],
    x: F32Array,
) -> float:
    """What the coarser of two types counts beside the finer, given the bytes of `x` as both."""
    ratio = _ratio_of_pair((Source(fine), Source(coarse)), 1, raws, x)
    at_most = ratio(1.0)
    if at_most > 1 - _CLOSE:
        return 1.0
    # Hard cells remain whatever the density counts: where it hardly matters it counts in full.
    if ratio(_LEAST_OF_PAIR) - at_most < (1 - at_most) / 2:
        return 1.0
    return _largest(ratio, _LEAST_OF_PAIR, 1.0)


def _ratio_of_pair(
    pair: tuple[Source, Source], counted: int, raws: Sequence[U8Array], x: F32Array
) -> Callable[[float], float]:
    """Claimed over measured error of two inputs, by what the density of one of them counts."""
    tile = UncorrectedTileEstimator(pair, DEFAULT_METHOD)
    evidence = tile.read(raws, 0, x.size)
    errors = [_error(dequantize(raw, w.type), x) for raw, w in zip(raws, pair, strict=True)]

    def ratio(exponent: float) -> float:
        exponents = [exponent if i == counted else 1.0 for i in range(2)]
        told, densities = evidence.likelihood.copy(), evidence.density.copy()
        vectors, scalars = iter(told), iter(densities)
        for source, counts in zip(pair, exponents, strict=True):
            if isinstance(source.type, ScalarType):
                table = density(source.type, has_cells=source.has_cells)
                next(scalars)[:] = _times(table, counts)
            else:
                next(vectors)[2] = counts
        scaled = evidence._replace(likelihood=told, density=densities)
        return _claim_over_measured(tile, scaled, errors, x)

    return ratio


def _times(table: F32Array, exponent: float) -> F32Array:
    scaled = table.copy()
    scaled[:, :DEGREE] *= exponent
    return scaled


def _largest(ratio: Callable[[float], float], low: float, high: float, least: float = 1) -> float:
    """The largest exponent up to `high` with which the claim is `least` times what is measured."""
    if ratio(high) >= least:
        return high
    for _ in range(_N_BISECTIONS):
        middle = (low * high) ** 0.5
        if ratio(middle) < least:
            high = middle
        else:
            low = middle
    return high


def _claim_over_measured(
    tile: UncorrectedTileEstimator, evidence: Evidence, errors: Sequence[float], x: F32Array
) -> float:
    """Expected over measured error of the estimates, relative to the best input's.

    `errors` are the square errors of the decoded inputs.
    """
    out = np.empty(x.size, np.float32)
    # With deviations, so that all weights are counted.
    tally = tile.estimate_from(evidence, out, np.empty_like(out))
    return float(tally.variance / tally.alone.min()) / (_error(out, x) / min(errors))


def _error(values: F32Array, x: F32Array) -> float:
    return float(np.sum((values - x.reshape(-1).astype(np.float64)) ** 2))


def find_likelihood(values: F32Array, x: F32Array) -> tuple[float, float]:
    """Gain and variance of decoded values; see `recover.evidence.densities.likelihood`."""
    slope, off = _residuals(values, x)
    return slope, float(np.mean(off**2))


def find_correlation(one: F32Array, other: F32Array, x: F32Array) -> float:
    """Correlation of two vector types' errors; see `recover.evidence.densities.correlation`."""
    offs = [_residuals(values, x)[1] for values in (one, other)]
    return float(np.mean(offs[0] * offs[1]) / np.prod([np.mean(off**2) for off in offs]) ** 0.5)


def _residuals(values: F32Array, x: F32Array) -> tuple[float, NDArray[np.float64]]:
    """Slope of weights on decoded values, and what is left, over the root mean square of these."""
    decoded, truth = (each.reshape(-1, 256).astype(np.float64) for each in (values, x))
    mean_square = np.square(decoded).mean(axis=1, keepdims=True)
    decoded, truth = (each / np.sqrt(mean_square) for each in (decoded, truth))
    slope = float(np.mean(decoded * truth) / np.mean(decoded**2))
    return slope, truth - slope * decoded

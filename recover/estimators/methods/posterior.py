"""The mean (or the mode) of the product-of-cells posterior.

Each input says where in its cell a weight is likely to be (`recover.evidence.densities`). The
product of these densities and of a normal prior as wide as the superblock's weights is integrated
over the intersection by a fixed rule; the estimate is its mean, the error to expect its variance.
Where the intersection of the cells is empty the finest input is taken alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover.estimators._product import integrate
from recover.estimators._product_tables import (
    NO_OTHERS,
    Others,
    Outputs,
    has_atoms,
    tabulate,
    tabulate_intervals,
)
from recover.estimators._request import MODE, Request, fill_deviation
from recover.estimators._variances import add_variance, group_variances
from recover.estimators.base import DENSITIES, Calibration
from recover.estimators.tally import ALONE, VARIANCE
from recover.evidence.buffer import Evidence, Source
from recover.evidence.densities import SHAPE
from recover.evidence.unpacking import typical_variance
from recover.inputs.matching import typical_error
from recover.quants import GROUP, F32Array, ScalarType

SUMMARY = "the mean (or mode) of the product of what all codes say of a weight"
HAS_MODE = True
SEES_CONFLICTS = True
DECIDES = True
CALIBRATED = DENSITIES

_SUPERBLOCK = 256
# An input alone with a smaller relative mean square error than this gains less than 1%, if at all.
_FINE_ALONE = 6e-3


def estimate_each(
    evidence: Evidence, out: F32Array, tallies: NDArray[np.float64], request: Request
) -> None:
    """See `recover.estimators`."""
    if len(evidence.codes) == 0:
        if len(evidence.interval_values) == 0:
            _estimate_unproven(evidence, out, tallies, request)
            return
        n_tensors, size = tallies.shape
        sums = np.zeros((n_tensors, size + 1))
        estimate_each(_with_a_blank(evidence), out, sums, request)
        tallies += np.delete(sums, ALONE, axis=1)
        return
    n, missing = out.size, -out.size % _SUPERBLOCK
    if missing:
        evidence = _fill_up(evidence, missing)
    estimates = np.empty(n + missing, np.float32) if missing else out
    deviation = request.deviation
    if missing and deviation.size:
        deviation = np.empty_like(estimates)
    variance = np.empty(estimates.size // GROUP, np.float32)
    group_variances(evidence, evidence.finest, variance)
    others = NO_OTHERS
    if len(evidence.values) > 0:
        mean, around = np.empty_like(estimates), np.empty_like(variance)
        _predict(evidence, mean, around)
        tempering = evidence.likelihood[:, 2].min()
        others = Others(evidence.values.reshape(-1), mean, around, tempering)
    scalars = tabulate(evidence)
    errors = np.zeros((tallies.shape[1] - 1) * GROUP, np.float32)
    is_mode, atoms = request.estimate == MODE, has_atoms(scalars)
    is_plain = not (is_mode or atoms.any())
    outputs = Outputs(is_mode, is_plain, atoms, variance, deviation, errors, n // GROUP)
    integrate(scalars, tabulate_intervals(evidence), others, estimates, outputs, tallies)
    if missing:
        out[:] = estimates[:n]
        request.deviation[:] = deviation[: request.deviation.size]


def calibrate(
    sources: Sequence[Source],
    calibration: Calibration,
    role: str | None,
    depth: float | None,
) -> tuple[Source, ...]:
    """The sources with their densities, those apart whose codes llama.cpp did not make."""
    return tuple(
        each if each.noise is not None else calibration.with_density(each) for each in sources
    )


def gains_alone(source: Source) -> bool:
    """Whether the posterior of one input is better than its decoded values.

    Where an encoder weighed the errors, and with 4-bit floats, whose cells are wide at the ends, a
    tensor with outliers may lose more than the others gain.
    """
    if isinstance(source.type, ScalarType) and (
        source.weighted or not source.has_cells or not source.type.is_even
    ):
        return False
    return typical_error(source.type) > _FINE_ALONE and not source.type.is_native


def _estimate_unproven(
    evidence: Evidence, out: F32Array, tallies: NDArray[np.float64], request: Request
) -> None:
    """Where no input proves bounds: there are no cells, and the posterior is normal."""
    variance = np.empty(out.size // GROUP, np.float32)
    _predict(evidence, out, variance)
    variance[~np.isfinite(variance)] = 0
    fill_deviation(request, variance)
    expected = np.zeros((len(tallies), 1))
    add_variance(variance, expected, 0)
    tallies[:, VARIANCE] += expected[:, 0]
    for v, values in enumerate(evidence.values):
        off = (out - values).astype(np.float64).reshape(len(tallies), -1)
        squares = [np.einsum("n,n", each, each) for each in off]
        tallies[:, ALONE + v] += expected[:, 0] + squares


def _fill_up(evidence: Evidence, missing: int) -> Evidence:
    """The evidence with so many more weights, of which it says nothing."""
    each = "values", "interval_values", "interval_lower", "interval_upper", "interval_variance"
    sizes = dict.fromkeys(("codes", *each), missing)
    groups = ("scale", "offset", "scale_error", "offset_error", "variance")
    sizes |= dict.fromkeys(groups, missing // GROUP)
    padded: dict[str, Any] = {
        name: np.pad(getattr(evidence, name), ((0, 0), (0, n))) for name, n in sizes.items()
    }
    return evidence._replace(**padded)


def _with_a_blank(evidence: Evidence) -> Evidence:
    """The evidence with a scalar input, for kernels that need one, which says nothing."""
    n = evidence.interval_values.shape[1]
    groups = np.zeros((1, n // GROUP), np.float32)
    level = np.zeros((1, 256), np.float32)
    return evidence._replace(
        codes=np.zeros((1, n), np.uint8),
        scale=groups,
        offset=groups,
        scale_error=groups,
        offset_error=groups,
        levels=level,
        lower_levels=level - np.float32(np.inf),
        upper_levels=level + np.float32(np.inf),
        noise=evidence.interval_noise[:1],
        density=np.zeros((1, *SHAPE), np.float32),
        end_codes=np.array([[0, 255]], np.int32),
        extremes=np.full((1, 2, 2), -1, np.int32),
        scale_steps=np.zeros(1),
        lost=np.array([[0.0, np.inf, 0.0]]),
        finest=1,
    )


def _predict(evidence: Evidence, out: F32Array, variance: F32Array) -> None:
    """What the vector types say together: fills `out` and its `variance` (n / 16,).

    Their densities are normal, so it is the best linear prediction from decoded values times their
    gain, whose errors go together as they did in the simulation.
    """
    gains, residual = evidence.likelihood[:, [0, 3]].astype(np.float64).T
    explained = 1 - residual  # of the variance of the weights
    deviations = np.sqrt(residual)
    among = explained[:, None] - residual + evidence.correlation * np.outer(deviations, deviations)
    weights = np.linalg.lstsq(among, explained, rcond=None)[0]
    np.einsum("vn,v->n", evidence.values, (weights * gains).astype(np.float32), out=out)
    # The variance of the weights is what the first input says.
    first = evidence.values[0]
    typical_variance(first, gains[0] ** 2 / explained[0] * (1 - weights @ explained), variance)
    broken = ~np.isfinite(variance)
    out.reshape(-1, GROUP)[broken] = first.reshape(-1, GROUP)[broken]

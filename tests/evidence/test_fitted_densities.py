"""Densities of weights whose bounds are wider than their errors, against naive references."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import truncnorm, uniform

from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Evidence, Source
from recover.evidence.cells import intersect_cells
from recover.quants import F32Array, IntervalType, Stated
from tests.support.stated_intervals import ColumnScaled, round_columns


def posterior(inputs: Sequence[Any], n: int) -> tuple[F32Array, F32Array, Evidence]:
    """Estimates, deviations, and what they were made of."""
    sources = [Source(each.type, has_cells=each.has_cells) for each in inputs]
    estimator = UncorrectedTileEstimator(sources, "posterior")
    out, deviation = np.empty((2, n), np.float32)
    tally = estimator.estimate(inputs, 0, n, out, deviation)
    assert tally.n_conflicts == 0
    return out, deviation, estimator.evidence


@dataclass(frozen=True)
class Unbounded:
    """Values with a normal error."""

    type: IntervalType
    values: F32Array
    step: np.float32
    has_cells: bool = False

    def intervals(self, start: int, end: int, out: Stated) -> None:
        """See `recover.quants.IntervalTensor`."""
        out.value[:] = self.values[start:end]
        out.lower[:], out.upper[:] = -np.inf, np.inf
        out.variance[:] = self.type.noise * self.step**2


def truncated_spread(inverse: float) -> float:
    """Variance of a normal density of variance 1 / `inverse` between -1 and 1."""
    return float(truncnorm(-(inverse**0.5), inverse**0.5, scale=inverse**-0.5).var())


@pytest.mark.parametrize("reach", [0.6, 0.75, 1.0, 2.0])
@pytest.mark.parametrize("noise", [1 / 12, 0.1])
def test_bounds_that_are_wider_than_the_errors(
    noise: float, reach: float, rng: np.random.Generator
) -> None:
    """The density between them has the variance that is stated, as the naive reference's.

    Of rounded weights it is uniform, so that they are looked for within half a step, where another
    input leaves any of that.
    """
    x = rng.standard_normal((16, 512), np.float32)
    steps = np.full(512, 1 / 40, np.float32)
    fine = round_columns(x, 100, 1e-5)
    kind = IntervalType(name="wide", relative_mse=1e-4, noise=noise)
    codes = np.rint(x / steps).astype(np.int64).reshape(-1)
    out, deviation, evidence = posterior(
        [ColumnScaled(kind, codes, steps, reach=reach), fine], x.size
    )
    lower, upper = np.empty((2, x.size), np.float32)
    intersect_cells(evidence, lower, upper)
    middle = evidence.interval_values[0].astype(np.float64)
    if noise == 1 / 12:
        reach = 0.5
        lower = np.maximum(lower, middle - steps[0] / 2)
        upper = np.minimum(upper, middle + steps[0] / 2)
        reference = uniform(lower, upper - lower)
    else:
        inverse = brentq(lambda c: truncated_spread(c) - noise / reach**2, 1e-3, 1e3)
        scale = reach * steps[0] * inverse**-0.5
        reference = truncnorm((lower - middle) / scale, (upper - middle) / scale, middle, scale)
    width = upper - lower
    seen = width > 0.1 * reach * steps[0]
    assert np.mean(seen) > 0.5
    off = (out - reference.mean())[seen] / width[seen]
    assert np.sqrt(np.mean(off**2)) < 0.01
    assert np.median(deviation[seen] / reference.std()[seen]) == pytest.approx(1, abs=0.02)


def test_what_is_likely_confines_no_weight_that_others_put_elsewhere() -> None:
    """A value that is off by far more than its error leaves the other input as it is."""
    n, step = 256, np.float32(0.01)
    values = np.linspace(-1, 1, n, dtype=np.float32)
    exact, coarse = (
        IntervalType(name=name, relative_mse=mse, noise=0.11)
        for name, mse in (("exact", 1e-5), ("coarse", 1e-2))
    )
    inputs = [Unbounded(exact, values, step), Unbounded(coarse, values + 9, step * 99)]
    out, _, _ = posterior(inputs, n)
    np.testing.assert_allclose(out, values, atol=0.5 * float(step))

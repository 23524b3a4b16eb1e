"""Fitted weights against numpy's and scipy's least squares."""

from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from recover import calibrate, execute_merge, plan_merge
from recover.calibration.fit import _gain, fit, free_weights, simplex_weights, square_error
from recover.calibration.moments import Survey
from recover.calibration.weights import Calibration, Gain
from tests.support.calibrations import SETS, Parts, design, pooled
from tests.support.gguf_files import F64Array, read_weights
from tests.support.models import TINY


@pytest.fixture(scope="module")
def parts(tiny: list[Path]) -> Parts:
    return design(tiny, TINY)


@pytest.fixture(scope="module")
def free(tiny: list[Path]) -> Calibration:
    """Weights of any sign and sum."""
    return calibrate(tiny, TINY, constrained=False)


class TestFit:
    def test_free_weights_are_least_squares(self, free: Calibration, parts: Parts) -> None:
        assert {each.types for each in free.combinations} == set(SETS)
        for each in free.combinations:
            x, target = pooled(parts, each.types)
            expected = np.linalg.lstsq(x, target, rcond=None)[0]
            np.testing.assert_allclose(each.weights, expected, rtol=0, atol=1e-6)
            assert each.n_weights == target.size

    def test_constrained_weights_satisfy_the_conditions(
        self, calibration: Calibration, parts: Parts
    ) -> None:
        for each in calibration.combinations:
            x, target = pooled(parts, each.types)
            weights = np.array(each.weights)
            check_optimal(x - target[:, None], weights)
            error = np.square(x @ weights - target).sum()
            alone = np.square(x - target[:, None]).sum(axis=0)
            assert each.fitted.mse_ratio == pytest.approx(error / alone.min(), rel=1e-9)

    def test_scipy_finds_the_same(self, calibration: Calibration, parts: Parts) -> None:
        """Non-negative least squares, with the sum as one more, very heavy equation."""
        for each in calibration.combinations:
            x, target = pooled(parts, each.types)
            root = np.linalg.qr(x - target[:, None]).R
            heavy = 1e6 * np.linalg.norm(root)
            rows = np.vstack([root, np.full(root.shape[1], heavy)])
            expected = scipy.optimize.nnls(rows, np.append(np.zeros(len(root)), heavy))[0]
            np.testing.assert_allclose(each.weights, expected, rtol=0, atol=1e-6)

    @given(
        seed=st.integers(0, 2**32 - 1),
        n_inputs=st.integers(2, 7),
        spread=st.floats(0, 4),
        shared=st.floats(0, 3),
    )
    def test_any_errors(self, seed: int, n_inputs: int, spread: float, shared: float) -> None:
        """Errors of very different sizes that have much in common: many weights become 0."""
        rng = np.random.default_rng(seed)
        sizes = 1e-3 * 10 ** rng.uniform(-spread / 2, spread / 2, n_inputs)
        common = shared * rng.standard_normal((500, 1))
        errors = (rng.standard_normal((500, n_inputs)) + common) * sizes
        truth = rng.standard_normal(500)
        columns = np.column_stack([errors, truth])
        gram = columns.T @ columns
        weights = simplex_weights(gram)
        check_optimal(errors, weights)
        x = truth[:, None] + errors
        expected = np.linalg.lstsq(x, truth, rcond=None)[0].astype(np.float64)
        np.testing.assert_allclose(free_weights(gram), expected, rtol=1e-6, atol=1e-6)
        error = np.square(x @ expected - truth).sum()
        assert square_error(gram, expected) == pytest.approx(error, rel=1e-6)

    def test_special_inputs(self) -> None:
        """One without error, and two that say the same."""
        truth = np.linspace(-1, 1, 64)
        noise = np.random.default_rng(0).standard_normal(64)
        for errors, total in (
            (np.stack([noise, 0 * noise, noise]), [1]),
            (np.stack([noise, noise]), [0, 1]),
        ):
            columns = np.vstack([errors, truth])
            gram = columns @ columns.T
            for weights in (simplex_weights(gram), free_weights(gram)):
                assert np.isfinite(weights).all()
                if len(total) == 1:
                    np.testing.assert_allclose(weights, [0, 1, 0], atol=1e-12)
        assert simplex_weights(gram).sum() == pytest.approx(1)


def check_optimal(errors: F64Array, weights: F64Array) -> None:
    """The conditions of Karush, Kuhn and Tucker, for ``|errors @ w|**2`` on the simplex."""
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    sizes = np.linalg.norm(errors, axis=0)
    gradient = errors.T @ (errors @ weights)
    level = weights @ gradient
    # In units in which an input alone has a gradient of 1.
    slack = (gradient - level) / (sizes * np.sqrt(level))
    used = weights > 0
    assert np.abs(slack[used]).max() < 1e-6
    assert slack.min() > -1e-6


class TestHeldOut:
    def test_each_tensor_is_left_out(self, free: Calibration, parts: Parts) -> None:
        """Seven tensors: seven fits, each to the other six."""
        (each,) = (c for c in free.combinations if c.types == ("Q5_K", "Q4_K", "Q3_K"))
        chosen = [part[1:] for part in parts.values() if part[0] == each.types]
        assert len(chosen) == 7
        errors, alone = 0.0, np.zeros(3)
        for i, (x, target) in enumerate(chosen):
            others = [part for j, part in enumerate(chosen) if j != i]
            rest_x, rest_target = (np.concatenate(side) for side in zip(*others, strict=True))
            weights = np.linalg.lstsq(rest_x, rest_target, rcond=None)[0]
            errors += np.square(x @ weights - target).sum()
            alone += np.square(x - target[:, None]).sum(axis=0)
        assert each.held_out is not None
        assert each.held_out.mse_ratio == pytest.approx(errors / alone.min(), rel=1e-6)
        assert each.held_out.mse_ratio > each.fitted.mse_ratio
        assert each.held_out.n_tensors == 7

    def test_layers_are_left_out_together(self, surveyed: Survey) -> None:
        by_tensor, by_layer = (fit(surveyed, leave_out=what) for what in ("tensor", "layer"))
        assert (by_tensor.left_out, by_layer.left_out) == ("tensor", "layer")
        assert [c.weights for c in by_tensor.combinations] == [
            c.weights for c in by_layer.combinations
        ]
        # Both tensors of Q6_K and Q3_K are of one layer: nothing is left to fit to.
        ratios = [[c.held_out for c in each.combinations] for each in (by_tensor, by_layer)]
        assert ratios[0][2] is not None
        assert ratios[1][2] is None
        assert ratios[0][0] != ratios[1][0]

    def test_interval_is_that_of_scipy(self) -> None:
        rng = np.random.default_rng(1)
        below = rng.lognormal(0, 1, 40)
        above = below * rng.normal(0.8, 0.1, 40)
        names = [str(i) for i in range(40)]
        gain = _gain(dict(zip(names, above, strict=True)), dict(zip(names, below, strict=True)))

        def ratio(a: F64Array, b: F64Array, axis: int) -> F64Array:
            return a.sum(axis=axis) / b.sum(axis=axis)

        expected = scipy.stats.bootstrap(
            (above, below), ratio, paired=True, method="percentile", n_resamples=5000, rng=2
        ).confidence_interval
        assert gain.mse_ratio == pytest.approx(above.sum() / below.sum())
        width = expected.high - expected.low
        assert gain.ci95 == pytest.approx(tuple(expected), abs=0.1 * width)
        assert _gain({"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 2.0}) == Gain(0.75, None, 2)

    def test_uncalibrated_is_the_linear_method(
        self, tiny: list[Path], calibration: Calibration, parts: Parts, tmp_path: Path
    ) -> None:
        out = tmp_path / "linear.gguf"
        execute_merge(plan_merge(tiny, out, method="linear", outtype="f32"))
        merged, truth, finest = (read_weights(path) for path in (out, TINY, tiny[0]))
        sums = [
            sum(np.square(w[name].astype(np.float64) - truth[name]).sum() for name in parts)
            for w in (merged, finest)
        ]
        assert calibration.uncalibrated is not None
        assert calibration.uncalibrated.mse_ratio == pytest.approx(sums[0] / sums[1], rel=1e-6)

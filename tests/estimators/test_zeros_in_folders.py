"""Weights of which many are 0, beside inputs that state intervals."""

import numpy as np
import pytest

from recover.estimators.tile import TileEstimator
from recover.evidence.buffer import Source
from recover.inputs.matching import typical_error
from recover.quants import F32Array
from tests.support.all_sets import has_cells, stored_as, with_errors
from tests.support.foreign_modules import rounded
from tests.support.sparse_weights import SHAPE, normal, pruned, with_dead_columns

SEED = 10
SETS = (
    *("NVFP4+Q4_K", "NF4-nested+Q4_K", "FP8-block+Q6_K", "MLX4-g64+Q4_K", "INT4-g128+Q4_K"),
    *("LLM.int8+Q8_0", "NF4-nested+Q5_K+Q4_K", "AWQ4-g128+NF4-nested+Q4_K"),
)


SPARSE = {
    "30%": pruned(SEED, 0.3),
    "half": pruned(SEED, 0.5),
    "dead columns": with_dead_columns(SEED),
}


def merged(names: str, x: F32Array, method: str) -> tuple[F32Array, float, float]:
    """Estimates of weights (N, K), their error over the best input's, and what is claimed of it."""
    x = rounded(x, "BF16")
    made = sorted((stored_as(name, x) for name in names.split("+")), key=error_of)
    inputs, out = with_errors(made), np.empty(x.size, np.float32)
    sources = [Source(each.type, has_cells=has_cells(each)) for each in inputs]
    tally = TileEstimator(sources, method).estimate(inputs, 0, x.size, out)

    def square(values: F32Array) -> float:
        return float(np.sum(np.square(values - x.reshape(-1), dtype=np.float64)))

    error = square(out)
    best = min(square(each.read(0, x.size)) for each in inputs)
    return out.reshape(x.shape), error / best, tally.variance / error


def error_of(tensor: object) -> float:
    return typical_error(tensor.type)  # type: ignore[attr-defined]


@pytest.mark.quality
@pytest.mark.parametrize("names", SETS)
@pytest.mark.parametrize("kind", SPARSE)
def test_the_posterior_is_the_best_method(kind: str, names: str) -> None:
    _, error, claim = merged(names, SPARSE[kind], "posterior")
    assert claim == pytest.approx(1, abs=0.15 if "AWQ" in names else 0.08)
    for method in ("linear", "midpoint"):
        _, other, claim = merged(names, SPARSE[kind], method)
        assert error < other
        assert claim == pytest.approx(1, abs=0.15 if "AWQ" in names else 0.08)


@pytest.mark.parametrize("names", ["NVFP4+Q4_K", "NF4-nested+Q5_K", "FP8-block+NF4-nested"])
def test_zeros_are_all_but_zero(names: str) -> None:
    x = SPARSE["half"]
    out, error, _ = merged(names, x, "posterior")
    assert np.median(abs(out[x == 0])) < 2e-3 * np.std(x)
    assert error < 0.95 * merged(names, normal(SEED), "posterior")[1]


@pytest.mark.parametrize("names", ["NVFP4+Q4_K", "NF4-nested+Q5_K", "FP8-block+Q6_K"])
def test_weights_that_are_often_small_have_no_spike(names: str) -> None:
    rng = np.random.default_rng(13)
    for x in (rng.laplace(size=SHAPE), rng.standard_t(3, SHAPE), normal(SEED)):
        weights = (0.03 * x).astype(np.float32)
        out, error, _ = merged(names, weights, "posterior")
        near_zero = [np.mean(abs(each) < 1e-4 * np.std(weights)) for each in (out, weights)]
        assert near_zero[0] < near_zero[1] + 2e-3
        assert error <= merged(names, weights, "linear")[1]


def test_one_input_tells_no_zeros_from_weights_beside_large_columns() -> None:
    """Almost all weights have the code of 0 then, and none is 0: their error is not to be lost."""
    x = normal(SEED) * np.where(np.random.default_rng(14).random(256) < 0.02, 12, 1).astype(
        np.float32
    )
    _, _, claim = merged("AutoRound4", x, "posterior")
    assert claim > 0.95

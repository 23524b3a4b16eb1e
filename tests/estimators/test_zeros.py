"""Models of which many weights are 0: the posterior's prior has a spike there."""

import numpy as np
import pytest

from recover.quants import F32Array
from tests.support.joint_inputs import encode, run, sources_of
from tests.support.sparse_weights import SHAPE, by_size, normal, pruned, with_dead_columns

SEED = 0
SETS = "Q5_K+Q4_K+Q2_K", "Q4_K+Q2_K", "Q6_K+Q4_K", "Q8_0+Q4_K", "Q4_0+Q3_K", "Q5_K+Q4_K"
COARSE = "Q3_K*+Q2_K*", "Q6_K+Q2_K", "Q3_K+Q2_K"

SPARSE = {
    "half": pruned(SEED, 0.5),
    "most": pruned(SEED, 0.9),
    "dead columns": with_dead_columns(SEED),
    "by size": by_size(normal(SEED), 0.5),
}
VERY_SPARSE = {
    "most": SPARSE["most"],
    "70%": pruned(SEED, 0.7),
    "most by size": by_size(normal(SEED), 0.9),
    "heavy tails": np.where(
        SPARSE["most"] == 0, 0, np.random.default_rng(SEED).standard_t(4, SHAPE)
    ).astype(np.float32),
}


def error(method: str, name: str, x: F32Array) -> tuple[float, float]:
    """Square error of the estimates, and what is claimed over it."""
    sources = sources_of(name)
    out, deviation, tally, _ = run(method, sources, encode(sources, x), x.size)
    found = float(np.sum((out.astype(np.float64) - x.reshape(-1)) ** 2))
    assert np.isfinite(deviation).all()
    assert tally.variance == pytest.approx(np.sum(deviation.astype(np.float64) ** 2), rel=0.02)
    return found, tally.variance / found


@pytest.mark.quality
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", SPARSE)
def test_the_posterior_is_not_worse_than_linear(kind: str, name: str) -> None:
    x = SPARSE[kind]
    posterior, claims = error("posterior", name, x)
    assert posterior < error("linear", name, x)[0]
    assert 0.8 < claims < 1.75
    assert error("joint", name, x)[0] <= 1.002 * posterior


def test_a_spike_is_worth_much() -> None:
    """Half of the weights are known to be 0: a third of the error without that knowledge goes."""
    x, name = SPARSE["half"], "Q5_K+Q4_K+Q2_K"
    found, claims = error("posterior", name, x)
    assert found < 0.75 * error("linear", name, x)[0]
    assert claims == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", COARSE)
@pytest.mark.parametrize("kind", VERY_SPARSE)
def test_the_posterior_is_better_than_the_finest_input(kind: str, name: str) -> None:
    """It had up to 1.55 of its error: scales of 0 and end codes told wrong things of zeros."""
    x, sources = VERY_SPARSE[kind], sources_of(name)
    first = run("best", sources[:1], encode(sources[:1], x), x.size)[0]
    posterior = error("posterior", name, x)[0]
    assert posterior < 0.99 * np.sum((first.astype(np.float64) - x.reshape(-1)) ** 2)
    assert posterior < error("linear", name, x)[0]


@pytest.mark.parametrize("name", ["IQ4_XS+Q3_K", "Q4_K+Q3_K", "Q5_K+Q4_K+Q2_K", "Q8_0+Q4_K"])
def test_what_is_claimed_of_few_weights_is_right(name: str) -> None:
    """Scales are fitted to them alone: up to 1.51 was claimed when all weights counted."""
    assert error("posterior", name, SPARSE["most"])[1] == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("name", ["Q5_K+Q4_K+Q2_K", "Q4_K+Q2_K", "Q4_0+Q3_K"])
def test_estimates_beside_zeros_lie_in_their_cells(name: str) -> None:
    x, sources = VERY_SPARSE["heavy tails"], sources_of(name)
    assert run("posterior", sources, encode(sources, x), x.size)[3]


@pytest.mark.parametrize("scale", [1.0, 2.0**-6])
def test_zeros_are_all_but_zero(scale: float) -> None:
    x, sources = (SPARSE["half"] * scale).astype(np.float32), sources_of("Q5_K+Q4_K")
    out = run("posterior", sources, encode(sources, x), x.size)[0].reshape(SHAPE)
    zero = x == 0
    assert np.median(abs(out[zero])) < 1e-3 * np.std(x)


def test_weights_that_are_often_small_have_no_spike() -> None:
    """Heavy tails and outliers: the bulk is smooth, however fine it is beside the largest."""
    rng, sources = np.random.default_rng(3), sources_of("Q5_K+Q4_K")
    for x in (rng.laplace(size=SHAPE), rng.standard_t(3, SHAPE), normal(SEED)):
        weights = (0.03 * x).astype(np.float32)
        out = run("posterior", sources, encode(sources, weights), weights.size)[0]
        assert np.mean(abs(out) < 1e-4 * np.std(weights)) < 2e-3


SMOOTH = np.array(
    [
        [-5.5, -10.3, -5.2, -5.1, -9.5, -4.8, -4.7, -9.4],
        [-4.5, -4.4, -9.1, -4.2, -4.1, -8.8, -3.7, -3.7],
        [-8.7, -3.2, -4, -8.9, -3.1, -4.2, -9, -3.1],
        [-4.7, -10, -3.7, -5.1, -10.4, -4.3, -5.1, -10.7],
    ],
    np.float32,
)
"""Weights of a filter of a voice detector, from 3 to 11, of which most others were pruned."""


@pytest.mark.parametrize("name", ["Q5_K+Q4_K+Q2_K", "Q5_K*+Q4_K*+Q2_K*"])
def test_weights_that_are_all_of_a_sub_block_are_not_taken_for_zeros(name: str) -> None:
    """Those with the end code had an open cell with 0 in it, many steps beyond its last level."""
    x = np.zeros((1, 256), np.float32)
    x[0, 224:] = SMOOTH.reshape(-1)
    x[0, 217:224] = 0.8, 1.5, 1.5, 1.7, -1.4, -3.2, -0.8
    assert error("posterior", name, x)[0] < error("best", name, x)[0]

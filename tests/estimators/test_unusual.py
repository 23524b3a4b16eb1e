"""Weights of which all but a few are 0 or far smaller, and smooth ones beside outliers."""

import numpy as np
import pytest

from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.cells import intersect_cells
from recover.quants import F32Array
from tests.support.joint_inputs import encode, sources_of
from tests.support.sparse_weights import at_random, blocks_at_random, normal, pruned
from tests.support.unusual_weights import columns_times, filters, in_rows, weights_times


def estimated(method: str, name: str, x: F32Array) -> F32Array:
    """Estimates, which are within the cells of all inputs."""
    sources = sources_of(name)[: 1 if method == "best" else None]
    tile, out = UncorrectedTileEstimator(sources, method), np.empty(x.size, np.float32)
    tile.estimate(encode(sources, x), 0, x.size, out)
    if method in ("posterior", "joint"):
        lower, upper = np.empty((2, x.size), np.float32)
        intersect_cells(tile.evidence, lower, upper)
        assert np.all((lower <= out) & (out <= upper))
    return out


def error(method: str, name: str, x: F32Array) -> float:
    off = estimated(method, name, x).astype(np.float64) - x.reshape(-1)
    return float(np.sum(off**2))


@pytest.mark.parametrize("name", ["Q3_K*+Q2_K*", "Q3_K+Q2_K", "Q6_K+Q2_K", "Q6_K+Q3_K"])
@pytest.mark.parametrize("share", [0.97, 0.98])
def test_of_nearly_empty_weights_a_merge_is_not_worse_than_the_finest(
    share: float, name: str
) -> None:
    """It had up to 2.4 of its error: single weights were taken for 0 since all others were."""
    x = pruned(2, share)
    assert error("posterior", name, x) < error("best", name, x)


NEARLY_EMPTY = {
    "97% in rows": in_rows(normal(3), 0.97),
    "99%": at_random(normal(3), 0.99, 4),
    "far outliers": weights_times(normal(3), 0.001, 1000),
}


@pytest.mark.parametrize("kind", NEARLY_EMPTY)
@pytest.mark.parametrize("name", ["Q5_K+Q4_K+Q2_K", "Q4_K+Q2_K", "Q5_K*+Q4_K*+Q2_K*"])
def test_networks_leave_nearly_empty_superblocks_alone(name: str, kind: str) -> None:
    """They made up to ten times the posterior's error of it."""
    x = NEARLY_EMPTY[kind]
    assert error("joint", name, x) <= 1.002 * error("posterior", name, x)


def test_beside_outliers_smooth_weights_are_not_drawn_to_zero() -> None:
    """The posterior had 1.4 times the error of `linear`, and what was decoded told of a mean."""
    x, name = columns_times(filters(256, 3), 0.02, 30), "Q4_K+Q3_K"
    linear = error("linear", name, x)
    assert error("posterior", name, x) < 1.15 * linear
    assert error("joint", name, x) < 1.15 * linear


def test_wide_cells_beside_outliers_tell_no_zeros() -> None:
    """Two outliers of one block made all weights beside them seem to be exactly 0."""
    x = np.float32(1.5) * filters(64, 6) + np.float32(0.3)
    x[:, [5, 9]] *= 30
    decoded, out = (
        estimated(each, "Q4_K+Q3_K", x).reshape(x.shape) for each in ("best", "posterior")
    )
    beside = np.r_[0:5, 6:9, 10:16]
    alone, merged = (np.mean((each - x)[:, beside] ** 2) for each in (decoded, out))
    assert merged < 1.1 * alone


def test_beside_far_larger_offsets_estimates_lie_in_their_cells() -> None:
    """Those at an edge lay beyond it, by the rounding of the offset that it is the sum of."""
    x = (0.05 * np.random.default_rng(3).standard_normal((512, 256))).astype(np.float32)
    estimated("posterior", "Q5_K+Q4_K+Q2_K", columns_times(x, 0.01, 30))


@pytest.mark.parametrize("name", ["Q5_K+Q4_K+Q2_K", "Q4_0+Q3_K"])
def test_networks_leave_smooth_superblocks_alone(name: str) -> None:
    x = filters(256, 3)
    assert error("joint", name, x) <= 1.002 * error("posterior", name, x)


@pytest.mark.parametrize("name", ["Q5_K+Q4_K+Q2_K", "Q4_K+Q2_K", "Q5_K*+Q4_K*+Q2_K*"])
def test_networks_leave_smooth_blocks_among_zeros_alone(name: str) -> None:
    """Few groups are left to tell that they are smooth: they made 1.03 times the error of it."""
    x = blocks_at_random(filters(512, 3), 0.97, 6)
    assert error("joint", name, x) <= 1.002 * error("posterior", name, x)


@pytest.mark.parametrize("name", ["Q6_K+Q3_K", "Q3_K+Q2_K", "Q3_K*+Q2_K*"])
def test_networks_leave_smooth_weights_beside_outliers_alone(name: str) -> None:
    x = columns_times(filters(256, 3), 0.01, 30)
    assert error("joint", name, x) <= 1.002 * error("posterior", name, x)


SMOOTH = filters(256, 3)


@pytest.mark.parametrize(
    ("name", "x", "most"),
    [
        ("Q3_K*+Q2_K*", SMOOTH, 1),  # 1.18 when end codes said that weights are beyond
        ("Q3_K*+Q2_K*", blocks_at_random(SMOOTH, 0.97, 6), 1.05),
        ("Q3_K*+Q2_K*", in_rows(SMOOTH, 0.97), 1.1),  # 2.4
        ("IQ4_XS+Q3_K", columns_times(SMOOTH, 0.01, 30), 0.95),  # 1.28 without its sign
        ("Q3_K+Q2_K", columns_times(SMOOTH, 0.01, 30), 0.8),
        ("Q6_K+Q3_K", weights_times(SMOOTH, 0.001, 100), 0.8),
        ("Q4_K+Q2_K", columns_times(SMOOTH, 0.01, 100), 1),
        ("Q5_K+Q4_K", weights_times(SMOOTH, 0.001, 100), 0.8),  # 1.03 when lost ones were around 0
        ("Q5_K+Q4_K", columns_times(SMOOTH, 0.01, 30), 1),
    ],
)
def test_of_smooth_weights_the_posterior_is_no_worse_than_linear(
    name: str, x: F32Array, most: float
) -> None:
    assert error("posterior", name, x) < most * error("linear", name, x)


def test_beside_outliers_independent_weights_have_no_sign() -> None:
    """Smaller outliers, in groups that are not wide, do not tell that weights are smooth."""
    x = columns_times(normal(3), 0.01, 100)
    size = abs(estimated("posterior", "Q6_K+Q3_K", x).reshape(-1, 16))
    beside = size.max(1) > 3
    assert np.count_nonzero(beside) > 300
    assert np.mean(np.median(size, axis=1)[beside] < 0.004) > 0.95


@pytest.mark.parametrize("size", [1e-6, 3e-7])
@pytest.mark.parametrize("name", ["Q8_0+Q2_K", "Q8_0+Q6_K+Q5_K+Q4_K+Q2_K"])
def test_scales_that_float16_rounds_to_zero_prove_how_small_weights_are(
    name: str, size: float
) -> None:
    """Q8_0 has cells there; estimates by the other inputs lay up to 48 of their widths outside."""
    x = normal(3)
    x *= np.float32(size / np.std(x))
    assert error("posterior", name, x) < error("best", name, x)


@pytest.mark.parametrize("name", ["Q8_0+Q5_K", "Q8_0+Q4_K"])
def test_where_all_scales_are_zero_a_broken_minimum_leads_out_of_no_cell(name: str) -> None:
    """What its size may be rounded by is far more than the cells of the other input are wide."""
    x = (1e-8 * np.random.default_rng(1).standard_normal((4, 256))).astype(np.float32)
    sources = sources_of(name)
    raws = encode(sources, x)
    raws[1] = raws[1].copy()
    block = raws[1].reshape(4, -1)[1]
    block[2:4], block[4:16] = np.array([60000], np.float16).view(np.uint8), 0
    block[8:12] = 63  # integer minima of four sub-blocks
    tile, out = UncorrectedTileEstimator(sources, "posterior"), np.empty(x.size, np.float32)
    tile.estimate(raws, 0, x.size, out)
    lower, upper = np.empty((2, x.size), np.float32)
    intersect_cells(tile.evidence, lower, upper)
    assert np.abs(tile.evidence.offset[1]).max() > 1e6
    assert np.all((lower <= out) & (out <= upper) | (lower > upper))

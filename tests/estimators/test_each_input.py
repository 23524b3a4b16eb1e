"""What each input adds to the posterior: groups turned round, and groups that say nothing."""

import numpy as np
import pytest

from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Evidence
from recover.quants import GROUP, F32Array
from tests.support.joint_inputs import encode, sources_of

_SETS = ["Q5_K+Q4_K+Q2_K", "Q6_K+Q3_K", "Q8_0+Q6_K+Q3_K+Q2_K", "IQ4_XS+Q4_K", "Q4_0+Q5_1"]


def _weights() -> F32Array:
    """Weights (16, 256) with a superblock of zeros, a sub-block of zeros and an outlier."""
    x = (0.02 * np.random.default_rng(0).standard_t(5, (16, 256))).astype(np.float32)
    x[1], x[2, 32:64], x[3, 5] = 0, 0, 2
    return x


def _estimate(name: str, evidence: Evidence) -> F32Array:
    out = np.empty(evidence.codes.shape[1], np.float32)
    UncorrectedTileEstimator(sources_of(name), "posterior").estimate_from(evidence, out)
    return out


@pytest.mark.parametrize("name", _SETS)
def test_negative_scales_are_positive_ones_turned_round(name: str) -> None:
    x = _weights()
    estimator = UncorrectedTileEstimator(sources_of(name), "posterior")
    evidence = estimator.read(encode(sources_of(name), x), 0, x.size)
    estimates = _estimate(name, evidence)
    scale, offset = -evidence.scale, -evidence.offset
    turned = _estimate(name, evidence._replace(scale=scale, offset=offset))
    assert np.array_equal(turned, -estimates)
    some = np.where(np.arange(x.size // GROUP) % 3 == 0, np.float32(-1), np.float32(1))
    mixed = _estimate(
        name, evidence._replace(scale=some * evidence.scale, offset=some * evidence.offset)
    )
    assert np.array_equal(mixed, np.repeat(some, GROUP) * estimates)


@pytest.mark.parametrize("broken", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("name", ["Q5_K+Q4_K+Q2_K", "Q6_K+Q5_K+Q3_K"])
def test_groups_without_a_scale_say_nothing(name: str, broken: float) -> None:
    x = _weights()
    estimator = UncorrectedTileEstimator(sources_of(name), "posterior")
    evidence = estimator.read(encode(sources_of(name), x), 0, x.size)
    # The largest scale and minimum of a superblock tell how much the others were rounded.
    last = np.abs([evidence.scale[2], evidence.offset[2]]).reshape(2, -1, 16)
    smaller = (last < last.max(2, keepdims=True)).all(0).reshape(-1)
    lost = smaller & (np.arange(smaller.size) % 3 == 0)
    some, none = evidence.scale.copy(), evidence.scale.copy()
    some[2, lost], none[2] = broken, broken
    every, some, none = (
        _estimate(name, evidence._replace(scale=scale)).reshape(-1, GROUP)
        for scale in (evidence.scale, some, none)
    )
    plain = np.ones(smaller.size, bool)
    plain[16 : 4 * 16] = False  # of superblocks with zeros or outliers all groups count
    assert np.array_equal(some[plain & lost], none[plain & lost])
    assert np.array_equal(some[plain & ~lost], every[plain & ~lost])
    assert not np.array_equal(none[plain & ~lost], every[plain & ~lost])

"""Weights so small that float16 has few digits for the scales of superblocks."""

import numpy as np
import pytest

from recover.quants import F32Array
from tests.support.joint_inputs import measure


def weights(deviation: float, seed: int = 5) -> F32Array:
    x = deviation * np.random.default_rng(seed).standard_normal((768, 256))
    return x.astype(np.float32)


def errors(name: str, x: F32Array) -> list[float]:
    """Square errors by the finest input, posterior and joint."""
    return [measure(method, name, x)[0] for method in ("best", "posterior", "joint")]


@pytest.mark.parametrize(("name", "most"), [("Q6_K+Q4_K", 0.74), ("Q6_K+Q3_K", 0.81)])
def test_end_codes_reach_further(name: str, most: float) -> None:
    """Their likelihood was that of scales with all digits: 0.86 and 0.96 of the finest."""
    finest, posterior, _ = errors(name, weights(0.0005))
    assert posterior < most * finest


@pytest.mark.parametrize("name", ["Q6_K+Q4_K", "Q6_K+Q5_0", "Q8_0+Q6_K", "Q6_K+Q3_K"])
@pytest.mark.parametrize("deviation", [0.005, 0.003, 0.001])
def test_claims(deviation: float, name: str) -> None:
    """0.75 to 0.98 was claimed by the posterior."""
    x = weights(deviation)
    claims = [measure(method, name, x)[1] for method in ("posterior", "joint")]
    np.testing.assert_allclose(claims, 1, atol=0.03)


@pytest.mark.parametrize("name", ["Q8_0+Q6_K", "Q6_K+Q6_K*", "Q6_K+Q5_0", "Q5_1+Q5_0+IQ4_XS"])
@pytest.mark.parametrize("deviation", [0.003, 0.001])
def test_networks_leave_them_alone(deviation: float, name: str) -> None:
    """They made up to 4% more of the posterior's error."""
    _, posterior, joint = errors(name, weights(deviation))
    assert joint < 1.002 * posterior


@pytest.mark.parametrize("name", ["Q5_K+Q4_K", "Q6_K+Q4_K"])
def test_others_are_corrected(name: str) -> None:
    _, posterior, joint = errors(name, weights(0.006))
    assert joint < 0.98 * posterior


@pytest.mark.parametrize("name", ["Q8_0+Q4_K", "Q8_0+Q6_K", "Q8_0"])
def test_scales_that_are_rounded_to_zero_tell_no_size(name: str) -> None:
    """The middle of what they prove was taken: 200 times the error of 0."""
    finest, posterior, joint = errors(name, weights(1e-9))
    assert posterior == joint == finest


@pytest.mark.parametrize("name", ["Q6_K*+Q3_K*", "Q6_K*+Q4_K*"])
def test_scales_that_are_a_little_off_are_as_often_too_large(name: str) -> None:
    """That end codes reach further made 1% more of the error of this one."""
    finest, posterior, _ = errors(name, weights(0.002))
    most = {"Q6_K*+Q3_K*": 0.9385, "Q6_K*+Q4_K*": 0.88}[name]
    assert posterior < most * finest

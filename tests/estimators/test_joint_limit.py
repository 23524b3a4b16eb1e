"""The chains that show how good an estimate can be."""

import numpy as np

from tests.support.joint_chains import Chains
from tests.support.joint_inputs import encode, sources_of


def test_chains_move_where_encoders_make_the_same_bytes() -> None:
    sources, rng = sources_of("Q5_K+Q4_K+Q2_K"), np.random.default_rng(4)
    x = (0.02 * rng.standard_normal((3, 256))).astype(np.float32)
    chains = Chains(sources, x, rng)
    sums = chains.collect(20)
    for before, after in zip(encode(sources, x), encode(sources, chains.x), strict=True):
        np.testing.assert_array_equal(before, after)
    assert 0.1 < chains.n_kept / chains.n_tried < 0.9
    assert np.mean(chains.x != x) > 0.3
    variance = sums.second / sums.n - (sums.first / sums.n) ** 2
    assert np.all(variance > -1e-12)


def test_chains_keep_to_the_prior() -> None:
    # A single type has cells so wide at the ends that the prior alone holds the weights.
    rng = np.random.default_rng(5)
    x = (0.02 * rng.standard_normal((8, 256))).astype(np.float32)
    chains = Chains(sources_of("Q2_K"), x, rng)
    chains.collect(60)
    assert 0.8 < np.mean(chains.x**2) / np.mean(x**2) < 1.2

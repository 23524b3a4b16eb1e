"""Weights beside an outlier, whose size is told by the other sub-blocks of the superblock."""

import numpy as np
import pytest

from recover.quants import F32Array
from tests.support.joint_inputs import encode, run, sources_of

OUTLIER = 5, 3  # group and place


def beside(x: F32Array, name: str) -> tuple[float, float]:
    """Of weights beside the outlier: claimed over measured error, and error over mean square."""
    sources = sources_of(name)
    out, deviation, _, _ = run("posterior", sources, encode(sources, x), x.size)
    group, place = OUTLIER
    others = np.arange(16) != place
    errors, claims, squares = (
        np.mean(np.square(each, dtype=np.float64).reshape(-1, 16, 16)[:, group, others])
        for each in (out.reshape(x.shape) - x, deviation, x)
    )
    return float(claims / errors), float(errors / squares)


def superblocks(sizes: F32Array) -> F32Array:
    """Normal weights of such sizes (n, 16) by group, and an outlier in each superblock."""
    rng = np.random.default_rng(7)
    x = sizes.repeat(16, 1) * rng.standard_normal((len(sizes), 256))
    x[:, 16 * OUTLIER[0] + OUTLIER[1]] = 40 * np.sqrt(np.mean(sizes**2, 1)) + 1e-3
    return x.astype(np.float32)


@pytest.mark.parametrize("name", ["Q6_K+Q4_K", "Q5_K+Q4_K+Q2_K"])
def test_sub_blocks_of_many_sizes(name: str) -> None:
    sizes = 0.02 * np.exp(np.random.default_rng(8).normal(0, 0.7, (1024, 16)))
    claimed, _ = beside(superblocks(sizes.astype(np.float32)), name)
    assert 0.85 < claimed < 1.15


def test_sub_blocks_of_one_size() -> None:
    claimed, _ = beside(superblocks(np.full((1024, 16), 0.02, np.float32)), "Q6_K+Q4_K")
    assert 0.85 < claimed < 1.1


def test_dead_sub_blocks_make_small_weights_likely() -> None:
    sizes = np.where(np.arange(16) < 8, 0.02, 0).astype(np.float32)
    sizes = np.array([np.random.default_rng(i).permutation(sizes) for i in range(1024)])
    claimed, _ = beside(superblocks(sizes), "Q6_K+Q4_K")
    assert 0.8 < claimed < 1.5  # 2.1 with the typical size

"""Sub-blocks with small integer scales, beside sub-blocks with outliers."""

import numpy as np
import pytest

from recover.quants import F32Array, quantize
from tests.support.joint_inputs import run, sources_of
from tests.support.kinds import scalar

MOST = {"Q5_K+Q4_K+Q2_K": (0.55, 0.2), "Q6_K+Q4_K": (0.68, 0.6), "IQ4_XS+Q3_K": (0.76, 0.45)}
"""Of each set, what error and claim are of groups beside the large sub-block; with reaches that do
not depend on the scales they were 0.70, 0.10; 0.79, 0.34; 0.79, 0.40."""


@pytest.fixture(scope="module")
def coarse() -> F32Array:
    """Superblocks of normal weights, with a first sub-block about 20 times as large."""
    rng = np.random.default_rng(11)
    x = 0.02 * rng.standard_normal((512, 256))
    x[:, :32] *= rng.uniform(8, 40, (512, 1))
    return x.astype(np.float32)


def figures(name: str, x: F32Array, part: slice) -> tuple[float, float]:
    """Of some columns: square error over that of the finest input, claimed over measured error."""
    sources = sources_of(name)
    raws = [quantize(x, each.type) for each in sources]
    out, deviation, _, _ = run("posterior", sources, raws, x.size)
    first = run("best", sources[:1], raws[:1], x.size)[0]
    off, alone = ((each.reshape(x.shape) - x)[:, part] for each in (out, first))
    error = np.sum(np.square(off, dtype=np.float64))
    claimed = np.sum(np.square(deviation.reshape(x.shape)[:, part], dtype=np.float64))
    return float(error / np.sum(np.square(alone, dtype=np.float64))), float(claimed / error)


@pytest.mark.parametrize("name", MOST)
def test_clipped_weights_are_looked_for_beyond_the_end_codes(name: str, coarse: F32Array) -> None:
    ratio, claimed = figures(name, coarse, slice(32, 256))
    most, least = MOST[name]
    assert ratio < most
    assert claimed > least


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_the_largest_scale_of_a_superblock_has_the_largest_integer(name: str) -> None:
    """All others are whole multiples of what that says the superblock's scale is."""
    kind = scalar(name)
    sizes = np.exp2(np.linspace(-5, 0, 16)).repeat(16)
    x = (sizes * np.random.default_rng(2).standard_normal((64, 256))).astype(np.float32)
    codes, (scale, offset) = np.empty(x.size, np.uint8), np.empty((2, x.size // 16), np.float32)
    kind.unpack(quantize(x, kind), codes, scale, offset)
    size = np.abs(scale.reshape(-1, 16))
    integers = kind.scale_steps * size / size.max(1, keepdims=True)
    assert np.abs(integers - np.rint(integers)).max() < 1e-3

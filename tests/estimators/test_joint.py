"""The method `joint`: what its networks gain, and where they are left alone."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from recover._compiled.jit import bare_kernel
from recover.estimators._joint_net import Network, Scratch, infer, new_scratch
from recover.estimators.methods.joint import network, network_name, network_names
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.quants import F32Array
from tests.naive import joint_network
from tests.oracle.weights import gguf_weights
from tests.support.joint_inputs import encode, hard_weights, run, sources_of
from tests.support.models import DATA, TINY

FOLDER = DATA / "joint"
N_ROWS = 1024


@cache
def weights() -> F32Array:
    """Rows of a model that the networks have not learned from."""
    rows = [x.reshape(-1, 256) for x in gguf_weights(TINY) if x.shape[1] % 256 == 0]
    whole = np.concatenate(rows)
    return np.ascontiguousarray(whole[np.random.default_rng(1).permutation(len(whole))[:N_ROWS]])


def square_error(values: F32Array, x: F32Array) -> float:
    return float(np.sum((values.astype(np.float64) - x.reshape(-1)) ** 2))


@pytest.mark.quality
@pytest.mark.parametrize("name", network_names())
def test_each_network_gains_a_percent_and_claims_what_it_does(name: str) -> None:
    sources, x = sources_of(name), weights()
    raws = encode(sources, x)
    before = square_error(run("posterior", sources, raws, x.size)[0], x)
    out, deviation, tally, inside = run("joint", sources, raws, x.size)
    after = square_error(out, x)
    assert inside
    assert after < 0.99 * before
    assert abs(tally.variance / after - 1) < 0.03
    assert abs(np.sum(deviation.astype(np.float64) ** 2) / after - 1) < 0.03
    alone = [
        square_error(run("best", [each], [raw], x.size)[0], x)
        for each, raw in zip(sources, raws, strict=True)
    ]
    np.testing.assert_allclose(tally.alone, alone, rtol=0.03)


def test_the_best_known_set_reaches_what_was_asked_for() -> None:
    sources, x = sources_of("Q5_K+Q4_K+Q2_K"), weights()
    raws = encode(sources, x)
    first = square_error(run("best", sources, raws, x.size)[0], x)
    assert square_error(run("joint", sources, raws, x.size)[0], x) < 0.728 * first


def test_other_sets_get_the_posterior() -> None:
    x = weights()[:16]
    for name in ("Q5_K+Q3_K", "Q5_K+Q4_K+Q2_K+Q2_K", "Q5_K", "Q4_K+Q5_K"):
        sources = sources_of(name)
        raws = encode(sources, x)
        assert network_name(sources) is None
        got, expected = (run(method, sources, raws, x.size) for method in ("joint", "posterior"))
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])
        np.testing.assert_array_equal(got[2].array, expected[2].array)


def test_which_network_serves_which_inputs() -> None:
    plain, weighted = sources_of("Q6_K+Q4_K"), sources_of("Q6_K+Q4_K weighted")
    assert network_name(plain) == "Q6_K+Q4_K"
    assert network_name(weighted) == "Q6_K+Q4_K weighted"
    assert network_name([plain[0], weighted[1]]) is None
    assert network_name([weighted[0], replace(weighted[1], imatrix="another")]) is None
    assert network_name([replace(plain[0], noise=0.1), plain[1]]) is None
    assert network_name([replace(plain[0], density=((0.0,) * 5,) * 4), plain[1]]) is None
    five = sources_of("Q8_0+Q6_K+Q5_K+Q4_K+Q2_K")
    assert network_name([replace(five[0], weighted=True), *five[1:]]) is not None
    assert network_name(()) is None


@pytest.mark.parametrize("kind", hard_weights())
def test_on_hard_weights_it_is_in_the_cells_and_not_worse(kind: str) -> None:
    x = hard_weights()[kind]
    for name in ("Q5_K+Q4_K+Q2_K", "Q6_K+Q4_K", "Q8_0+Q6_K+Q5_K+Q4_K+Q2_K"):
        sources = sources_of(name)
        raws = encode(sources, x)
        before = square_error(run("posterior", sources, raws, x.size)[0], x)
        out, deviation, _, inside = run("joint", sources, raws, x.size)
        assert inside
        assert square_error(out, x) <= 1.002 * before
        assert np.isfinite(deviation).all()


def test_weights_of_one_sign_are_left_alone() -> None:
    x = hard_weights()["one sign"]
    sources = sources_of("Q5_K+Q4_K+Q2_K")
    raws = encode(sources, x)
    got, expected = (run(method, sources, raws, x.size)[0] for method in ("joint", "posterior"))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_tensors_of_a_tile_are_counted_apart() -> None:
    sources, x = sources_of("Q5_K+Q4_K"), weights()[:8]
    raws = encode(sources, x)
    tile = UncorrectedTileEstimator(sources, "joint")
    out = np.empty(x.size, np.float32)
    each = tile.estimate_each(raws, 0, x.size, 2, out, np.empty_like(out))
    half = x.size // 2
    for i in range(2):
        part = np.empty(half, np.float32)
        one = tile.estimate(raws, i * half, (i + 1) * half, part, np.empty_like(part))
        np.testing.assert_array_equal(part, out[i * half : (i + 1) * half])
        np.testing.assert_allclose(one.array, each[i], rtol=1e-12)


def test_broken_scales_are_left_to_the_posterior() -> None:
    sources, x = sources_of("Q5_K+Q4_K+Q2_K"), weights()[:4]
    raws = [raw.copy() for raw in encode(sources, x)]
    raws[1].reshape(4, -1)[2, :2] = 0xFF  # the scale of a superblock is NaN
    got, expected = (run(method, sources, raws, x.size)[0] for method in ("joint", "posterior"))
    part = slice(512, 768)
    np.testing.assert_allclose(got[part], expected[part], rtol=1e-6)
    assert np.isfinite(got).all()


@bare_kernel
def _infer(network: Network, told: F32Array, of_groups: F32Array, scratch: Scratch) -> None:
    infer(network, told, of_groups, scratch)


@pytest.mark.parametrize("name", ["Q5_K+Q4_K", "Q8_0+Q6_K+Q5_K+Q4_K+Q2_K weighted"])
def test_a_network_is_what_its_layers_say(name: str) -> None:
    known, rng = network(name), np.random.default_rng(4)
    by_weight = rng.standard_normal((16, known.weights.n_in, 16)).astype(np.float32)
    by_group = rng.standard_normal((known.groups.n_in, 16)).astype(np.float32)
    scratch = new_scratch(known)
    _infer(known, by_weight.reshape(-1), by_group.reshape(-1), scratch)
    types, _, weighted = name.partition(" ")
    file = "-".join([*types.split("+"), *weighted.split()]) + ".npz"
    with np.load(FOLDER / file) as arrays:
        corrections, factors = joint_network.infer(arrays, by_weight, by_group)
    got = scratch.result.reshape(16, 2, 16)
    np.testing.assert_allclose(got[:, 0].reshape(-1), corrections, atol=1e-4)
    np.testing.assert_allclose(got[:, 1].reshape(-1), factors, atol=1e-4)


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6_000_000

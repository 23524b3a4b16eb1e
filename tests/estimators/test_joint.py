"""The method `joint`: what its networks gain, and where they are left alone."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from recover._compiled.jit import bare_kernel
from recover.estimators._joint_features import shapes_of_layers
from recover.estimators._joint_files import fits, label_of, labels, network_of, serving, terms_of
from recover.estimators._joint_net import Network, Scratch, infer, new_scratch
from recover.estimators.methods.joint import names_of, terms_for
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.quants import F32Array
from tests.naive import joint_network
from tests.oracle.weights import gguf_weights
from tests.support.joint_inputs import encode, hard_weights, measure, run, sources_of
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


SETS = labels()
# All that have a network of their own, and some of those that share one.
SOME = (*SETS[:15], *SETS[15::120])


@pytest.mark.quality
@pytest.mark.parametrize("name", SOME)
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
    for name in ("Q5_1+Q5_0", "Q5_K+Q4_K+Q2_K+Q2_K", "Q5_K", "Q4_K+Q5_K", "Q8_0+Q3_K"):
        sources = sources_of(name)
        raws = encode(sources, x)
        assert terms_for(sources) is None
        got, expected = (run(method, sources, raws, x.size) for method in ("joint", "posterior"))
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])
        np.testing.assert_array_equal(got[2].array, expected[2].array)


def test_which_network_serves_which_inputs() -> None:
    plain, weighted = sources_of("Q6_K+Q4_K"), sources_of("Q6_K*+Q4_K*")
    assert names_of(plain) == ("Q6_K", "Q4_K")
    assert names_of(weighted) == ("Q6_K*", "Q4_K*")
    assert names_of([plain[0], weighted[1]]) == ("Q6_K", "Q4_K*")
    assert names_of([weighted[0], replace(weighted[1], imatrix="another")]) == ("Q6_K*", "Q4_K**")
    assert names_of([replace(plain[0], noise=0.1), plain[1]]) is None
    assert names_of([replace(plain[0], density=((0.0,) * 5,) * 4), plain[1]]) is None
    assert names_of([replace(plain[0], has_cells=False), plain[1]]) is None
    five = sources_of("Q8_0+Q6_K+Q5_K+Q4_K+Q2_K")
    assert names_of([replace(five[0], weighted=True), *five[1:]]) == names_of(five)
    assert terms_for(five) is not None
    assert terms_for(()) is None
    own, shared = serving("Q5_K+Q4_K"), serving("Q5_K+Q3_K")
    assert own is not None
    assert not own.for_any
    assert shared is not None
    assert shared.for_any


def test_equal_sets_have_one_label() -> None:
    assert label_of(["Q5_K", "Q4_K**", "Q4_K*"]) == "Q5_K+Q4_K*+Q4_K**"
    assert label_of(["Q5_K**", "Q5_K*", "Q4_K**"]) == "Q5_K*+Q5_K**+Q4_K*"
    assert label_of(["Q5_K*", "Q5_K**", "Q4_K*"]) == "Q5_K*+Q5_K**+Q4_K*"
    assert label_of(["Q4_K*", "Q4_K"]) == "Q4_K+Q4_K*"
    assert label_of(["Q4_K*****", "Q4_K*", "Q4_K**", "Q4_K***", "Q4_K****"]) == ""
    assert all(label_of(label.split("+")) == label for label in SETS)


def test_inputs_of_one_type_may_come_in_any_order() -> None:
    x, sources = weights()[:64], sources_of("Q4_K+Q4_K*+Q3_K")
    raws = encode(sources, x)
    one = run("joint", sources, raws, x.size)[0]
    other = run("joint", [sources[i] for i in (1, 0, 2)], [raws[i] for i in (1, 0, 2)], x.size)[0]
    assert square_error(other, x) == pytest.approx(square_error(one, x), rel=0.01)


@pytest.mark.parametrize("kind", hard_weights())
def test_on_hard_weights_it_is_in_the_cells_and_not_worse(kind: str) -> None:
    x = hard_weights()[kind]
    own = "Q5_K+Q4_K+Q2_K", "Q6_K+Q4_K", "Q8_0+Q6_K+Q5_K+Q4_K+Q2_K"
    for name in (*own, "Q4_K+Q3_K", "IQ4_XS+Q3_K", "Q5_1+Q4_K+Q2_K", "Q4_K+Q4_K*"):
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


@pytest.mark.parametrize("name", ["Q5_K*+Q4_K*+Q2_K*", "Q4_K*+Q2_K*"])
def test_weights_beside_zeros_of_one_sign_are_left_alone(name: str) -> None:
    """As after a rectifier: the networks made up to 5% more of the posterior's error of these."""
    drawn = 0.02 * np.random.default_rng(5).standard_t(4, (512, 256)) - 0.008
    x = np.maximum(drawn, 0).astype(np.float32)
    joint, posterior = (measure(method, name, x)[0] for method in ("joint", "posterior"))
    assert joint < 1.002 * posterior


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


def _check(terms: Mapping[str, F32Array]) -> None:
    """That a network is what its layers say, of numbers that are drawn."""
    known, rng = network_of(terms), np.random.default_rng(4)
    by_weight = rng.standard_normal((16, known.weights.n_in, 16)).astype(np.float32)
    by_group = rng.standard_normal((known.groups.n_in, 16)).astype(np.float32)
    scratch = new_scratch(known)
    _infer(known, by_weight.reshape(-1), by_group.reshape(-1), scratch)
    corrections, factors = joint_network.infer(terms, by_weight, by_group)
    got = scratch.result.reshape(16, 2, 16)
    np.testing.assert_allclose(got[:, 0].reshape(-1), corrections, atol=1e-4)
    np.testing.assert_allclose(got[:, 1].reshape(-1), factors, atol=1e-4)


@pytest.mark.parametrize("name", ["Q5_K+Q4_K", "Q4_K*+IQ4_XS*+Q3_K*", "Q4_K+IQ4_XS+Q4_0"])
def test_a_network_is_what_its_layers_say(name: str) -> None:
    entry, names = serving(name), tuple(name.split("+"))
    assert entry is not None
    _check(terms_of(entry, names))


@pytest.mark.parametrize("width", [16, 24, 48, 64])
def test_networks_of_other_widths_are_what_their_layers_say(width: int) -> None:
    rng, terms = np.random.default_rng(width), dict[str, F32Array]()
    for name, (n_out, n_in) in shapes_of_layers(width, 3, 2).items():
        terms[f"{name}.weight"] = rng.standard_normal((n_out, n_in), np.float32) / n_in**0.5
        terms[f"{name}.bias"] = rng.standard_normal(n_out, np.float32)
    assert fits(terms, 2)
    _check(terms)


_ELSEWHERE = """
import sys
import pytest
import recover._compiled.vectors as vectors
vectors.HELD = 8 if vectors.HELD > 16 else 32
from recover.estimators._joint_net import _ROWS
assert _ROWS == (8 if vectors.HELD > 16 else 4)
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_network_is_what_its_layers_say_with_more_or_fewer_registers(tmp_path: Path) -> None:
    arguments = ["-p", "no:cacheprovider", __file__, "-k", "what_its_layers_say and not registers"]
    subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, *arguments],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        check=True,
    )


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6_000_000

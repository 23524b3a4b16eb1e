"""What networks learn from: weights of many kinds, and what they are told of them."""

import numpy as np
import pytest

from recover.quants import dequantize, quantize, type_by_name
from recover.training import simulate
from recover.training.simulate import draw, draw_importance, pool_from, source_of
from tests.support.gguf_files import F32Array

N = 32


@pytest.fixture(scope="module")
def pool() -> F32Array:
    """Weights as trained ones are: of many sizes, few of them large."""
    rng = np.random.default_rng(1)
    sizes = np.exp(rng.normal(0, 0.3, (64, 1)))
    return (0.02 * sizes * rng.standard_t(6, (64, 256))).astype(np.float32)


def test_errors_are_what_the_deviations_say(pool: F32Array) -> None:
    x = pool[:N]
    batch = simulate.simulate(x, ("Q5_K", "Q4_K"))
    assert batch.target.shape == batch.deviation.shape == x.shape
    assert (batch.deviation > 0).all()
    assert np.mean(batch.target**2) == pytest.approx(1, abs=0.15)
    assert np.isfinite(batch.by_weight.view(np.float16)).all()
    assert np.isfinite(batch.by_group.view(np.float16)).all()
    kind = type_by_name("Q5_K")
    off = dequantize(quantize(x, kind).reshape(-1), kind).reshape(x.shape) - x
    np.testing.assert_allclose(batch.alone, np.sum(off**2, axis=1), rtol=1e-5)


def test_importance_matrices_change_codes(pool: F32Array) -> None:
    rng = np.random.default_rng(2)
    importance = draw_importance(rng, n=N, missing=0.5)
    has_none = np.isnan(importance[0]).all(axis=1)
    assert 0 < has_none.sum() < N
    assert source_of("Q4_K*").weighted
    assert not source_of("Q4_K").weighted
    plain, weighted = (
        simulate.simulate(pool[:N], names, importance)
        for names in (("Q5_K", "Q4_K"), ("Q5_K", "Q4_K*"))
    )
    np.testing.assert_array_equal(plain.alone, weighted.alone)
    differs = (plain.target != weighted.target).any(axis=1)
    assert differs[~has_none].mean() > 0.9


def test_all_kinds_of_weights_are_drawn(pool: F32Array) -> None:
    rng = np.random.default_rng(3)
    many = np.concatenate([draw(rng, pool, N) for _ in range(12)])
    assert many.shape == (12 * N, 256)
    assert np.isfinite(many).all()
    assert (many == 0).mean(axis=1).max() > 0.3  # pruned ones
    peaks = np.abs(many).max(1) / np.sqrt(np.mean(many**2, axis=1))
    assert peaks.max() > 10  # outliers
    assert np.median(peaks) < 6


@pytest.mark.parametrize("kind", ["float16", "bits of bfloat16"])
def test_pools_of_files(
    kind: str, pool: F32Array, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("pool") / "pool.npy"
    is_bits = kind != "float16"
    stored = (pool.view(np.uint32) >> 16).astype(np.uint16) if is_bits else pool.astype(np.float16)
    np.save(path, stored.reshape(-1, 512))
    np.testing.assert_allclose(pool_from(str(path)), pool, rtol=2**-7, atol=1e-6)

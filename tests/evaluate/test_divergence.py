"""Divergence against its definitions in numpy, on logits that another binding of llama.cpp gave."""

from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

import recover
from recover import EvaluationError
from recover.evaluate.divergence import Divergence, mean_interval
from recover.evaluate.llama_cpp import LlamaModel
from recover.evaluate.reference import ReferenceLogits
from recover.evaluate.token_figures import compare_chunk
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from tests.oracle import llama_cpp as oracle
from tests.support.gguf_files import read_weights
from tests.support.models import SHARED, TINY
from tests.support.text import some_text, write_model

pytestmark = pytest.mark.inference

N_CTX, N_CHUNKS, N_SCORED = 64, 6, 31

# One thread: the model is small, and llama.cpp's threads wait for each other without sleeping.
measure_divergence = partial(recover.measure_divergence, n_threads=1)

Logits = NDArray[np.float64]


@pytest.fixture(scope="module")
def measured(tiny_module: list[Path], text: Path) -> list[Divergence]:
    return measure_divergence(tiny_module, TINY, text, n_ctx=N_CTX, n_chunks=N_CHUNKS)


@pytest.fixture(scope="module")
def tiny_module(tiny: list[Path]) -> list[Path]:
    return [tiny[0], tiny[2], TINY]


def run(path: Path, text: Path, n_chunks: int = N_CHUNKS) -> tuple[Logits, NDArray[np.int32]]:
    """Logits of the second halves, and the chunks, both by the tests' own binding."""
    with oracle.LlamaModel(path, n_ctx=N_CTX) as model:
        chunks = oracle.text_chunks(model, text.read_text(encoding="utf-8"), N_CTX, n_chunks)
        rows = [model.logits(chunk[:-1], N_CTX // 2) for chunk in chunks]
    return np.stack(rows).astype(np.float64), chunks


def log_softmax(logits: Logits) -> Logits:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def divergence_by_definition(truth: Logits, model: Logits) -> NDArray[np.float64]:
    p, q = log_softmax(truth), log_softmax(model)
    return (np.exp(p) * (p - q)).sum(axis=-1).reshape(-1)


def nll_by_definition(logits: Logits, following: NDArray[np.int32]) -> NDArray[np.float64]:
    return -np.take_along_axis(log_softmax(logits), following[..., None], -1).reshape(-1)


def figures_by_definition(
    truth: Logits, model: Logits, chunks: NDArray[np.int32]
) -> dict[str, float]:
    following = chunks[:, N_CTX // 2 + 1 :]
    kl = divergence_by_definition(truth, model)
    nll_truth, nll = (nll_by_definition(each, following) for each in (truth, model))
    top = truth.argmax(axis=-1)[..., None]
    best = np.argsort(-model, axis=-1, kind="stable")
    covariance = np.cov(nll, nll_truth)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return {
        "n_tokens": kl.size,
        "mean_kld": kl.mean(),
        "kld_median": np.quantile(kl, 0.5),
        "kld_p90": np.quantile(kl, 0.9),
        "kld_p95": np.quantile(kl, 0.95),
        "kld_p99": np.quantile(kl, 0.99),
        "kld_max": kl.max(),
        "same_top": (best[..., :1] == top).any(axis=-1).mean(),
        "top1_in_top5": (best[..., :5] == top).any(axis=-1).mean(),
        "top1_in_top10": (best[..., :10] == top).any(axis=-1).mean(),
        "kld_p999": np.quantile(kl, 0.999),
        "rms_delta_p": np.sqrt(np.mean((np.exp(-nll) - np.exp(-nll_truth)) ** 2)),
        "ppl": np.exp(nll.mean()),
        "ppl_truth": np.exp(nll_truth.mean()),
        "ln_ppl_ratio": np.log(np.exp(nll.mean()) / np.exp(nll_truth.mean())),
        "ln_ppl_ratio_se": np.sqrt(variance / kl.size),
    }


@pytest.fixture(scope="module")
def runs(
    tiny_module: list[Path], text: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Logits, NDArray[np.int32]]]:
    """The same models, dequantized to F32 by gguf-py, in the tests' own binding."""
    folder = tmp_path_factory.mktemp("dequantized")
    return [
        run(write_model(folder / f"{i}.gguf", TINY, read_weights(path)), text)
        for i, path in enumerate(tiny_module)
    ]


@pytest.mark.parametrize("index", [0, 1])
def test_definitions(
    index: int, measured: list[Divergence], runs: list[tuple[Logits, NDArray[np.int32]]]
) -> None:
    (model, chunks), (truth, _) = runs[index], runs[2]
    for name, value in figures_by_definition(truth, model, chunks).items():
        assert getattr(measured[index], name) == pytest.approx(value, rel=1e-9), name
    kl = divergence_by_definition(truth, model)
    interval = scipy.stats.bayes_mvs(kl, 0.99)[0].minmax
    assert measured[index].mean_kld_ci99 == pytest.approx(interval, rel=1e-9)
    assert interval[0] < measured[index].mean_kld < interval[1]


def test_per_token(
    measured: list[Divergence], runs: list[tuple[Logits, NDArray[np.int32]]], text: Path
) -> None:
    (model, chunks), (truth, _) = runs[0], runs[2]
    found = measured[0].per_token
    following = chunks[:, N_CTX // 2 + 1 :]
    np.testing.assert_allclose(found.kl, divergence_by_definition(truth, model), atol=1e-12)
    np.testing.assert_allclose(found.nll, nll_by_definition(model, following), rtol=1e-12)
    np.testing.assert_allclose(found.nll_truth, nll_by_definition(truth, following), rtol=1e-12)
    positions = np.arange(N_CTX // 2, N_CTX - 1)
    np.testing.assert_array_equal(found.position, np.tile(positions, N_CHUNKS))
    with oracle.LlamaModel(TINY) as tokenizer:
        n_all = tokenizer.tokenize(text.read_text(encoding="utf-8")).size // N_CTX
    numbers = np.floor(np.linspace(0, n_all - 1, N_CHUNKS)).astype(int)
    assert n_all > 2 * N_CHUNKS
    np.testing.assert_array_equal(found.chunk, np.repeat(numbers, N_SCORED))


def test_a_file_against_itself(measured: list[Divergence]) -> None:
    same = measured[2]
    assert same.kld_max < 1e-6
    assert same.mean_kld_ci99 == (0, 0)
    assert same.same_top == same.top1_in_top5 == 1
    assert same.ppl == same.ppl_truth
    assert (same.ln_ppl_ratio, same.ln_ppl_ratio_se) == (0, 0)


def test_paired_with_the_first(measured: list[Divergence]) -> None:
    first, other, same = measured
    assert first.paired is None
    assert other.paired is not None
    assert same.paired is not None
    difference = other.per_token.kl - first.per_token.kl
    assert other.paired.mean_kld_difference == pytest.approx(other.mean_kld - first.mean_kld)
    interval = scipy.stats.bayes_mvs(difference, 0.99)[0].minmax
    assert other.paired.mean_kld_difference_ci99 == pytest.approx(interval)
    of_chunks = difference.reshape(N_CHUNKS, N_SCORED).mean(axis=1)
    interval = scipy.stats.bayes_mvs(of_chunks, 0.99)[0].minmax
    assert other.paired.mean_kld_difference_ci99_by_chunk == pytest.approx(interval)
    assert other.paired.mean_kld_ratio == pytest.approx(other.mean_kld / first.mean_kld)
    assert same.paired.mean_kld_ratio == 0


def test_all_chunks(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text(some_text(60), encoding="utf-8")
    said: list[str] = []
    results = [
        measure_divergence([TINY], TINY, path, n_ctx=32, n_chunks=n, notify=said.append)[0]
        for n in (None, 1000)
    ]
    assert results[0] == results[1]
    assert results[0].n_tokens % 15 == 0
    assert results[0].n_tokens // 15 == np.unique(results[0].per_token.chunk).size > 2
    assert said == [f"{path} has {results[0].n_tokens // 15} chunks, not 1000; all are taken"]


def test_threads_do_not_change_figures(
    tiny: list[Path], text: Path, measured: list[Divergence]
) -> None:
    for n_threads in (2, 3):
        (result,) = measure_divergence(
            tiny[:1], TINY, text, n_ctx=N_CTX, n_chunks=N_CHUNKS, n_threads=n_threads
        )
        assert result == measured[0]


def test_native_runs_the_file_as_it_is(
    tiny: list[Path], text: Path, runs: list[tuple[Logits, NDArray[np.int32]]]
) -> None:
    (result,) = measure_divergence(
        tiny[:1], TINY, text, n_ctx=N_CTX, n_chunks=N_CHUNKS, native=True
    )
    kl = divergence_by_definition(runs[2][0], run(tiny[0], text)[0])
    np.testing.assert_allclose(result.per_token.kl, kl, atol=1e-12)


def test_merged_files_in_f16_run_as_they_are(tiny: list[Path], text: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged.gguf"
    execute_merge(plan_merge(tiny, merged))
    results = [
        measure_divergence([merged], TINY, text, n_ctx=N_CTX, n_chunks=2, native=native)
        for native in (False, True)
    ]
    assert results[0] == results[1]


def test_a_message_about_the_context(text: Path) -> None:
    said: list[str] = []
    results = measure_divergence(
        [TINY, TINY], TINY, text, n_ctx=300, n_chunks=1, notify=said.append
    )
    assert results[1].paired is not None
    assert results[1].paired.mean_kld_difference_ci99_by_chunk is None
    assert said == [f"warning: {TINY} was trained on a context of 256 tokens; --n-ctx is 300"]


Usage = namedtuple("Usage", "total used free")


def leave_space(monkeypatch: pytest.MonkeyPatch, *spare: int) -> None:
    """Pretend that so many bytes are left for dequantized models, and then for logits."""
    left = iter(spare)
    monkeypatch.setattr(
        "recover.evaluate.runnable.shutil.disk_usage",
        lambda _folder: Usage(0, 0, next(left) + (16 << 20)),
    )


@pytest.mark.parametrize(
    ("for_models", "for_logits", "sentence", "tolerance"),
    [
        # 11.6 or 5.8 MB of dequantized weights, 761,856 or 382,416 bytes of logits.
        (12_000_000, 765_000, None, 0),
        (12_000_000, 755_000, "16 bits are kept", 1e-6),
        (6_000_000, 765_000, "they are stored as F16", 1e-4),
    ],
)
def test_less_space(
    for_models: int,
    for_logits: int,
    sentence: str | None,
    tolerance: float,
    measured: list[Divergence],
    tiny_module: list[Path],
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave_space(monkeypatch, for_models, for_logits)
    said: list[str] = []
    found = measure_divergence(
        tiny_module, TINY, text, n_ctx=N_CTX, n_chunks=N_CHUNKS, notify=said.append
    )
    assert len(said) == (sentence is not None)
    assert all(sentence in each for each in said if sentence)
    for ours, expected in zip(found, measured, strict=True):
        assert ours.mean_kld == pytest.approx(expected.mean_kld, abs=tolerance, rel=0)
        assert ours.ln_ppl_ratio == pytest.approx(expected.ln_ppl_ratio, abs=tolerance**0.5, rel=0)
    assert found[2].kld_max < 1e-6


@settings(max_examples=30)
@given(
    arrays(np.float32, (4, 9), elements=st.floats(-40, 40, width=32)),
    arrays(np.float32, (4, 9), elements=st.sampled_from([-3.0, 0.0, 0.5, 2.0])),
    arrays(np.int32, 9, elements=st.integers(0, 8)),
)
def test_any_logits(
    truth: NDArray[np.float32], model: NDArray[np.float32], chunk: NDArray[np.int32]
) -> None:
    with ThreadPoolExecutor(2) as threads:
        for p, q in ((truth, model), (model, truth)):
            found = compare_chunk(p, q, chunk, 7, threads)
            wide = p.astype(np.float64), q.astype(np.float64)
            np.testing.assert_allclose(found.kl, divergence_by_definition(*wide), atol=1e-12)
            np.testing.assert_allclose(
                found.nll_truth, nll_by_definition(wide[0], chunk[5:]), atol=1e-14
            )
            np.testing.assert_allclose(found.nll, nll_by_definition(wide[1], chunk[5:]), atol=1e-14)
            order = np.argsort(-q, axis=1, kind="stable")
            rank = np.argmax(order == p.argmax(axis=1)[:, None], axis=1)
            np.testing.assert_array_equal(found.rank, rank)
            assert (found.kl >= 0).all()
            assert found.position.tolist() == [4, 5, 6, 7]
            assert found.chunk.tolist() == [7] * 4


def test_tokens_that_a_model_excludes() -> None:
    never = -np.inf
    truth = np.array([[0, 1, never], [0, 1, 2]], np.float32)
    chunk = np.array([0, 0, 0, 1, 1], np.int32)
    with ThreadPoolExecutor(1) as threads:
        same = compare_chunk(truth, truth, chunk, 0, threads)
        assert same.kl.tolist() == [0, 0]
        excluded = compare_chunk(truth[::-1], truth, chunk, 0, threads)
    assert excluded.kl[0] == np.inf
    assert excluded.kl[1] == pytest.approx(np.log(1 + np.exp(2) / (1 + np.e)))


@pytest.mark.parametrize("n", [2, 3, 999, 1000, 1001, 3000])
def test_interval(n: int) -> None:
    values = np.random.default_rng(n).exponential(size=n)
    expected = scipy.stats.bayes_mvs(values, 0.99)[0].minmax
    assert mean_interval(values) == pytest.approx(expected, rel=1e-12)
    assert mean_interval(np.full(n, 0.25)) == (0.25, 0.25)


@pytest.mark.parametrize("compact", [False, True])
def test_reference(compact: bool, rng: np.random.Generator) -> None:
    blocks = rng.normal(0, 6, (3, 5, 1000)).astype(np.float32)
    blocks[1, 2] = 7  # one value in a whole row
    blocks[2, 3, :10] = -1e30  # a mask
    blocks[2, 4, :300] -= 60  # very unlikely
    with ReferenceLogits(3, (5, 1000), compact=compact) as reference:
        for i in (2, 0, 1):
            reference.store(i, blocks[i])
        found = np.stack([reference.load(i) for i in range(3)])
    if not compact:
        np.testing.assert_array_equal(found, blocks)
        return
    top = blocks.max(axis=-1, keepdims=True)
    below = top - blocks
    # The width of the step, at most half of it, and the rounding of float32.
    near = 1.01 * np.sqrt(below * 32) / 60_000 + 1e-5
    far = below * np.where(below < 1024, 4e-4, 0.1)
    assert (np.abs(found - blocks) <= np.where(below <= 32, near, far)).all()
    assert (below > 32).sum() > 100
    np.testing.assert_array_equal(found.argmax(axis=-1), blocks.argmax(axis=-1))
    wide = blocks.astype(np.float64), found.astype(np.float64)
    assert divergence_by_definition(*wide).max() < 1e-7


def test_a_stopped_model_stops() -> None:
    with LlamaModel(TINY, n_ctx=64, n_threads=1) as model:
        tokens = model.tokenize(some_text(30))[:60]
        assert model.logits(tokens).shape == (tokens.size, 1024)
        model._stopped.set()
        with pytest.raises(EvaluationError, match="was stopped"):
            model.logits(tokens)


@pytest.mark.parametrize("sizes", [(128, 16), pytest.param((512, 24), marks=pytest.mark.slow)])
def test_a_merge_comes_closer(
    sizes: tuple[int, int], quantized_29m: dict[str, Path], llama_29m: Path, tmp_path: Path
) -> None:
    inputs = [quantized_29m[name] for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]
    merged = tmp_path / "posterior.gguf"
    execute_merge(plan_merge(inputs, merged))
    text, (n_ctx, n) = SHARED / "eval.txt", sizes
    both = [inputs[0], merged]
    alone, together = measure_divergence(both, llama_29m, text, n_ctx=n_ctx, n_chunks=n)
    assert together.paired is not None
    assert together.paired.mean_kld_ratio is not None
    assert together.paired.mean_kld_ratio <= 0.80
    assert together.paired.mean_kld_difference_ci99[1] < 0
    assert together.paired.mean_kld_difference_ci99_by_chunk is not None
    assert together.paired.mean_kld_difference_ci99_by_chunk[1] < 0
    assert together.same_top > alone.same_top


@pytest.mark.slow
def test_perplexity(llama_29m: Path) -> None:
    (same,) = measure_divergence([llama_29m], llama_29m, SHARED / "eval.txt", n_chunks=150)
    assert same.ppl_truth == pytest.approx(8.825, abs=0.01)
    assert same.kld_max < 1e-6

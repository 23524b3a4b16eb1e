"""What a merge gains, measured against known original weights by gguf-py and llama.cpp alone."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from recover.merge.execute import MergeResult, execute_merge
from recover.merge.plan import plan_merge
from tests.oracle.llama_cpp import LlamaModel, score_chunks, text_chunks
from tests.support.gguf_files import F32Array, read_tensors, read_weights, squared_error
from tests.support.models import SHARED, TINY

pytestmark = [pytest.mark.quality, pytest.mark.inference]

OUTTYPES = {"f16": np.float16, "f32": np.float32}
N_CHUNKS = 4


def merge(inputs: list[Path], output: Path, method: str, outtype: str = "f16") -> MergeResult:
    return execute_merge(plan_merge(inputs, output, method=method, outtype=outtype))


def mse_ratio(output: Path, truth: Path, best: Path) -> float:
    """Mean square error relative to that of the best input, over the tensors quantized there."""
    names = [name for name, tensor in read_tensors(best).items() if tensor.kind != "F32"]
    original, merged, alone = weights_of(truth), read_weights(output), weights_of(best)
    return squared_error({name: merged[name] for name in names}, original) / squared_error(
        {name: alone[name] for name in names}, original
    )


@cache
def weights_of(path: Path) -> dict[str, F32Array]:
    """What an input decodes to, once: gguf-py takes its time."""
    return read_weights(path)


def check_finite(weights: dict[str, F32Array]) -> None:
    assert all(np.isfinite(w).all() for w in weights.values())


@pytest.fixture(scope="module")
def inputs_29m(quantized_29m: dict[str, Path]) -> list[Path]:
    return [quantized_29m[name] for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]


Merged = Callable[[str], tuple[Path, MergeResult]]


@pytest.fixture(scope="module")
def merged_29m(inputs_29m: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Merged:
    """Their merge by a method as F16, made once."""
    folder = tmp_path_factory.mktemp("merged")

    def make(method: str) -> tuple[Path, MergeResult]:
        return (out := folder / f"{method}.gguf"), merge(inputs_29m, out, method)

    return cache(make)


@pytest.mark.parametrize(
    ("method", "limit"), [("linear", 0.81), ("midpoint", 0.82), ("posterior", 0.757)]
)
class TestGain:
    def test_29m(
        self,
        inputs_29m: list[Path],
        llama_29m: Path,
        merged_29m: Merged,
        method: str,
        limit: float,
    ) -> None:
        output, result = merged_29m(method)
        check_finite(read_weights(output))
        ratio = mse_ratio(output, llama_29m, inputs_29m[0])
        assert ratio <= limit
        assert result.expected_mse_ratio == pytest.approx(ratio, rel=0.03)

    @pytest.mark.parametrize("outtype", OUTTYPES)
    def test_tiny(
        self, tiny: list[Path], tmp_path: Path, method: str, limit: float, outtype: str
    ) -> None:
        output = tmp_path / "merged.gguf"
        result = merge(tiny, output, method, outtype)
        check_finite(read_weights(output))
        ratio = mse_ratio(output, TINY, tiny[0])
        assert ratio <= limit + 0.02  # many of its weights lie in tensors of one type
        assert result.expected_mse_ratio == pytest.approx(ratio, rel=0.03)


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_best_is_the_finest_input_dequantized(
    tiny: list[Path], tmp_path: Path, outtype: str
) -> None:
    output = tmp_path / "best.gguf"
    merge(tiny[::-1], output, "best", outtype)
    check_best(output, tiny[0], outtype)


def test_best_of_a_larger_model(inputs_29m: list[Path], merged_29m: Merged) -> None:
    check_best(merged_29m("best")[0], inputs_29m[0], "f16")


def check_best(output: Path, finest: Path, outtype: str) -> None:
    """A merge is what an input decodes to."""
    alone, decoded = read_tensors(finest), weights_of(finest)
    for name, tensor in read_tensors(output).items():
        expected = decoded[name]
        if alone[name].kind != "F32":
            expected = expected.astype(OUTTYPES[outtype])
        assert tensor.rows.dtype == expected.dtype, name
        assert tensor.rows.tobytes() == expected.tobytes(), name


@pytest.mark.slow  # divergence, which tells more, does so in tests/evaluate/test_divergence.py
def test_perplexity_comes_closer_to_that_of_the_original(
    llama_29m: Path, merged_29m: Merged
) -> None:
    text = (SHARED / "eval.txt").read_text(encoding="utf-8")
    (best, _), (linear, _) = merged_29m("best"), merged_29m("linear")
    with LlamaModel(llama_29m) as model:
        chunks = text_chunks(model, text, n_chunks=N_CHUNKS)
        truth = np.exp(score_chunks(model, chunks).mean())
    with LlamaModel(linear) as model:
        merged = np.exp(score_chunks(model, chunks).mean())
    with LlamaModel(best) as model:
        alone = np.exp(score_chunks(model, chunks).mean())
    assert truth <= merged <= alone or merged == pytest.approx(truth, rel=0.002)

"""What a merge gains, measured against known original weights by gguf-py and llama.cpp alone."""

from pathlib import Path

import numpy as np
import pytest

from recover.merge.execute import MergeResult, execute_merge
from recover.merge.plan import plan_merge
from tests.oracle.llama_cpp import LlamaModel, score_chunks, text_chunks
from tests.support.gguf_files import F32Array, read_tensors, read_weights, squared_error
from tests.support.models import SHARED, TINY

OUTTYPES = {"f16": np.float16, "f32": np.float32}
N_CHUNKS = 4


def merge(inputs: list[Path], output: Path, method: str, outtype: str = "f16") -> MergeResult:
    return execute_merge(plan_merge(inputs, output, method=method, outtype=outtype))


def mse_ratio(output: Path, truth: Path, best: Path) -> float:
    """Mean square error relative to that of the best input, over the tensors quantized there."""
    names = [name for name, tensor in read_tensors(best).items() if tensor.kind != "F32"]
    original, merged, alone = (read_weights(path) for path in (truth, output, best))
    return squared_error({name: merged[name] for name in names}, original) / squared_error(
        {name: alone[name] for name in names}, original
    )


def check_finite(weights: dict[str, F32Array]) -> None:
    assert all(np.isfinite(w).all() for w in weights.values())


@pytest.fixture(scope="module")
def inputs_29m(quantized_29m: dict[str, Path]) -> list[Path]:
    return [quantized_29m[name] for name in ("Q5_K_M", "Q4_K_M", "Q2_K")]


@pytest.mark.parametrize("outtype", OUTTYPES)
@pytest.mark.parametrize(
    ("method", "limit"), [("linear", 0.81), ("midpoint", 0.82), ("posterior", 0.757)]
)
class TestGain:
    def test_29m(
        self,
        inputs_29m: list[Path],
        llama_29m: Path,
        tmp_path: Path,
        method: str,
        limit: float,
        outtype: str,
    ) -> None:
        output = tmp_path / "merged.gguf"
        result = merge(inputs_29m, output, method, outtype)
        check_finite(read_weights(output))
        ratio = mse_ratio(output, llama_29m, inputs_29m[0])
        assert ratio <= limit
        assert result.expected_mse_ratio == pytest.approx(ratio, rel=0.03)

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
@pytest.mark.parametrize("model", ["tiny", "inputs_29m"])
def test_best_is_the_finest_input_dequantized(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, outtype: str
) -> None:
    inputs: list[Path] = request.getfixturevalue(model)
    output = tmp_path / "best.gguf"
    merge(inputs[::-1], output, "best", outtype)
    alone = read_tensors(inputs[0])
    decoded = read_weights(inputs[0])
    for name, tensor in read_tensors(output).items():
        expected = decoded[name]
        if alone[name].kind != "F32":
            expected = expected.astype(OUTTYPES[outtype])
        assert tensor.rows.dtype == expected.dtype, name
        assert tensor.rows.tobytes() == expected.tobytes(), name


def test_perplexity_comes_closer_to_that_of_the_original(
    inputs_29m: list[Path], llama_29m: Path, tmp_path: Path
) -> None:
    text = (SHARED / "eval.txt").read_text(encoding="utf-8")
    best, linear = tmp_path / "best.gguf", tmp_path / "linear.gguf"
    merge(inputs_29m, best, "best")
    merge(inputs_29m, linear, "linear")
    with LlamaModel(llama_29m) as model:
        chunks = text_chunks(model, text, n_chunks=N_CHUNKS)
        truth = np.exp(score_chunks(model, chunks).mean())
    with LlamaModel(linear) as model:
        merged = np.exp(score_chunks(model, chunks).mean())
    with LlamaModel(best) as model:
        alone = np.exp(score_chunks(model, chunks).mean())
    assert truth <= merged <= alone or merged == pytest.approx(truth, rel=0.002)

"""Merging where an input was made from integers the naive way: they are found, and taken."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from tests.naive.grids import rounded
from tests.oracle import libggml
from tests.support.gguf_files import Stored, read_tensors, read_weights, stored, write_gguf
from tests.support.integers import original

Q8_0, NAMES = 8, ("blk.0.attn_q.weight", "blk.0.ffn_up.weight")


@pytest.fixture
def products(rng: np.random.Generator) -> NDArray[np.float64]:
    codes, scales = original(rng, 1400, 768, 384, 127)
    return (codes * scales).reshape(1400, 768)


@pytest.fixture
def inputs(tmp_path: Path, rng: np.random.Generator, products: NDArray[np.float64]) -> list[Path]:
    """Q4_K and naive Q8_0; the second tensor was not made from integers."""
    other = (0.02 * rng.standard_normal((64, 768))).astype(np.float32)
    weights = rounded(products, "F32").astype(np.float32)
    q8 = Stored("Q8_0", libggml.quantize(Q8_0, weights).reshape(1400, -1))
    both = ({NAMES[0]: stored("Q4_K", weights), NAMES[1]: stored("Q4_K", other)},
            {NAMES[0]: q8, NAMES[1]: stored("Q8_0", other)})  # fmt: skip
    paths = [tmp_path / "q4.gguf", tmp_path / "q8.gguf"]
    return [write_gguf(path, tensors) for path, tensors in zip(paths, both, strict=True)]


@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_original_integers_are_taken(
    inputs: list[Path], products: NDArray[np.float64], tmp_path: Path, outtype: str
) -> None:
    plan = plan_merge(inputs, tmp_path / "out.gguf", outtype=outtype)
    assert [tensor.action for tensor in plan.tensors] == [
        "copy" if outtype == "q8_0" else "convert",
        "merge",
    ]
    (warning,) = plan.warnings
    assert "8-bit integers times a BF16 scale per 384 weights" in warning
    result = execute_merge(plan, n_threads=2)
    merged = read_weights(tmp_path / "out.gguf")
    np.testing.assert_array_equal(merged[NAMES[0]].astype(np.float64), products)
    assert result.tensors[0].expected_rmse is None
    assert result.tensors[1].expected_rmse is not None


def test_any_range_of_weights(inputs: list[Path], tmp_path: Path) -> None:
    plan = plan_merge(inputs, tmp_path / "out.gguf", outtype="q8_0")
    execute_merge(plan)
    whole = read_tensors(tmp_path / "out.gguf")[NAMES[0]].rows.reshape(-1)
    tensor = plan.models[1].tensors[NAMES[0]]
    assert (tensor.is_original, tensor.n_bytes) == (True, whole.size)
    assert not plan.models[1].tensors[NAMES[1]].is_original
    n_blocks = whole.size // 34
    for start, end in ((0, 1), (1, 5), (11, 300), (n_blocks - 3, n_blocks)):
        raw = tensor.part(32 * start, 32 * end)
        np.testing.assert_array_equal(raw, whole[34 * start : 34 * end])
        values = whole.reshape(-1, 34)[start:end]
        d = values[:, :2].copy().view("<f2").astype(np.float32)
        expected = (values[:, 2:].view(np.int8) * d).reshape(-1)
        np.testing.assert_array_equal(tensor.read(32 * start, 32 * end), expected)


def test_what_a_type_cannot_hold_of_them_is_said(inputs: list[Path], tmp_path: Path) -> None:
    results = {
        outtype: execute_merge(plan_merge(inputs, tmp_path / "out.gguf", outtype=outtype))
        for outtype in ("f16", "f32", "q8_0")
    }
    (warning,) = results["f16"].warnings
    assert f"F16 cannot hold exactly what is known exactly: '{NAMES[0]}' (" in warning
    assert results["f16"].tensors[0].n_rounded > 0
    for outtype in ("f32", "q8_0"):
        assert results[outtype].warnings == ()
        assert results[outtype].tensors[0].n_rounded == 0

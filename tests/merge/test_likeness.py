"""Inputs whose codes prove no bounds, and zeros: what is from elsewhere is refused or named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recover.errors import PlanError
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from tests.support.gguf_files import stored, write_gguf

F32Array = NDArray[np.float32]

NAME = "blk.0.ffn_up.weight"


def said(tmp_path: Path, inputs: list[tuple[str, F32Array]], method: str = "posterior") -> str:
    """What a merge of inputs (type and weights) says, whether it succeeds or not."""
    paths = [
        write_gguf(tmp_path / f"{i}.gguf", {NAME: stored(kind, x)})
        for i, (kind, x) in enumerate(inputs)
    ]
    try:
        plan = plan_merge(paths, tmp_path / "out.gguf", method=method)
        result = execute_merge(plan, n_threads=1)
    except PlanError as error:
        return str(error)
    return "\n".join([*plan.warnings, *result.warnings])


@pytest.fixture
def weights(real_rows: F32Array) -> F32Array:
    return np.ascontiguousarray(real_rows[:64, :256])


def unscaled(x: F32Array, rng: np.random.Generator) -> F32Array:
    return x


def scaled(x: F32Array, rng: np.random.Generator) -> F32Array:
    return x * np.float32(1.3)


def negated(x: F32Array, rng: np.random.Generator) -> F32Array:
    return -x


def with_a_row_of_zeros(x: F32Array, rng: np.random.Generator) -> F32Array:
    return np.where(np.arange(len(x))[:, None] == 5, np.float32(0), x)


def permuted(x: F32Array, rng: np.random.Generator) -> F32Array:
    return rng.permutation(x)


@pytest.mark.parametrize("method", ["posterior", "linear", "best"])
@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("change", [scaled, negated, with_a_row_of_zeros])
@pytest.mark.parametrize("kinds", [("Q8_0", "IQ3_S"), ("Q4_K", "IQ3_XXS")], ids="+".join)
def test_codebooks(
    kinds: tuple[str, str],
    change: Callable[[F32Array, np.random.Generator], F32Array],
    odd: int,
    method: str,
    weights: F32Array,
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    """A tensor times a constant keeps its correlation, and may differ by less than the errors."""
    inputs = [(kind, weights) for kind in kinds]
    assert "contradict" not in said(tmp_path, inputs, method)
    inputs[odd] = kinds[odd], change(weights, rng)
    assert NAME in said(tmp_path, inputs, method)


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("change", [negated, permuted, with_a_row_of_zeros])
@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_ternary_codes(
    kind: str,
    change: Callable[[F32Array, np.random.Generator], F32Array],
    odd: int,
    weights: F32Array,
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    """Their errors are as large as the weights, but most of the correlation is left."""
    inputs = [("Q4_K", weights), (kind, weights)]
    assert "contradict" not in said(tmp_path, inputs)
    inputs[odd] = inputs[odd][0], change(weights, rng)
    assert NAME in said(tmp_path, inputs)


@pytest.mark.parametrize("method", ["posterior", "best"])
@pytest.mark.parametrize(
    "kinds",
    [
        ("Q8_0", "Q4_K"),
        ("Q5_K", "Q4_0"),
        ("Q3_K", "Q2_K"),
        ("F16", "Q4_0"),
        ("F32", "Q8_0", "Q4_K"),
    ],
    ids="+".join,
)
@pytest.mark.parametrize("odd", [0, 1])
def test_zeros(
    kinds: tuple[str, ...],
    odd: int,
    method: str,
    weights: F32Array,
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    """A scale of zero proves no bounds, but is no encoder's for large weights."""
    zeros = with_a_row_of_zeros(weights, rng)
    assert "contradict" not in said(tmp_path, [(kind, zeros) for kind in kinds], method)
    inputs = [(kind, weights) for kind in kinds]
    inputs[odd] = kinds[odd], zeros
    assert NAME in said(tmp_path, inputs, method)


@pytest.mark.parametrize(
    "kinds", [("Q8_0", "Q2_K"), ("Q6_K", "IQ3_S"), ("Q4_K", "IQ2_XXS")], ids="+".join
)
def test_weights_that_one_type_loses(
    kinds: tuple[str, str], weights: F32Array, tmp_path: Path
) -> None:
    """Of weights near the smallest float16 one input may be nothing but zeros."""
    lost = weights.copy()
    lost[::2] *= np.float32(1e-6) / np.abs(lost[::2]).max()
    assert "contradict" not in said(tmp_path, [(kind, lost) for kind in kinds])


def test_another_revision(weights: F32Array, tmp_path: Path, rng: np.random.Generator) -> None:
    """Weights that all moved keep most of their correlation; no column says what the type would."""
    moved = weights + weights.std() * rng.standard_normal(weights.shape).astype(np.float32) / 2
    inputs = [("Q8_0", weights), ("IQ3_S", weights)]
    for odd in range(2):
        changed = [*inputs]
        changed[odd] = inputs[odd][0], moved
        assert NAME in said(tmp_path, changed)


@pytest.mark.parametrize("coarse", [pytest.param("IQ1_M", marks=pytest.mark.slow), "IQ2_XXS"])
def test_beside_a_coarse_one(
    coarse: str, weights: F32Array, tmp_path: Path, rng: np.random.Generator
) -> None:
    """What errors of one input explain says nothing of another one."""
    moved = weights + weights.std() * rng.standard_normal(weights.shape).astype(np.float32) / 2
    inputs = [("Q8_0", weights), ("IQ3_S", weights), (coarse, weights)]
    assert "contradict" not in said(tmp_path, inputs)
    inputs[1] = "IQ3_S", moved
    assert NAME in said(tmp_path, inputs)


@pytest.mark.parametrize("odd", [0, 1])
def test_some_columns_of_another_model(odd: int, real_rows: F32Array, tmp_path: Path) -> None:
    """A whole superblock that differs in all rows is no set of columns that did not matter."""
    weights = np.ascontiguousarray(real_rows[:64, :512])
    other = weights.copy()
    other[:, 256:] = real_rows[64:128, 256:512]
    inputs = [("Q8_0", weights), ("IQ3_S", weights)]
    inputs[odd] = inputs[odd][0], other
    assert NAME in said(tmp_path, inputs)

"""Sets of inputs of which one tensor is from elsewhere are refused or named; right sets are not."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from recover.containers.gguf.reader import open_gguf
from recover.errors import PlanError
from recover.estimators import method_names
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from tests.oracle import libggml
from tests.support.gguf_files import Stored, stored, write_gguf
from tests.support.models import TINY

pytestmark = pytest.mark.long

F32Array = NDArray[np.float32]
Weights = dict[str, F32Array]
Change = Callable[[Weights, np.random.Generator], Weights]

DOWN, UP = "blk.0.ffn_down.weight", "blk.0.ffn_up.weight"
NORM = "blk.0.attn_norm.weight"
SETS = (
    ("Q8_0", "Q6_K"),
    ("Q5_1", "Q5_K", "Q4_0"),
    ("F16", "Q5_K"),
    pytest.param(("Q5_K", "Q4_K", "Q3_K"), marks=pytest.mark.slow),
    pytest.param(("Q6_K", "Q5_0"), marks=pytest.mark.slow),
    pytest.param(("Q8_0", "Q5_K", "IQ3_S"), marks=pytest.mark.slow),
)


OFTEN = tuple(name for name in method_names() if name != "joint")
METHODS = pytest.mark.parametrize(
    "methods", [OFTEN, pytest.param(("joint",), marks=pytest.mark.slow)], ids="+".join
)
"""The joint estimate begins with the posterior's, which says the same, and takes far longer."""


@pytest.fixture(scope="module")
def truth() -> Weights:
    """A layer of a trained model."""
    tensors = [t for name, t in open_gguf(TINY).tensors.items() if name.startswith("blk.0")]
    return {t.name: t.read(0, t.n_weights).reshape(t.dims[::-1]) for t in tensors}


def permuted_rows(weights: Weights, rng: np.random.Generator) -> Weights:
    return {DOWN: rng.permutation(weights[DOWN])}


def one_row_replaced(weights: Weights, rng: np.random.Generator) -> Weights:
    x = weights[DOWN].copy()
    x[77] = rng.permutation(x[77])
    return {DOWN: x}


def swapped(weights: Weights, rng: np.random.Generator) -> Weights:
    gate = "blk.0.ffn_gate.weight"
    return {UP: weights[gate], gate: weights[UP]}


def low_rank(weights: Weights, rng: np.random.Generator, size: float = 1e-3) -> Weights:
    """A LoRA of a thousandth of the weights' size."""
    x = weights[DOWN]
    change = rng.standard_normal((len(x), 8)) @ rng.standard_normal((8, x.shape[1]))
    change *= size * np.sqrt(np.mean(x**2) / np.mean(change**2))
    return {DOWN: (x + change).astype(np.float32)}


def larger_low_rank(weights: Weights, rng: np.random.Generator) -> Weights:
    return low_rank(weights, rng, 5e-3)


def scaled_norm(weights: Weights, rng: np.random.Generator) -> Weights:
    return {NORM: weights[NORM] * np.float32(1.1)}


CHANGES: dict[Change, tuple[str, ...]] = {
    permuted_rows: (DOWN,),
    one_row_replaced: (DOWN,),
    swapped: (UP, "blk.0.ffn_gate.weight"),
    low_rank: (DOWN,),
    larger_low_rank: (DOWN,),
    scaled_norm: (NORM,),
}


def write(path: Path, kind: str, weights: Weights, *, imatrix: F32Array | None = None) -> Path:
    """Norms as F32, matrices in one type, with an importance matrix if there is one."""
    tensors = {}
    for name, x in weights.items():
        if x.ndim == 1 or imatrix is None or kind == "F16":
            tensors[name] = stored("F32" if x.ndim == 1 else kind, x)
        else:
            raw = libggml.quantize(GGMLQuantizationType[kind], x, imatrix[: x.shape[1]])
            tensors[name] = Stored(kind, raw.reshape(len(x), -1))
    return write_gguf(path, tensors)


@METHODS
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("kinds", SETS, ids="+".join)
def test_a_tensor_from_elsewhere_is_refused_or_named(
    kinds: tuple[str, ...],
    change: Change,
    methods: tuple[str, ...],
    truth: Weights,
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    """Whichever input it is in, and with every method."""
    if change is low_rank and kinds[0] in ("Q5_K", "Q5_1"):
        return  # a few of 196,608 weights are moved out of their cells, or none
    changed = truth | change(truth, rng)
    for odd in range(len(kinds)):
        paths = [
            write(tmp_path / f"{odd}-{kind}.gguf", kind, changed if i == odd else truth)
            for i, kind in enumerate(kinds)
        ]
        if "low_rank" in change.__name__ and kinds[odd] == "IQ3_S":
            continue  # its codes prove no bounds
        for method in methods:
            said = merge(paths, tmp_path / "out.gguf", method)
            assert any(name in said for name in CHANGES[change]), (odd, method)


@METHODS
@pytest.mark.parametrize(
    ("dtype", "imatrix"),
    [
        (np.float32, False),
        (ml_dtypes.bfloat16, True),
        (np.float16, False),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in ((np.float32, True), (ml_dtypes.bfloat16, False), (np.float16, True))
        ),
    ],
)
@pytest.mark.parametrize("kinds", SETS, ids="+".join)
def test_right_sets_raise_no_alarm(
    kinds: tuple[str, ...],
    dtype: type,
    imatrix: bool,
    methods: tuple[str, ...],
    truth: Weights,
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    """Quantized from an original in whatever float type, or from what others rounded it to."""
    # Weights that are no numbers of any of the types.
    exact = {n: x * (1 + 1e-3 * rng.standard_normal(x.shape)) for n, x in truth.items()}
    original = {n: x.astype(dtype).astype(np.float32) for n, x in exact.items()}
    importance = rng.lognormal(size=768).astype(np.float32) if imatrix else None
    paths = [write(tmp_path / f"{kind}.gguf", kind, original, imatrix=importance) for kind in kinds]
    for method in methods:
        said = merge(paths, tmp_path / "out.gguf", method)
        assert "contradict" not in said
        assert "quantized from" not in said
        assert "disagree" not in said


def test_the_joint_estimate_says_what_the_posterior_says(
    truth: Weights, tmp_path: Path, rng: np.random.Generator
) -> None:
    for weights in (truth, truth | one_row_replaced(truth, rng)):
        paths = [
            write(tmp_path / f"{kind}.gguf", kind, each)
            for kind, each in (("Q8_0", truth), ("Q6_K", weights))
        ]
        said = [merge(paths, tmp_path / "out.gguf", name) for name in ("posterior", "joint")]
        assert said[0] == said[1]
        assert (DOWN in said[0]) == (weights is not truth)


def merge(paths: list[Path], output: Path, method: str) -> str:
    """What a merge says, whether it succeeds or not."""
    try:
        plan = plan_merge(paths, output, method=method)
        result = execute_merge(plan, n_threads=2)
    except PlanError as error:
        return str(error)
    return "\n".join([*plan.warnings, *result.warnings])

"""Sub-blocks of Q6_K and Q3_K whose integer scale is 0: weights are small beside the superblock."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import EvidenceBuffer, Source
from recover.evidence.cells import intersect_cells
from recover.evidence.intervals import Intervals
from recover.inputs.open import open_model
from recover.quants import quantize, type_by_name
from tests.oracle import libggml
from tests.support.right_sets import Made, originals, said, write

F32Array = NDArray[np.float32]
Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]

N = 512
KINDS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy tails": lambda rng, shape: rng.standard_t(1.2, shape),
    "few values": lambda rng, shape: rng.choice([-1.0, 1.0, 0.5], shape),
    "peaked": lambda rng, shape: rng.uniform(-1, 1, shape) ** 5,
    "on the edges of codes": lambda rng, shape: (rng.integers(1, 33, shape) - 0.5) / 32,
}


def uneven(draw: Draw, rng: np.random.Generator) -> F32Array:
    """Superblocks whose sub-blocks are of very different sizes."""
    sizes = np.exp(rng.uniform(-9, 0, (N, 16, 1))) * 10 ** rng.uniform(-6, 2, (N, 1, 1))
    return (draw(rng, (N, 16, 16)) * sizes).reshape(N, 256).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["Q6_K", "Q3_K"])
def test_no_weight_is_outside(name: str, kind: str, rng: np.random.Generator) -> None:
    x = uneven(KINDS[kind], rng)
    raw = libggml.quantize(GGMLQuantizationType[name], x).reshape(-1)
    lower, upper = np.empty((2, x.size), np.float32)
    evidence = EvidenceBuffer([Source(type_by_name(name))]).load([raw], x.size)
    intersect_cells(evidence, lower, upper)
    is_zero = (evidence.scale[0] == 0).repeat(16)
    assert is_zero.mean() > 0.3
    assert np.isfinite(upper[is_zero]).mean() > 0.3
    assert ((lower <= x.reshape(-1)) & (x.reshape(-1) <= upper)).all()


@pytest.mark.parametrize("name", ["Q6_K", "Q3_K"])
def test_with_an_importance_matrix_nothing_is_proven(name: str, rng: np.random.Generator) -> None:
    """Where importances are 0, a scale is 0 whatever the weights are."""
    x = uneven(KINDS["normal"], rng)
    importance = np.ones(256, np.float32)
    importance[:32] = 0
    raw = quantize(x, type_by_name(name), importance).reshape(-1)
    lower, upper = np.empty((2, x.size), np.float32)
    buffer = EvidenceBuffer([Source(type_by_name(name), weighted=True)])
    evidence = buffer.load([raw], x.size)
    intersect_cells(evidence, lower, upper)
    assert np.isinf(upper[(evidence.scale[0] == 0).repeat(16)]).all()
    assert ((lower <= x.reshape(-1)) & (x.reshape(-1) <= upper)).all()


@pytest.mark.parametrize("name", ["Q6_K", "Q3_K"])
def test_bounds_hold_with_an_importance_matrix(name: str, tmp_path: Path) -> None:
    """No weight is outside of what is proven of a file, whether it says that there was one."""
    x = originals()["llama.0 F32"]
    file = open_model(write(tmp_path / "a.gguf", Made(name, "zeros"), ["llama.0 F32"]))
    intervals = Intervals()
    intervals.look_at([file.tensors["llama.0 F32.weight"]])
    lower, upper = intervals.bound(0, x.size)
    assert ((lower <= x.reshape(-1)) & (x.reshape(-1) <= upper)).all()


def test_a_right_set_with_importance_matrices_is_right(tmp_path: Path) -> None:
    inputs = [Made("Q3_K", "zeros"), Made("Q5_K", "uneven"), Made("Q5_1", "peaked")]
    assert not said(inputs, ["llama.0 F32", "sparse F32"], "posterior", tmp_path)


@pytest.mark.parametrize(("names", "size"), [(("Q6_K", "Q4_K"), 3e-3), (("Q4_K", "Q3_K"), 1.2e-2)])
def test_the_posterior_is_told(
    names: tuple[str, str], size: float, rng: np.random.Generator
) -> None:
    """Estimates are in the cells, nearer to the weights than without it, and claim what they do."""
    x = (0.05 * rng.standard_normal((N, 256))).astype(np.float32)
    x.reshape(N, 16, 16)[:, 4] *= np.float32(size)  # half a sub-block of Q4_K
    raws = [quantize(x, type_by_name(name)).reshape(-1) for name in names]
    tile = UncorrectedTileEstimator([Source(type_by_name(name)) for name in names], "posterior")
    out, deviation, lower, upper = np.empty((4, x.size), np.float32)
    tile.estimate(raws, 0, x.size, out, deviation)
    intersect_cells(tile.evidence, lower, upper)
    assert ((lower <= out) & (out <= upper)).all()
    small = (tile.evidence.scale == 0).any(0).repeat(16)
    assert small.mean() > 0.03
    error = np.mean((out - x.reshape(-1)).astype(np.float64)[small] ** 2)
    claimed = np.mean(deviation.astype(np.float64)[small] ** 2)
    forgotten = tile.evidence._replace(lost=np.array([[0.0, np.inf, 0.0]] * 2))
    tile.estimate_from(forgotten, out, deviation)
    before = np.mean((out - x.reshape(-1)).astype(np.float64)[small] ** 2)
    claimed_before = np.mean(deviation.astype(np.float64)[small] ** 2)
    assert error < 0.9 * before
    assert abs(np.log(claimed / error)) < abs(np.log(claimed_before / before))

"""Cells of TQ1_0 and TQ2_0: whatever the weights are, their digits were rounded."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray

from recover.bounds.single import bounds
from recover.errors import PlanError
from recover.inspect.report import inspect_files
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from recover.quants import VectorType, dequantize, type_by_name
from tests.oracle import libggml
from tests.support.gguf_files import Stored, read_weights, stored, write_gguf

F32Array = NDArray[np.float32]

NAME = "blk.0.ffn_up.weight"
KINDS = "TQ1_0", "TQ2_0"


def rows(rng: np.random.Generator) -> dict[str, F32Array]:
    x = rng.standard_t(4, (64, 512)).astype(np.float32)
    return {
        "usual": 0.02 * x,
        "tiny": x * np.exp2(rng.uniform(-40, -14, (64, 1))).astype(np.float32),
        "huge": x * np.float32(1e3),
        "ternary": np.sign(x) * (abs(x) > 0.6) * np.float32(0.0137),
        "halves": np.where(x > 0, x.max(1, keepdims=True), x.max(1, keepdims=True) / 2),
        "zeros": np.zeros_like(x),
    }


@pytest.mark.parametrize("encoder", ["ggml", "gguf-py"])
@pytest.mark.parametrize("name", KINDS)
def test_no_weight_is_outside(name: str, encoder: str, rng: np.random.Generator) -> None:
    kind = type_by_name(name)
    assert isinstance(kind, VectorType)
    assert kind.narrow is not None
    for label, x in rows(rng).items():
        number = GGMLQuantizationType[name]
        with np.errstate(all="ignore"):
            raw = libggml.quantize(number, x) if encoder == "ggml" else quantize(x, number)
        values = dequantize(raw.reshape(-1), kind)
        lower, upper = np.full((2, x.size), np.inf, np.float32) * [[-1], [1]]
        lower, upper = lower.astype(np.float32), upper.astype(np.float32)
        kind.narrow(values, lower, upper)
        assert np.isfinite(upper - lower).all(), label
        assert ((lower <= x.reshape(-1)) & (x.reshape(-1) <= upper)).all(), label
        largest = abs(x).reshape(-1, 256).max(1).repeat(256)
        assert (upper - lower <= 1.01 * largest + 2.0**-22).all(), label


def test_broken_scales_prove_nothing() -> None:
    kind = type_by_name("TQ2_0")
    assert isinstance(kind, VectorType)
    assert kind.narrow is not None
    for broken in (np.nan, np.inf):
        values = np.full(512, 0.5, np.float32)
        values[3] = broken
        lower, upper = np.full(512, -np.inf, np.float32), np.full(512, np.inf, np.float32)
        kind.narrow(values, lower, upper)
        assert np.isinf(upper[:256]).all()
        assert np.isfinite(upper[256:]).all()


def write(path: Path, kind: str, x: F32Array) -> Path:
    return write_gguf(path, {NAME: stored(kind, x)})


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_are_narrower_with_them(kind: str, tmp_path: Path, real_rows: F32Array) -> None:
    x = np.ascontiguousarray(real_rows[:64, :256])
    paths = [write(tmp_path / f"{each}.gguf", each, x) for each in ("Q2_K", kind)]
    alone, both = (bounds(some, NAME) for some in (paths[:1], paths))
    assert not both.conflicts.any()
    assert (both.lower <= x).all()
    assert (both.upper >= x).all()
    assert np.mean(both.upper - both.lower) < 0.9 * np.mean(alone.upper - alone.lower)


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_is_told(kind: str, tmp_path: Path, real_rows: F32Array) -> None:
    """Its digits are those of the parent's weights, near the edges as well."""
    x = np.ascontiguousarray(real_rows[:64, :256])
    parent = write(tmp_path / "parent.gguf", "Q4_K", x)
    right = write(tmp_path / "right.gguf", kind, x)
    assert inspect_files([parent, right], n_threads=1).same_original
    child = write(tmp_path / "child.gguf", kind, read_weights(parent)[NAME])
    for paths in ([parent, child], [child, parent]):
        with pytest.raises(PlanError, match=r"child\.gguf was quantized from .*parent\.gguf"):
            execute_merge(plan_merge(paths, tmp_path / "out.gguf"), n_threads=1)


@pytest.mark.parametrize("method", ["posterior", "linear", "best"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_weights_are_refused(
    kind: str, method: str, tmp_path: Path, real_rows: F32Array
) -> None:
    x = np.ascontiguousarray(real_rows[:64, :256])
    other = x.copy()
    other[[5, 9]] = other[[9, 5]]
    paths = [write(tmp_path / "a.gguf", "Q4_K", x), write(tmp_path / "b.gguf", kind, other)]
    with pytest.raises(PlanError, match=NAME):
        execute_merge(plan_merge(paths, tmp_path / "out.gguf", method=method), n_threads=1)


def test_ternary_originals_belong_together(tmp_path: Path, rng: np.random.Generator) -> None:
    x = (0.02 * rng.integers(-1, 2, (64, 512))).astype(np.float32)
    tensors: list[Stored] = [stored(kind, x) for kind in ("Q8_0", "TQ2_0")]
    paths = [write_gguf(tmp_path / f"{i}.gguf", {NAME: each}) for i, each in enumerate(tensors)]
    assert inspect_files(paths, n_threads=1).conflicts.unlike == ()

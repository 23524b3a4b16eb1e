"""Weights that inputs hold without an error: nothing is said of who was made from whom."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recover.merge.plan import plan_merge
from tests.support.gguf_files import read_weights, stored, write_gguf

F32Array = NDArray[np.float32]

USUAL = "blk.0.ffn_up.weight"
WEIGHTS: dict[str, Callable[[F32Array], F32Array]] = {
    "zeros": lambda x: np.zeros_like(x),
    "constant": lambda x: np.full_like(x, 0.37),
    "constant rows": lambda x: np.broadcast_to(x[:, :1], x.shape).copy(),
    "signs": lambda x: np.sign(x + np.float32(1e-9)) * np.float32(0.02),
    "ternary": lambda x: np.sign(x) * (np.abs(x) > x.std()) * np.float32(0.013),
    "very sparse": lambda x: np.where(
        np.arange(x.size).reshape(x.shape) % 211 == 3, x, np.float32(0)
    ),
}
PAIRS = [
    *("F16+Q8_0", "Q8_0+Q4_K", "Q6_K+Q5_K", "Q5_K+Q2_K", "Q8_0+IQ4_NL", "Q4_K+Q4_0"),
    *("Q4_K+Q3_K", "Q8_0+Q6_K", "F16+Q5_K"),
]


@pytest.mark.parametrize("pair", PAIRS)
def test_nothing_is_said_of_descent(pair: str, tmp_path: Path, real_rows: F32Array) -> None:
    """One tensor of each kind, beside a usual one, of which the same may be said if it is true."""
    x = np.ascontiguousarray(real_rows[:32, :512])
    tensors = {USUAL: x} | {
        f"blk.{i}.ffn_up.weight": make(x).astype(np.float32)
        for i, make in enumerate(WEIGHTS.values(), 1)
    }
    paths = [
        write_gguf(tmp_path / f"{i}.gguf", {name: stored(kind, w) for name, w in tensors.items()})
        for i, kind in enumerate(pair.split("+"))
    ]
    plan = plan_merge(paths, tmp_path / "out.gguf")
    assert not [text for text in plan.warnings if "quantized from" in text]
    assert not [each.name for each in plan.tensors if each.descents]


def test_a_child_is_told_all_the_same(tmp_path: Path, real_rows: F32Array) -> None:
    x = np.ascontiguousarray(real_rows[:64, :512])
    parent = write_gguf(tmp_path / "parent.gguf", {USUAL: stored("Q4_K", x)})
    child = {USUAL: stored("Q6_K", read_weights(parent)[USUAL])}
    paths = [parent, write_gguf(tmp_path / "child.gguf", child)]
    assert len(plan_merge(paths, tmp_path / "out.gguf").redundant) == 1

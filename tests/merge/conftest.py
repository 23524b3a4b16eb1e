"""Small models with one layer, of known weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.gguf_files import F32Array, Stored, stored, write_gguf
from tests.support.merging import NORM, UP, Make, Q


@pytest.fixture
def truth(rng: np.random.Generator) -> dict[str, F32Array]:
    def heavy_tailed(*shape: int) -> F32Array:
        return (0.02 * rng.standard_t(8, shape)).astype(np.float32)

    return {
        Q: heavy_tailed(32, 512),
        NORM: rng.normal(1, 0.1, 512).astype(np.float32),
        UP: heavy_tailed(48, 512),
    }


@pytest.fixture
def make(tmp_path: Path, truth: dict[str, F32Array]) -> Make:
    """Writes the true weights in one type, some tensors replaced."""

    def make(
        kind: str,
        changes: Mapping[str, Stored | None] | None = None,
        *,
        name: str | None = None,
        **options: Any,
    ) -> Path:
        tensors = {key: stored("F32" if x.ndim == 1 else kind, x) for key, x in truth.items()}
        kept = {key: x for key, x in (tensors | dict(changes or {})).items() if x is not None}
        return write_gguf(tmp_path / f"{name or kind}.gguf", kept, **options)

    return make


@pytest.fixture
def unlike(make: Make, truth: dict[str, F32Array], rng: np.random.Generator) -> list[Path]:
    """Inputs of one original that hold not quite the same tensors."""
    x = (0.02 * rng.standard_t(8, (4, 16, 512))).astype(np.float32)
    more = np.concatenate([truth[UP], (0.02 * rng.standard_t(8, (24, 512))).astype(np.float32)])
    stem, rope = "blk.0.ffn_gate", np.arange(1, 33, dtype=np.float32)
    apart = {f"{stem}.{i}.weight": stored("Q5_K", each) for i, each in enumerate(x)}
    return [
        make("Q5_K", {UP: stored("Q5_K", more), "rope_freqs.weight": stored("F32", rope)} | apart),
        make("Q4_K", {f"{stem}_exps.weight": stored("Q4_K", x)}),
        make("Q6_K", {Q: stored("Q6_K", truth[Q].reshape(64, 256)), NORM: None}),
    ]

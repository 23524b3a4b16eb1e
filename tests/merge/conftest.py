"""Small models with one layer, of known weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.gguf_files import (
    F32Array,
    Stored,
    stored,
    write_gguf,
)
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

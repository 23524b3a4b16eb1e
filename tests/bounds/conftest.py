"""Weights of a matrix, and models that hold them."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.support.gguf_files import F32Array, Stored, stored, write_gguf
from tests.support.merging import NORM, UP


@pytest.fixture
def truth(rng: np.random.Generator) -> F32Array:
    return (0.02 * rng.standard_t(5, (24, 512))).astype(np.float32)


@pytest.fixture
def make(tmp_path: Path, truth: F32Array) -> Callable[..., Path]:
    def make(kind: str, weights: F32Array = truth, name: str | None = None) -> Path:
        if kind == "BF16":
            matrix = Stored("BF16", weights.astype(ml_dtypes.bfloat16).view(np.uint8))
        else:
            matrix = stored(kind, weights)
        norm = Stored("F32", np.linspace(0.5, 1.5, 512, dtype=np.float32))
        return write_gguf(tmp_path / f"{name or kind}.gguf", {UP: matrix, NORM: norm})

    return make

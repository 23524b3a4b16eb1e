"""Weights that are integers times a scale per group."""

import numpy as np
from numpy.typing import NDArray

from tests.naive.grids import TYPES

F64 = NDArray[np.float64]
Generator = np.random.Generator


def original(
    rng: Generator, n_rows: int, row_length: int, group: int, largest: int
) -> tuple[F64, F64]:
    """Codes and scales (n_rows, n_groups, group or 1)."""
    x = rng.standard_normal((n_rows, row_length // group, group))
    codes = np.rint(x / np.abs(x).max(-1, keepdims=True) * largest)
    scales = 0.06 / largest * np.exp(rng.standard_normal((n_rows, row_length // group, 1)))
    return codes, scales.astype(TYPES["BF16"]).astype(np.float64)

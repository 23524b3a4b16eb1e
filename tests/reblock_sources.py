"""One large tensor per kind of source, for the benchmark: random codes, in memory."""

from collections.abc import Callable

import numpy as np

from recover.reblock.grok import _rows
from recover.reblock.integers import Request, settle
from recover.reblock.source import SourceTensor


def grok(n_weights: float) -> SourceTensor:
    """A stack of matrices of Grok-1's shape, fewer columns."""
    rng = np.random.default_rng(1)
    n_columns = max(64, int(n_weights / 6144))
    codes = rng.integers(-128, 128, (1, 6144, n_columns), np.int8)
    scales = rng.integers(0x3C00, 0x3D00, (1, 1, n_columns)).astype(np.uint16)
    return settle("t", (6144, n_columns), "int8 x bf16", _rows(codes, scales), Request())


SOURCES: dict[str, Callable[[float], SourceTensor]] = {"Grok-1 int8 -> Q8_0": grok}

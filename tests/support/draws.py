"""Random weights of several kinds."""

import numpy as np
from numpy.typing import NDArray

ROW = 2048


def draw(kind: str, n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    if kind == "normal":
        return rng.standard_normal(n, np.float32) * np.float32(0.02)
    if kind == "heavy-tailed":
        return rng.standard_t(3, n).astype(np.float32)
    if kind == "scattered":  # magnitudes over many decades, zeros, signs
        x = rng.standard_normal(n, np.float32) * np.float32(10) ** rng.integers(-7, 4, n)
        x[rng.random(n) < 0.1] = 0
        return x.astype(np.float32)
    if kind == "one-sided":
        return (np.abs(rng.standard_normal(n, np.float32)) + np.float32(0.5)).astype(np.float32)
    x = rng.standard_normal(n, np.float32)
    x.view(np.uint32)[:] &= 0xFFFF0000  # bf16 numbers: exact ties and repeated extremes
    return x


KINDS = ("normal", "heavy-tailed", "scattered", "one-sided", "bf16")

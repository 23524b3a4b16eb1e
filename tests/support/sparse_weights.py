"""Drawn weights of which many are 0."""

import numpy as np

from recover.quants import F32Array

SHAPE = 256, 256


def normal(seed: int) -> F32Array:
    return (0.05 * np.random.default_rng(seed).standard_normal(SHAPE)).astype(np.float32)


def pruned(seed: int, share: float) -> F32Array:
    keep = np.random.default_rng(seed + 1).random(SHAPE) >= share
    return normal(seed) * keep.astype(np.float32)


def with_dead_columns(seed: int) -> F32Array:
    keep = np.random.default_rng(seed + 2).random(SHAPE[1]) > 0.4
    return normal(seed) * keep.astype(np.float32)

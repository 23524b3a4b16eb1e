"""Weights of which many are 0, drawn or pruned."""

import numpy as np

from recover.quants import F32Array

SHAPE = 256, 256


def normal(seed: int) -> F32Array:
    return (0.05 * np.random.default_rng(seed).standard_normal(SHAPE)).astype(np.float32)


def at_random(x: F32Array, share: float, seed: int) -> F32Array:
    keep = np.random.default_rng(seed).random(x.shape) >= share
    return x * keep.astype(np.float32)


def by_size(x: F32Array, share: float) -> F32Array:
    return np.where(abs(x) > np.quantile(abs(x), share), x, np.float32(0))


def by_column(x: F32Array, share: float, seed: int) -> F32Array:
    keep = np.random.default_rng(seed).random(x.shape[1:]) >= share
    return x * keep.astype(np.float32)


def pruned(seed: int, share: float) -> F32Array:
    return at_random(normal(seed), share, seed + 1)


def with_dead_columns(seed: int) -> F32Array:
    return by_column(normal(seed), 0.4, seed + 2)

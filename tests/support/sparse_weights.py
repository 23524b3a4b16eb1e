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


def blocks_at_random(x: F32Array, share: float, seed: int) -> F32Array:
    """Whole blocks of 32 weights."""
    keep = np.random.default_rng(seed).random((x.size // 32, 1)) >= share
    return (x.reshape(-1, 32) * keep.astype(np.float32)).reshape(x.shape)


def by_size_of_rows(x: F32Array, share: float, seed: int) -> F32Array:
    """By size where rows of 512 weights have sizes of their own: some keep many, others none."""
    sizes = np.random.default_rng(seed).lognormal(0, 0.5, (x.size // 512, 1))
    return by_size(x.reshape(-1, 512) * sizes.astype(np.float32), share).reshape(x.shape)


def with_outliers(x: F32Array, share: float, factor: float, seed: int) -> F32Array:
    """Some weights are so many times as large."""
    large = np.random.default_rng(seed).random(x.shape) < share
    return np.where(large, np.float32(factor) * x, x)


def with_large_columns(x: F32Array, share: float, factor: float, seed: int) -> F32Array:
    """Some of 512 columns are so many times as large, one at least."""
    chances = np.random.default_rng(seed).random(512)
    large = chances <= max(share, chances.min())
    return np.where(large, np.float32(factor) * x.reshape(-1, 512), x.reshape(-1, 512)).reshape(
        x.shape
    )


def with_one_outlier(x: F32Array, factor: float, seed: int) -> F32Array:
    """One weight is so many times their root mean square."""
    changed = x.copy()
    place = np.random.default_rng(seed).integers(x.size)
    changed.reshape(-1)[place] = factor * np.sqrt(np.mean(np.square(x, dtype=np.float64)))
    return changed

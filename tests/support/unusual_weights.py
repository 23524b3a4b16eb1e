"""Weights that few models have: all but a few are 0, or a few are far larger than all others."""

from collections.abc import Callable
from functools import partial

import numpy as np

from recover.quants import F32Array
from tests.support.sparse_weights import at_random, blocks_at_random, by_column


def filters(n: int, seed: int) -> F32Array:
    """Smooth kernels (n, 256) of four channels: weights beside each other are of one sign."""
    noise = np.random.default_rng(seed).standard_normal((4 * n, 64 + 32))
    bell = np.exp(-0.5 * np.square(np.linspace(-2, 2, 33)))
    smooth = np.array([np.convolve(row, bell, "valid") for row in noise])
    smooth *= 0.05 / np.sqrt(np.sum(bell**2))
    return smooth.astype(np.float32).reshape(n, 256)


def in_rows(x: F32Array, share: float) -> F32Array:
    """The smallest of each row become 0."""
    limits = np.quantile(abs(x), share, axis=1, keepdims=True)
    return np.where(abs(x) > limits, x, np.float32(0))


def enlarged(x: F32Array, share: float, factor: float, shape: tuple[int, int]) -> F32Array:
    """Of the rows, columns or weights, by the `shape`, a share is so many times as large."""
    order = np.random.default_rng(8).random(shape)
    large = order <= np.sort(order, axis=None)[max(0, round(share * order.size) - 1)]
    return x * np.where(large, np.float32(factor), np.float32(1))


def single(x: F32Array, factor: float) -> F32Array:
    """One weight is so many times as large as the others are."""
    y = x.copy()
    y.reshape(-1)[x.size // 3] = factor * np.std(x)
    return y


def weights_times(x: F32Array, share: float, factor: float) -> F32Array:
    return enlarged(x, share, factor, (x.shape[0], x.shape[1]))


def columns_times(x: F32Array, share: float, factor: float) -> F32Array:
    return enlarged(x, share, factor, (1, x.shape[1]))


def rows_times(x: F32Array, share: float, factor: float) -> F32Array:
    return enlarged(x, share, factor, (x.shape[0], 1))


WAYS: dict[str, Callable[[F32Array], F32Array]] = {
    **{
        f"{share:.0%} 0 at random": partial(at_random, share=share, seed=6)
        for share in (0.95, 0.97, 0.98, 0.99)
    },
    **{f"{share:.0%} 0 by size in rows": partial(in_rows, share=share) for share in (0.95, 0.97)},
    "97% of blocks 0": partial(blocks_at_random, share=0.97, seed=6),
    "97% of columns 0": partial(by_column, share=0.97, seed=6),
    "0.1% times 100": partial(weights_times, share=0.001, factor=100),
    "0.1% times 1000": partial(weights_times, share=0.001, factor=1000),
    "1% of columns times 30": partial(columns_times, share=0.01, factor=30),
    "1% of columns times 100": partial(columns_times, share=0.01, factor=100),
    "1% of rows times 30": partial(rows_times, share=0.01, factor=30),
    "one weight times 500": partial(single, factor=500),
}
"""What is made of weights, by its name."""

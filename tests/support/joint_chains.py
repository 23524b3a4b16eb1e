"""Chains of weights of which our encoders make the same bytes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover.estimators import TileEstimator
from recover.evidence.buffer import Source
from recover.evidence.cells import intersect_cells
from recover.quants import F32Array
from tests.support.joint_inputs import encode

BLOCK = 32
N_BLOCKS = 256 // BLOCK
N_MOVED = 1, 2, 4, 8  # weights of a move
STEPS = 0.3, 1.0, 2.0, 3.0  # of a move, in deviations of the posterior

F64Array = NDArray[np.float64]


class Sums(NamedTuple):
    """What is added up of the states of chains.

    Attributes
    ----------
    n : int
        States.
    first, second : float64 (n_superblocks, 256)
        Sums of the weights, and of their squares.
    """

    n: int
    first: F64Array
    second: F64Array


class Chains:
    """One chain for each superblock, which begins as the true weights.

    A move changes some weights of one block of 32. It is kept if every byte of every input stays
    what it is, with the chance that the prior gives it: a normal density as wide as the superblock.

    Parameters
    ----------
    sources : list of Source
        The inputs, finest first.
    x : float32 (n, 256)
        True weights.
    rng : Generator
    """

    def __init__(self, sources: list[Source], x: F32Array, rng: np.random.Generator) -> None:
        self.sources, self.x, self.rng = sources, x.copy(), rng
        self.raws = self._encoded(x)
        tile = TileEstimator(sources, "posterior")
        estimate, deviation, lower, upper = np.empty((4, x.size), np.float32)
        tile.estimate([raw.reshape(-1) for raw in self.raws], 0, x.size, estimate, deviation)
        intersect_cells(tile.evidence, lower, upper)
        shape = x.shape
        self.lower, self.upper = lower.reshape(shape), upper.reshape(shape)
        self.deviation = np.maximum(deviation.reshape(shape), 1e-6 * np.abs(x).max())
        self.variance = np.mean(np.square(x, dtype=np.float64), 1)
        self.n_tried = self.n_kept = 0

    def _encoded(self, x: F32Array) -> list[NDArray[np.uint8]]:
        return [raw.reshape(len(x), -1) for raw in encode(self.sources, x)]

    def move(self) -> None:
        """Try one move in each superblock."""
        new, n = self.x.copy(), len(self.x)
        chosen = np.argsort(self.rng.random((n, BLOCK)), 1)[:, : self.rng.choice(N_MOVED)]
        rows = np.arange(n)[:, None]
        chosen = chosen + BLOCK * self.rng.integers(N_BLOCKS, size=(n, 1))
        step = self.rng.choice(STEPS, (n, 1)) * self.rng.standard_normal(chosen.shape)
        moved = self.x[rows, chosen] + step * self.deviation[rows, chosen]
        # A step across a bound is turned back, so that each way is as likely as the way back.
        low, high = self.lower[rows, chosen], self.upper[rows, chosen]
        moved = np.where(moved < low, 2 * low - moved, moved)
        moved = np.where(moved > high, 2 * high - moved, moved)
        new[rows, chosen] = moved
        inside = np.all((new >= self.lower) & (new <= self.upper), 1)
        before, after = (np.sum(np.square(a, dtype=np.float64), 1) for a in (self.x, new))
        likely = np.log(self.rng.random(n)) < (before - after) / (2 * self.variance)
        same = inside & likely
        for own, raw in zip(self.raws, self._encoded(new), strict=True):
            same &= np.all(own == raw, 1)
        self.x[same] = new[same]
        self.n_tried, self.n_kept = self.n_tried + n, self.n_kept + int(same.sum())

    def collect(self, n: int) -> Sums:
        """Try `n` moves in each block, more or less, and add up the states."""
        begun = self.x.astype(np.float64)
        first, second = np.zeros((2, *self.x.shape))
        for _ in range(n):
            for _ in range(N_BLOCKS):
                self.move()
            off = self.x - begun
            first, second = first + off, second + off**2
        return Sums(n, begun * n + first, second + 2 * begun * first + n * begun**2)

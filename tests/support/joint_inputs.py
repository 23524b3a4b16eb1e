"""Inputs for the networks of the method `joint`, by the networks' names, and hard weights."""

import numpy as np

from recover.estimators import Tally, TileEstimator
from recover.estimators._joint_files import STAR
from recover.evidence.buffer import Source
from recover.evidence.cells import intersect_cells
from recover.quants import F32Array, U8Array, quantize, type_by_name


def sources_of(label: str) -> list[Source]:
    """Inputs by their label: types with as many stars as the number of their importance matrix."""
    return [
        Source(
            type_by_name(each.rstrip(STAR)), weighted=STAR in each, imatrix=STAR * each.count(STAR)
        )
        for each in label.split("+")
    ]


def encode(sources: list[Source], x: F32Array) -> list[U8Array]:
    def importance(source: Source) -> F32Array | None:
        if not source.weighted:
            return None
        rng = np.random.default_rng(1 + len(source.imatrix))
        return rng.lognormal(0, 1, (x.shape[1],)).astype(np.float32)

    return [quantize(x, each.type, importance(each)) for each in sources]


def run(
    method: str, sources: list[Source], raws: list[U8Array], n: int
) -> tuple[F32Array, F32Array, Tally, bool]:
    """Estimates, deviations, the tally, and whether the estimates are in all cells."""
    out, deviation, lower, upper = np.empty((4, n), np.float32)
    tile = TileEstimator(sources, method)
    tally = tile.estimate(raws, 0, n, out, deviation)
    intersect_cells(tile.evidence, lower, upper)
    return out, deviation, tally, bool(np.all((lower <= out) & (out <= upper)))


def measure(method: str, name: str, x: F32Array) -> tuple[float, float]:
    """The square error of estimates, which are in all cells, and what is claimed over it.

    `best` is the finest input alone.
    """
    sources = sources_of(name)[: 1 if method == "best" else None]
    out, _, tally, is_inside = run(method, sources, encode(sources, x), x.size)
    assert is_inside
    error = float(np.sum((out - x.reshape(-1).astype(np.float64)) ** 2))
    return error, tally.variance / error


def hard_weights(n: int = 64) -> dict[str, F32Array]:
    """Superblocks (n, 256) that the posterior's assumptions do not fit, by what they are."""
    rng = np.random.default_rng(3)
    shape = n, 256
    x = (0.05 * rng.standard_normal(shape)).astype(np.float32)
    blocks = rng.normal(0, 0.2, (n, 8)).astype(np.float32).repeat(32, 1)
    return {
        "half pruned": np.where(rng.random(shape) < 0.5, np.float32(0), x),
        "pruned": np.where(rng.random(shape) < 0.9, np.float32(0), x),
        "dead rows": x * (rng.random((n, 1)) < 0.5).astype(np.float32),
        "heavy tails": (0.02 * rng.standard_t(3, shape)).astype(np.float32),
        "heaviest tails": (0.02 * rng.standard_t(2, shape)).astype(np.float32),
        "outliers": np.where(rng.random(shape) < 0.01, 10 * x, x),
        "far outliers": np.where(rng.random(shape) < 0.005, 50 * x, x),
        "one sign": abs(x) + np.float32(0.01),
        "blocks of one sign": x + blocks,
        "small": x * np.float32(0.06),
        "smaller": x * np.float32(0.01),
        "tiny": x * np.float32(1e-4),
        "uniform": rng.uniform(-0.05, 0.05, shape).astype(np.float32),
        "rectified": np.maximum(x - np.float32(0.015), 0),
        "on a grid": np.round(x * 200) / np.float32(200),
        "sorted": np.sort(x.reshape(-1)).reshape(shape),
        "zeros": np.zeros(shape, np.float32),
    }

"""What a network learns from: weights, what encoders make of them, and what it is told of that."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import bare_kernel
from recover._compiled.lanes import load, store_f16
from recover.estimators._joint_features import (
    Inputs,
    Means,
    describe,
    inputs_of,
    n_features,
    new_means,
)
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Source
from recover.evidence.cells import intersect_cells
from recover.quants import TILE, F32Array, TensorType, U8Array, quantize, type_by_name

N_SUPERBLOCKS = TILE // 256
N_PARTS = 16  # of a batch, each of one kind of weights
ROW = 256
STAR = "*"


class Batch(NamedTuple):
    """Superblocks of which the weights are known.

    Attributes
    ----------
    by_weight : float16 bits (n, 16, F, 16)
    by_group : float16 bits (n, G, 16)
    target : float32 (n, 256)
        The weights less the posterior's means, in deviations.
    deviation : float32 (n, 256)
        Those of the posterior; 0 where the network has no part.
    alone : float32 (n,)
        Sums of square errors of the finest input.
    """

    by_weight: NDArray[np.uint16]
    by_group: NDArray[np.uint16]
    target: F32Array
    deviation: F32Array
    alone: F32Array


def pool_from(path: str) -> F32Array:
    """Rows of 256 weights, from an array of float16, or of the bits of bfloat16."""
    stored = np.load(path)
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(stored.reshape(-1, ROW), np.float32)


def draw(rng: np.random.Generator, pool: F32Array, n: int = N_SUPERBLOCKS) -> F32Array:
    """Superblocks of several kinds, float32 (n, 256)."""
    size = n // N_PARTS
    kinds = rng.choice(len(_KINDS), N_PARTS, p=[each[1] for each in _KINDS])
    parts = [_KINDS[kind][0](rng, pool, size) for kind in kinds]
    x = np.concatenate(parts).astype(np.float32)
    x *= np.exp(rng.normal(0, 0.7, (n, 1))).astype(np.float32)
    return x


def _rows(rng: np.random.Generator, pool: F32Array, n: int) -> F32Array:
    signs = np.float32(2) * rng.integers(0, 2, (n, 1)).astype(np.float32) - np.float32(1)
    return pool[rng.integers(0, len(pool), n)] * signs


def _signed(rng: np.random.Generator, pool: F32Array, n: int) -> F32Array:
    signs = np.float32(2) * rng.integers(0, 2, (n, ROW)).astype(np.float32) - np.float32(1)
    return pool[rng.integers(0, len(pool), n)] * signs


def _shuffled(rng: np.random.Generator, pool: F32Array, n: int) -> F32Array:
    """Weights of one place, in another order."""
    x = _signed(rng, pool, n)
    return x[np.arange(n)[:, None], rng.random((n, ROW), np.float32).argsort(1)]


def _student(rng: np.random.Generator, _pool: F32Array, n: int) -> F32Array:
    """Tails of many kinds; the sizes of blocks of 32 differ."""
    freedom = rng.choice([3.0, 4.0, 6.0, 10.0, 30.0, 300.0], n)
    normal = rng.standard_normal((n, ROW), np.float32)
    chi = rng.standard_gamma(freedom[:, None] / 2, (n, ROW)) / (freedom[:, None] / 2)
    uneven = np.exp(rng.normal(0, rng.uniform(0, 0.4), (n, 8))).repeat(32, 1)
    return (0.05 * normal * uneven / np.sqrt(chi)).astype(np.float32)


def _uneven(rng: np.random.Generator, pool: F32Array, n: int) -> F32Array:
    uneven = np.exp(rng.normal(0, rng.uniform(0.2, 1), (n, 16))).repeat(16, 1)
    return _signed(rng, pool, n) * uneven.astype(np.float32)


def _outliers(rng: np.random.Generator, pool: F32Array, n: int) -> F32Array:
    x = _rows(rng, pool, n)
    chosen = rng.random((n, ROW)) < 10 ** rng.uniform(-2.7, -1.5)
    return np.where(chosen, x * rng.uniform(3, 60, (n, 1)).astype(np.float32), x)


def _profiles(rng: np.random.Generator, pool: F32Array, n: int) -> F32Array:
    """Sizes that repeat: positions in a filter, or in short rows; some places are far larger."""
    period = int(rng.choice([3, 5, 9, 25, 27, 40, 49, 80, 256]))
    sizes = rng.normal(0, 1, (n, period))
    if rng.random() < 0.5:  # neighbours are alike
        sizes = np.cumsum(sizes, 1) * rng.uniform(0.1, 0.6)
    sizes = np.exp(sizes * rng.uniform(0.2, 1.3))
    x = _signed(rng, pool, n) if rng.random() < 0.5 else rng.standard_normal((n, ROW))
    start = rng.integers(0, period)
    return (x * np.tile(sizes, (1, ROW // period + 2))[:, start : start + ROW]).astype(np.float32)


def _heavy(rng: np.random.Generator, _pool: F32Array, n: int) -> F32Array:
    """Tails so heavy that most superblocks have outliers, and filters of different sizes."""
    freedom = rng.choice([1.3, 1.7, 2.0, 2.5, 3.0], (n, 1))
    chi = rng.standard_gamma(freedom / 2, (n, ROW)) / (freedom / 2)
    length = int(rng.choice([1, 9, 25, 64]))
    sizes = np.exp(rng.normal(0, rng.uniform(0, 1.2), (n, ROW // length + 1))).repeat(length, 1)
    x = rng.standard_normal((n, ROW)) * sizes[:, :ROW] / np.sqrt(np.maximum(chi, 1e-4))
    return (0.05 * np.clip(x, -300, 300)).astype(np.float32)


def _sparse(rng: np.random.Generator, pool: F32Array, n: int) -> F32Array:
    """Weights that were pruned, one by one or by blocks."""
    x = _rows(rng, pool, n)
    keep = rng.random((n, ROW)) < rng.uniform(0.1, 0.9)
    blocks = (rng.random((n, 16)) < rng.uniform(0.5, 1)).repeat(16, 1)
    return x * (keep & blocks)


_KINDS = (
    (_rows, 0.3),
    (_signed, 0.17),
    (_shuffled, 0.08),
    (_student, 0.17),
    (_uneven, 0.06),
    (_outliers, 0.06),
    (_profiles, 0.09),
    (_heavy, 0.04),
    (_sparse, 0.03),
)


@bare_kernel
def _describe_all(
    inputs: Inputs,
    posterior: tuple[F32Array, F32Array],
    bounds: tuple[F32Array, F32Array],
    means: Means,
    by_weight: F32Array,
    by_group: F32Array,
    stored: tuple[NDArray[np.uint16], NDArray[np.uint16]],
    units: F32Array,
) -> None:
    """What is told of all superblocks, as float16, and the finest step by group, or 0."""
    for i in range(units.size // 16):
        usable = describe(inputs, 256 * i, posterior, bounds, means, by_weight, by_group)
        if not usable:
            by_weight[:], by_group[:] = np.float32(0), np.float32(0)
        for g in range(16):
            units[16 * i + g] = means.unit[g] if usable else np.float32(0)
        at = i * by_weight.size
        for j in range(0, by_weight.size, 16):
            store_f16(stored[0], at + j, load(by_weight, j))
        at = i * by_group.size
        for j in range(0, by_group.size, 16):
            store_f16(stored[1], at + j, load(by_group, j))


def source_of(name: str) -> Source:
    """An input of a type; n stars after the name say that it has importance matrix number n."""
    matrix = name.count(STAR)
    return Source(type_by_name(name.rstrip(STAR)), weighted=matrix > 0, imatrix=STAR * matrix)


def draw_importance(
    rng: np.random.Generator, n_matrices: int = 1, n: int = N_PARTS, missing: float = 0.15
) -> F32Array:
    """Importance matrices, float32 (n_matrices, n, 256): of some, few columns count far more.

    Rows of NaN stand for none: files with an importance matrix have tensors without.
    """
    shape = n_matrices, n
    importance = rng.lognormal(0, rng.uniform(0.3, 1.5, (*shape, 1)), (*shape, ROW))
    large = rng.random((*shape, ROW)) < rng.choice([0, 0.01, 0.03], (*shape, 1))
    importance *= np.where(large, 30, 1)
    importance[:, rng.random(n) < missing] = np.nan
    return importance.astype(np.float32)


def _encode(x: F32Array, name: str, kind: TensorType, importance: F32Array | None) -> U8Array:
    """What an encoder makes of the rows, of which each part has an importance matrix of its own."""
    if importance is None or STAR not in name:
        return quantize(x, kind).reshape(-1)
    own = importance[name.count(STAR) - 1]
    each = zip(np.split(x, len(own)), own, strict=True)
    return np.concatenate(
        [quantize(part, kind, None if np.isnan(m[0]) else m).reshape(-1) for part, m in each]
    )


def simulate(x: F32Array, names: Sequence[str], importance: F32Array | None = None) -> Batch:
    """What becomes of superblocks (n, 256) as a set of types, finest first.

    Inputs with n stars have the importance matrices (n_matrices, n_parts, 256)[n - 1].
    """
    sources = [source_of(name) for name in names]
    raws = [
        _encode(x, name, source.type, importance)
        for name, source in zip(names, sources, strict=True)
    ]
    return tell(x, sources, raws)


def tell(x: F32Array, sources: Sequence[Source], raws: Sequence[U8Array]) -> Batch:
    """What a network is told of superblocks (n, 256) that are encoded already, finest first."""
    estimator = UncorrectedTileEstimator(sources, "posterior")
    mean, deviation, lower, upper, first = np.empty((5, x.size), np.float32)
    estimator.estimate(raws, 0, x.size, mean, deviation)
    intersect_cells(estimator.evidence, lower, upper)
    estimator.decode(0, first)
    n_inputs = len(sources)
    n_by_weight, n_by_group = n_features(n_inputs)
    by_weight = np.empty((len(x), 16, n_by_weight, 16), np.uint16)
    by_group = np.empty((len(x), n_by_group, 16), np.uint16)
    units = np.empty(x.size // 16, np.float32)
    _describe_all(
        inputs_of(estimator.evidence),
        (mean, deviation),
        (lower, upper),
        new_means(),
        np.empty(by_weight[0].size, np.float32),
        np.empty(by_group[0].size, np.float32),
        (by_weight.reshape(-1), by_group.reshape(-1)),
        units,
    )
    unit = units.repeat(16)
    deviation = np.where(unit > 0, np.maximum(deviation, np.float32(1e-4) * unit), 0)
    weights = x.reshape(-1)
    off = weights - mean
    target = np.divide(off, deviation, out=np.zeros_like(off), where=deviation > 0)
    alone = np.sum(np.square(first - weights).reshape(-1, ROW), 1)
    shape = x.shape
    return Batch(by_weight, by_group, target.reshape(shape), deviation.reshape(shape), alone)

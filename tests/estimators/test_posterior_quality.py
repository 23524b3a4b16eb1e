"""What the posterior gains and claims on trained weights that its tables were not made from."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from recover.estimators import Tally, TileEstimator, method_for
from recover.evidence.buffer import Source
from recover.evidence.densities import ABOVE, BELOW, DEGREE, density, end_codes
from recover.quants import (
    TILE,
    F32Array,
    ScalarType,
    U8Array,
    VectorType,
    dequantize,
    quantize,
    type_by_name,
)
from tests.golden.make_sample import encoded_types
from tests.oracle import libggml
from tests.oracle.weights import sentence_encoder_weights
from tests.support.coarse_scales import factors_of
from tests.support.kinds import scalar

pytestmark = pytest.mark.quality

NEEDS_IMPORTANCE = ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
MIXES = (
    (("Q5_K", "Q4_K", "Q2_K"), 0.755),
    (("Q5_K", "Q4_K"), 0.785),
    (("Q8_0", "Q6_K"), 0.85),
    (("Q6_K", "Q3_K"), 0.94),
    (("Q3_K", "Q2_K"), 0.76),
    (("IQ4_XS", "Q3_K"), 0.74),
    (("Q4_0", "Q4_K"), 0.585),
    (("Q5_1", "Q5_0"), 0.565),
    (("Q5_K", "IQ4_XS", "Q3_K"), 0.685),
    (("Q4_K", "IQ3_S"), 0.785),
    pytest.param(("Q2_K", "IQ1_S"), 0.69, marks=pytest.mark.slow),
    (("IQ3_XXS", "IQ2_XS"), 0.875),
    (("IQ3_S", "IQ3_XXS", "IQ2_XXS"), 0.6),
    (("Q5_K", "TQ2_0"), 1.0),
    pytest.param(("Q5_K", "IQ3_S", "IQ1_S"), 0.94, marks=pytest.mark.slow),
    (("MXFP4", "Q4_K"), 0.53),
    (("NVFP4", "Q5_K"), 0.725),
    (("MXFP4", "IQ4_NL"), 0.6),
    (("MXFP4", "Q3_K"), 0.42),
    (("Q4_1", "Q4_K"), 0.645),
    (("Q5_1", "Q5_K"), 0.635),
    (("Q4_1", "Q4_0"), 0.545),
    pytest.param(("IQ2_XXS", "IQ1_S"), 0.68, marks=pytest.mark.slow),
    (("IQ3_S", "Q4_K", "IQ2_XXS"), 0.775),
    (("Q8_0", "Q6_K", "Q5_1", "Q4_0", "IQ4_XS", "Q3_K"), 0.72),
)
ALIKE = (
    (("Q5_K", 6), 0.25),
    (("Q4_K", 3), 0.55),
    (("Q4_K", 10), 0.225),
    (("Q2_K", 3), 0.52),
    (("Q6_K", 3), 0.66),
)
UNPROVEN = (
    (("Q6_K", "Q5_0"), 0.79),
    (("Q5_K", "Q5_0"), 0.585),
    (("Q4_K", "Q4_0"), 0.61),
    (("IQ4_XS", "Q4_0"), 0.52),
    (("Q5_K", "Q4_K", "Q4_0"), 0.69),
    (("Q5_0", "Q4_0"), 0.71),
    (("Q5_1", "Q4_K", "Q4_1"), 0.7),
)


@pytest.fixture(scope="module")
def weights() -> F32Array:
    """Matrices of a sentence encoder's layers, one in three rows of 256."""
    rows = [w.reshape(-1, 256) for w in sentence_encoder_weights() if w.size in (147456, 589824)]
    return np.ascontiguousarray(np.concatenate(rows)[::6])


@pytest.fixture(scope="module")
def encoded(weights: F32Array) -> Callable[[str], U8Array]:
    """The weights as a type, encoded once."""
    return cache(lambda name: encode(name, weights))


@pytest.fixture(scope="module")
def some(weights: F32Array) -> F32Array:
    """One row in four, for the types whose search takes long."""
    return np.ascontiguousarray(weights[::4])


@pytest.fixture(scope="module")
def some_encoded(some: F32Array) -> Callable[[str], U8Array]:
    """These as a type, encoded once."""
    return cache(lambda name: encode(name, some))


def encode(name: str, x: F32Array, importance: F32Array | None = None) -> U8Array:
    if name in NEEDS_IMPORTANCE and importance is None:
        importance = np.ones(x.shape[1], np.float32)
    return libggml.quantize(type_by_name(name).type_id, x, importance)


def run(
    method: str,
    sources: Sequence[Source],
    raws: list[U8Array],
    *,
    estimate: str = "mean",
) -> tuple[F32Array, F32Array, Tally]:
    """Estimates, deviations and the tally, as a merge has them."""
    estimator, kind = TileEstimator(sources, method, estimate), sources[0].type
    n = raws[0].size // kind.type_size * kind.block_size
    out, deviation = np.empty((2, n), np.float32)
    tally = Tally.zeros(len(sources))
    for start in range(0, n, TILE):
        end = min(start + TILE, n)
        tally += estimator.estimate(raws, start, end, out[start:end], deviation[start:end])
    return out, deviation, tally


def plain(*names: str) -> list[Source]:
    return [Source(type_by_name(name)) for name in names]


def squared(values: F32Array, truth: F32Array) -> float:
    return float(np.sum((values.astype(np.float64) - truth.reshape(-1)) ** 2))


def check(sources: Sequence[Source], raws: list[U8Array], truth: F32Array, limit: float) -> None:
    decoded = [dequantize(raw, each.type) for raw, each in zip(raws, sources, strict=True)]
    best = min(squared(each, truth) for each in decoded)
    out, _, tally = run("posterior", sources, raws)
    ratio = squared(out, truth) / best
    assert tally.n_conflicts == 0
    assert ratio <= limit
    assert tally.variance / tally.alone.min() == pytest.approx(ratio, rel=0.03)
    for method in ("linear", "midpoint"):
        other, _, tally = run(method, sources, raws)
        assert ratio <= 1.005 * squared(other, truth) / best
        if (
            len(raws) <= 8
        ):  # of more the sample of `recover.estimators.error_calibration` knows nothing
            measured = squared(other, truth) / best
            assert tally.variance / tally.alone.min() == pytest.approx(measured, rel=0.07)


@pytest.mark.parametrize(
    ("names", "limit"),
    MIXES,
    ids=lambda each: "+".join(map(str, each)) if isinstance(each, tuple) else str(each),
)
def test_mixes_of_types(
    names: tuple[str, ...],
    limit: float,
    weights: F32Array,
    encoded: Callable[[str], U8Array],
    some: F32Array,
    some_encoded: Callable[[str], U8Array],
) -> None:
    if set(names) & {*NEEDS_IMPORTANCE}:
        weights, encoded = some, some_encoded
    check(plain(*names), [encoded(name) for name in names], weights, limit)


@pytest.mark.parametrize(("names", "limit"), UNPROVEN, ids=str)
def test_legacy_codes_of_an_importance_matrix(
    names: tuple[str, ...],
    limit: float,
    weights: F32Array,
    encoded: Callable[[str], U8Array],
    rng: np.random.Generator,
) -> None:
    *proven, last = names
    columns = rng.lognormal(size=1024).astype(np.float32)
    searched = encode(last, weights.reshape(-1, 1024), columns)
    sources = [*plain(*proven), Source(type_by_name(last), has_cells=False)]
    check(sources, [*(encoded(name) for name in proven), searched], weights, limit)


def never_worse(names: Sequence[str], x: F32Array) -> None:
    """The posterior than linear or midpoint."""
    raws = [encode(name, x) for name in names]
    off = squared(run("posterior", plain(*names), raws)[0], x)
    assert off <= 1.005 * squared(run("linear", plain(*names), raws)[0], x)
    assert off <= 1.005 * squared(run("midpoint", plain(*names), raws)[0], x)


def test_a_vector_type_does_not_spoil_superblocks_with_outliers(weights: F32Array) -> None:
    x = weights[:1024].copy()
    x[:, 5] = 25 * np.sqrt(np.mean(x**2, axis=1))
    raws = [encode(name, x) for name in ("Q3_K", "IQ2_XXS")]
    out, _, _ = run("posterior", plain("Q3_K", "IQ2_XXS"), raws)
    without, _, _ = run("posterior", plain("Q3_K"), raws[:1])
    assert squared(out, x) < 1.005 * squared(without, x)


WITH_VECTORS = (
    ("IQ2_XXS", "Q3_K"),
    ("IQ3_S", "Q2_K"),
    ("IQ2_S", "Q3_K"),
    ("IQ2_XS", "Q2_K"),
    ("IQ1_S", "Q2_K"),
    ("IQ3_XXS", "Q4_K"),
    ("IQ3_S", "IQ2_XXS", "Q2_K"),
    ("IQ3_S", "Q4_0"),
)


@pytest.mark.parametrize("names", WITH_VECTORS, ids="+".join)
def test_vector_types_of_superblocks_with_the_largest_outliers(names: tuple[str, ...]) -> None:
    rows = [w.reshape(-1, 256) for w in sentence_encoder_weights() if w.size in (147456, 589824)]
    x = np.concatenate(rows)
    peaks = np.max(x**2, axis=1) / np.mean(x**2, axis=1)
    never_worse(names, np.ascontiguousarray(x[np.argsort(-peaks)[:128]]))


@pytest.mark.parametrize("size", [8, 25, 100])
@pytest.mark.parametrize("names", WITH_VECTORS, ids="+".join)
def test_outliers_beside_vector_types(
    names: tuple[str, ...], size: float, weights: F32Array, rng: np.random.Generator
) -> None:
    """One weight in each superblock, so many times as large as its neighbours are."""
    x = weights[:128].copy()
    x[np.arange(len(x)), rng.integers(0, 256, len(x))] = size * np.sqrt(np.mean(x**2, axis=1))
    never_worse(names, x)


@pytest.mark.parametrize("size", [8, 12, 24, 80, 400])
@pytest.mark.parametrize(
    "names",
    [("Q2_K",), ("Q3_K",), ("Q4_0",), ("Q5_K", "Q4_K", "Q2_K"), ("Q5_1", "Q5_K"), ("Q6_K", "Q4_K")],
    ids="+".join,
)
def test_outliers(
    names: tuple[str, ...], size: float, weights: F32Array, rng: np.random.Generator
) -> None:
    """One weight in each superblock, so many times as large as its neighbours are."""
    x = weights[:1024].copy()
    sizes = size * rng.choice((-1, 1), len(x))
    x[np.arange(len(x)), rng.integers(0, 256, len(x))] = sizes * np.sqrt(np.mean(x**2, axis=1))
    never_worse(names, x)


@pytest.mark.parametrize("size", [3, 8, 30])
@pytest.mark.parametrize(
    "names",
    [
        ("Q2_K",),
        ("Q3_K",),
        ("Q4_0",),
        ("Q5_K", "Q4_K", "Q2_K"),
        ("Q5_1", "Q5_K"),
        ("IQ4_XS", "Q3_K"),
    ],
    ids="+".join,
)
def test_sub_blocks_of_other_sizes(
    names: tuple[str, ...], size: float, weights: F32Array, rng: np.random.Generator
) -> None:
    """One in eight of 32 weights so many times as large as the others."""
    blocks = weights[:1024].reshape(-1, 8, 32).copy()
    blocks[np.arange(len(blocks)), rng.integers(0, 8, len(blocks))] *= size
    x = blocks.reshape(-1, 256)
    raws = [encode(name, x) for name in names]
    off = squared(run("posterior", plain(*names), raws)[0], x)
    assert off <= squared(run("linear", plain(*names), raws)[0], x)
    assert off <= squared(run("midpoint", plain(*names), raws)[0], x)


@pytest.mark.parametrize(("uploads", "limit"), ALIKE, ids=str)
def test_uploads_of_one_type(
    uploads: tuple[str, int], limit: float, weights: F32Array, rng: np.random.Generator
) -> None:
    name, n = uploads
    x = weights.reshape(-1, 1024)
    others = [rng.lognormal(size=1024).astype(np.float32) for _ in range(n - 1)]
    raws = [encode(name, x), *(encode(name, x, each) for each in others)]
    searched = Source(type_by_name(name), weighted=True)
    check([*plain(name), *[searched] * (n - 1)], raws, weights, limit)


@pytest.mark.parametrize("kind", encoded_types(), ids=lambda kind: kind.name)
def test_one_input_is_never_worse_than_its_decoded_values(
    kind: ScalarType | VectorType, some: F32Array, some_encoded: Callable[[str], U8Array]
) -> None:
    """By the method that a merge chooses for it."""
    raw = some_encoded(kind.name)
    method = method_for([Source(kind)], "posterior")
    ratio = squared(run(method, plain(kind.name), [raw])[0], some) / squared(
        dequantize(raw, kind), some
    )
    assert ratio < 1 if method == "posterior" else ratio == 1
    is_native = kind.name in ("MXFP4", "NVFP4", "TQ1_0", "TQ2_0")  # models are published in these
    assert (method == "posterior") == (kind.relative_mse > 0.006 and not is_native)
    if isinstance(kind, ScalarType):  # what an importance matrix adds is not worth the risk
        assert method_for([Source(kind, weighted=True)], "posterior") == "best"


def test_intervals_hold_as_much_as_they_say(weights: F32Array) -> None:
    """Central 50% and 90% of the posterior, integrated weight by weight."""
    names = ("Q5_K", "Q4_K", "Q2_K")
    raws = [encode(name, weights[:128]) for name in names]
    x = weights[:128].reshape(-1).astype(np.float64)
    finest = dequantize(raws[0], type_by_name(names[0])).reshape(-1, 256).astype(np.float64)
    prior = np.repeat(np.mean(finest**2, axis=1), 256)
    place = np.linspace(-1.5, 1.5, 601)
    first = _say(names[0], raws[0])
    grid = first[0][:, None] + np.abs(first[1])[:, None] * place
    total = -(grid**2) / (2 * prior[:, None])
    for name, raw in zip(names, raws, strict=True):
        total += _log_density(name, *_say(name, raw), grid)
    known = np.isfinite(total.max(axis=1))  # the others lie in cells narrower than the grid
    assert known.mean() > 0.98
    total, grid, x = total[known], grid[known], x[known]
    share = np.exp(total - total.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    below = np.sum(share * (grid < x[:, None]), axis=1)
    for level, tolerance in ((0.5, 0.02), (0.9, 0.01)):
        held = np.mean(np.abs(below - 0.5) < level / 2)
        assert held == pytest.approx(level, abs=tolerance)


def _say(
    name: str, raw: U8Array
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8]]:
    """Decoded values, scales and codes."""
    kind = scalar(name)
    n = raw.size // kind.type_size * kind.block_size
    codes, (scale, offset) = np.empty(n, np.uint8), np.empty((2, n // 16), np.float32)
    kind.unpack(raw, codes, scale, offset)
    values = libggml.dequantize(kind.type_id, raw).astype(np.float64)
    return values, scale.repeat(16).astype(np.float64), codes


def _log_density(
    name: str,
    values: NDArray[np.float64],
    scale: NDArray[np.float64],
    codes: NDArray[np.uint8],
    grid: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Logarithm of what one input says, -inf outside of its cell or reach."""
    kind = scalar(name)
    rows, (first, last) = density(kind).astype(np.float64), end_codes(kind)
    u = (grid - values[:, None]) / np.where(scale == 0, np.nan, scale)[:, None]
    z = ((2.0 * codes - first - last) / (last - first))[:, None]
    inside = rows[0, :DEGREE] + rows[3, :DEGREE] * np.concatenate([z, z**2], axis=1)
    ends = np.where((codes == first)[:, None], rows[1, :DEGREE], rows[2, :DEGREE])
    is_end = ((codes == first) | (codes == last))[:, None]
    offset = values - kind.levels[codes] * scale
    factors = factors_of(kind, scale[::16], offset[::16])
    stretch, left = (each.repeat(16)[:, None] for each in factors)
    inside = inside * left
    edge = np.where(codes == first, 0.5, -0.5)[:, None]
    shift = edge * (1 - 1 / stretch)
    ends = np.hstack([ends[:, :1] + 2 * ends[:, 1:] * shift, ends[:, 1:] / stretch]) / stretch
    c = np.where(is_end, ends, inside)
    low = np.where((codes == first)[:, None], (rows[1, BELOW] - 0.5) * stretch + 0.5, -0.5)
    high = np.where((codes == last)[:, None], (rows[2, ABOVE] + 0.5) * stretch - 0.5, 0.5)
    logs = sum(c[:, i : i + 1] * u ** (i + 1) for i in range(DEGREE))
    logs = np.where((u >= low) & (u <= high), logs, -np.inf)
    return np.where(np.isnan(u), 0.0, logs)


def test_mode_is_where_the_density_is_largest(weights: F32Array) -> None:
    names = ("Q5_K", "Q4_K")
    raws = [encode(name, weights[:64]) for name in names]
    mode, _, _ = run("posterior", plain(*names), raws, estimate="map")
    mean, deviation, _ = run("posterior", plain(*names), raws)
    finest = dequantize(raws[0], type_by_name(names[0])).reshape(-1, 256).astype(np.float64)
    prior = np.repeat(np.mean(finest**2, axis=1), 256)

    def height(x: F32Array) -> NDArray[np.float64]:
        grid = x[:, None].astype(np.float64)
        total = -(grid**2) / (2 * prior[:, None])
        for name, raw in zip(names, raws, strict=True):
            total = total + _log_density(name, *_say(name, raw), grid)
        return total[:, 0]

    at_mode = height(mode)
    known = np.isfinite(at_mode)
    assert np.mean(known) > 0.9  # the rest is on an edge, within rounding
    for step in (-1, -0.3, 0.3, 1):
        other = height((mode + step * deviation).astype(np.float32))
        assert np.all(other[known] <= at_mode[known] + 0.02)
    assert np.mean(np.abs(mode - mean) < 2 * deviation) > 0.99


def test_deviations_are_the_errors(weights: F32Array) -> None:
    names = ("Q6_K", "Q4_K")
    raws = [encode(name, weights) for name in names]
    out, deviation, tally = run("posterior", plain(*names), raws)
    assert np.sum(deviation.astype(np.float64) ** 2) == pytest.approx(tally.variance, rel=1e-4)
    z = (out - weights.reshape(-1)) / np.maximum(deviation, 1e-9)
    assert np.mean(z**2) == pytest.approx(1, abs=0.06)


def test_errors_to_expect_do_not_depend_on_where_in_a_row_weights_are() -> None:
    """Nor on the number of superblocks in a row, though only some are looked at."""
    rng = np.random.default_rng(3)
    for n_superblocks in (1, 2, 3, 4, 6, 8, 12, 16):
        n_rows = TILE // 256 // n_superblocks
        sizes = np.exp2(rng.uniform(-2, 2, n_superblocks))[:, None]
        x = (rng.standard_normal((n_rows, n_superblocks, 256)) * sizes).astype(np.float32)
        x = x.reshape(-1)
        kind = scalar("Q4_K")
        estimator = TileEstimator([Source(kind)], "posterior")
        out, deviation = np.empty((2, x.size), np.float32)
        raw = quantize(x[None], kind).reshape(-1)
        some, each = (
            estimator.estimate([raw], 0, x.size, out, *more).variance for more in ((), (deviation,))
        )
        assert some == pytest.approx(each, rel=0.02)

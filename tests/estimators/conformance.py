"""What every estimator must keep: the checks that run on each, also on those of other packages."""

from collections.abc import Callable, Sequence

import numpy as np

from recover.estimators import Tally, TileEstimator, estimator
from recover.evidence.buffer import Source
from recover.evidence.cells import intersect_cells
from recover.quants import F32Array, ScalarType, TensorType, U8Array, dequantize, type_by_name
from tests.oracle import libggml

MIXES = (
    ("Q5_K", "Q4_K", "Q2_K"),
    ("Q8_0", "Q4_0", "Q6_K"),
    ("IQ3_S", "Q4_K", "IQ2_XS"),  # an input without cells comes first
)
N_ROWS, N_COLUMNS = 16, 512


def _draw() -> F32Array:
    rng = np.random.default_rng(11)
    return rng.standard_t(6, (N_ROWS, N_COLUMNS)).astype(np.float32) * np.float32(0.02)


def _encode(kind: TensorType, x: F32Array) -> U8Array:
    importance = np.ones(x.shape[1], np.float32) if kind.name.startswith("IQ") else None
    return libggml.quantize(kind.type_id, x, importance)


def _estimate(method: str, mix: Sequence[str], x: F32Array) -> tuple[F32Array, F32Array, Tally]:
    """Estimates, deviations and the tally."""
    sources = [Source(type_by_name(name)) for name in mix]
    raws = [_encode(each.type, x) for each in sources]
    out, deviation = np.full((2, x.size), np.nan, np.float32)
    tally = TileEstimator(sources, method).estimate(raws, 0, x.size, out, deviation)
    return out, deviation, tally


def check_facts(method: str) -> None:
    """A line for people, and no contradiction in what is known of it."""
    known = estimator(method)
    assert known.name == method
    assert known.summary
    assert "\n" not in known.summary
    assert known.sees_conflicts or not known.decides
    assert known.calibrated in {"weights", "densities", None}
    if known.takes_first:
        assert not any(known.gains_alone(Source(type_by_name(name))) for name in MIXES[0])


def check_estimates(method: str) -> None:
    """All weights are estimated, and better than with the coarsest input."""
    x = _draw()
    for mix in MIXES:
        out, deviation, tally = _estimate(method, mix, x)
        assert np.isfinite(out).all()
        error = np.sum((out - x.reshape(-1)) ** 2.0)
        assert error < np.max(tally.alone)
        assert np.all(deviation > 0)
        assert 0.4 < error / tally.variance < 2.5


def check_cells(method: str) -> None:
    """An estimator that sees conflicts finds none here, and stays within all cells."""
    if not estimator(method).sees_conflicts:
        return
    x = _draw()
    for mix in MIXES:
        sources = [Source(type_by_name(name)) for name in mix]
        raws = [_encode(each.type, x) for each in sources]
        out, lower, upper = np.empty((3, x.size), np.float32)
        tile = TileEstimator(sources, method)
        tally = tile.estimate(raws, 0, x.size, out)
        intersect_cells(tile.evidence, lower, upper)
        assert tally.n_conflicts == 0
        assert np.all((lower <= out) & (out <= upper))


def check_order(method: str) -> None:
    """It does not matter which input is named first, if both kinds keep their order."""
    x = _draw()
    for mix in MIXES:
        scalars = [name for name in mix if isinstance(type_by_name(name), ScalarType)]
        others = [name for name in mix if name not in scalars]
        straight = _estimate(method, [*scalars, *others], x)
        turned = _estimate(method, [*others, *scalars], x)
        np.testing.assert_array_equal(straight[0], turned[0])
        np.testing.assert_array_equal(straight[1], turned[1])
        n = len(scalars)
        np.testing.assert_array_equal(np.roll(straight[2].alone, -n), turned[2].alone)
        assert straight[2].variance == turned[2].variance


def check_expected_of_each(method: str) -> None:
    """`alone` tells of each input, in the order in which they are named."""
    x = _draw()
    for mix in MIXES:
        alone = _estimate(method, mix, x)[2].alone
        for name, expected in zip(mix, alone, strict=True):
            kind = type_by_name(name)
            measured = np.sum((dequantize(_encode(kind, x), kind) - x.reshape(-1)) ** 2.0)
            assert 0.6 < expected / measured < 1.6


def check_one_input(method: str) -> None:
    """One input alone gives about what it is decoded to."""
    x = _draw()
    for name in MIXES[0]:
        kind = type_by_name(name)
        out, _, tally = _estimate(method, [name], x)
        decoded = dequantize(_encode(kind, x), kind)
        measured = np.sum((decoded - x.reshape(-1)) ** 2.0)
        assert np.sum((out - x.reshape(-1)) ** 2.0) < 1.1 * measured
        assert len(tally.alone) == 1
        if estimator(method).takes_first:
            np.testing.assert_array_equal(out, decoded)


def check_scaling(method: str) -> None:
    """Weights that are a power of two as large give estimates that are so."""
    x = _draw()
    mix = ("Q5_K", "Q4_K", "Q3_K")
    one, other = (_estimate(method, mix, x * np.float32(factor)) for factor in (16, 4))
    np.testing.assert_allclose(one[0], 4 * other[0], rtol=2e-5, atol=2e-7)
    assert np.isclose(one[2].variance, 16 * other[2].variance, rtol=1e-3)


def check_sums(method: str) -> None:
    """Tallies of the two halves add up to that of all; tiles do not depend on each other."""
    x = _draw()
    half = x.size // 2
    for mix in MIXES:
        sources = [Source(type_by_name(name)) for name in mix]
        raws = [_encode(each.type, x) for each in sources]
        whole, parts, deviation = np.empty((3, x.size), np.float32)
        tile = TileEstimator(sources, method)
        expected = tile.estimate(raws, 0, x.size, whole, deviation)
        row = np.zeros((2, 3 + Tally.size_for(len(mix))))[1]
        tally = Tally(row[3:])  # as a part of the sums of others
        for start in (0, half):
            part = slice(start, start + half)
            tally += tile.estimate(raws, start, start + half, parts[part], deviation[part])
        np.testing.assert_array_equal(whole, parts)
        assert not row[:3].any()
        # How heavy the tails are is looked at tile by tile.
        np.testing.assert_allclose(row[3:], expected.array, rtol=0.05)


CHECKS: tuple[Callable[[str], None], ...] = (
    check_facts,
    check_estimates,
    check_cells,
    check_order,
    check_expected_of_each,
    check_one_input,
    check_scaling,
    check_sums,
)

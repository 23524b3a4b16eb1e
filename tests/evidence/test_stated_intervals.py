"""Inputs that state intervals: what grids say without their grid, and steps that fit no grid."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import truncnorm

from recover.containers.gguf.tensor import Tensor
from recover.errors import QuantError
from recover.estimators import Request, Tally, TileEstimator, estimator, method_names
from recover.evidence.buffer import Evidence, EvidenceBuffer, Source
from recover.evidence.cells import intersect_cells
from recover.evidence.densities import (
    ABOVE,
    ATOM,
    BELOW,
    HIGHEST,
    LOWEST,
    VARYING,
    density,
    interval_density,
    tempering,
)
from recover.evidence.intervals import Intervals
from recover.merge.columns import Rows
from recover.merge.compare import compare_unproven, count_conflicts
from recover.merge.finite import n_broken
from recover.quants import (
    F32Array,
    IntervalTensor,
    IntervalType,
    ScalarType,
    dequantize,
    quantize,
    type_by_name,
)
from tests.oracle import libggml
from tests.support.kinds import scalar
from tests.support.stated_intervals import (
    ColumnScaled,
    GridStated,
    round_columns,
    state,
    stated_type,
    tensor_of,
    type_with,
)

SETS = (
    ("Q5_0",),
    ("Q4_0",),
    ("Q8_0",),
    ("Q6_K",),
    ("Q6_K", "Q4_0"),
    ("Q8_0", "Q6_K"),
    ("Q5_K", "Q4_K", "Q2_K"),
)
Input = Tensor | IntervalTensor


def sample(rng: np.random.Generator) -> F32Array:
    """Rows with ordinary and awkward sub-blocks, and outliers."""
    x = rng.standard_t(5, (64, 512)).astype(np.float32) * np.float32(0.02)
    x[0, 32:80] = 0
    x[1, :256] = 0.125
    x[2, 100] = 30
    x[3] *= np.float32(1e-4)
    return x


def grids(mix: Sequence[str], x: F32Array) -> list[Tensor]:
    return [tensor_of(quantize(x, type_by_name(name)), name, x.size) for name in mix]


def stated(mix: Sequence[str], x: F32Array) -> list[GridStated]:
    return [state(quantize(x, type_by_name(name)), name, x.size) for name in mix]


def read(inputs: Sequence[Input], n: int, sources: Sequence[Source] = ()) -> Evidence:
    sources = sources or [Source(each.type) for each in inputs]
    return EvidenceBuffer(sources).read(inputs, 0, n)


def order(sources: Sequence[Source]) -> list[int]:
    """The place of each source in evidence."""
    return [int(place) for place in EvidenceBuffer(sources).order]


def run(
    method: str, evidence: Evidence, estimate: str = "mean", deviation: bool = False
) -> tuple[F32Array, Tally, F32Array]:
    n = evidence.codes.shape[1]
    n_inputs = len(evidence.codes) + len(evidence.interval_values) + len(evidence.values)
    out, tally = np.full(n, np.nan, np.float32), Tally.zeros(n_inputs)
    deviations = np.full(n if deviation else 0, np.nan, np.float32)
    estimator(method).estimate(evidence, out, tally, Request(estimate, deviations))
    return out, tally, deviations


def bounds(evidence: Evidence) -> tuple[F32Array, F32Array]:
    lower, upper = np.empty((2, evidence.codes.shape[1]), np.float32)
    intersect_cells(evidence, lower, upper)
    return lower, upper


def error(out: F32Array, x: F32Array) -> float:
    return float(np.mean((out - x.reshape(-1).astype(np.float64)) ** 2))


@pytest.mark.parametrize("mix", SETS, ids="+".join)
def test_bounds_and_simple_estimates_are_those_of_the_grid(
    mix: tuple[str, ...], rng: np.random.Generator
) -> None:
    x = sample(rng)
    grid, other = read(grids(mix, x), x.size), read(stated(mix, x), x.size)
    lower, upper = bounds(other)
    np.testing.assert_array_equal(bounds(grid), (lower, upper))
    assert np.all((lower <= x.reshape(-1)) & (x.reshape(-1) <= upper))
    mean, _, deviation = run("posterior", other, deviation=True)
    values = other.interval_values.astype(np.float64)
    alone = np.square(values - mean).sum(1) + np.square(deviation.astype(np.float64)).sum()
    for method in ("best", "linear", "midpoint"):
        expected, tally, _ = run(method, grid)
        out, other_tally, _ = run(method, other)
        size = np.abs(expected).reshape(-1, 256).max(1).repeat(256)
        assert np.all(np.abs(out - expected) <= 1e-6 * size), method
        assert other_tally.n_conflicts == tally.n_conflicts
        if method == "best":
            np.testing.assert_allclose(other_tally.array, tally.array, rtol=1e-5)
            continue
        # Beside interval inputs the posterior tells the errors to expect.
        off = np.square(out.astype(np.float64) - mean) + np.square(deviation.astype(np.float64))
        np.testing.assert_allclose(other_tally.variance, off.sum(), rtol=1e-4)
        np.testing.assert_allclose(other_tally.alone, alone, rtol=1e-4)


def even_table(kind: ScalarType) -> F32Array:
    """A density that is the same for all codes and both signs; those at open ends reach as far."""
    table = density(kind)
    table[:VARYING, :2] = 0, table[0, 1]
    table[VARYING], table[:, ATOM] = 0, 0
    is_open = np.isinf(kind.lower_levels).any() and kind.name != "Q8_0"
    if is_open:
        table[[LOWEST, HIGHEST], BELOW], table[[LOWEST, HIGHEST], ABOVE] = -0.6, 0.6
    return table


@pytest.mark.parametrize("estimate", ["mean", "map"])
@pytest.mark.parametrize(
    "mix", [("Q6_K",), ("Q5_K", "Q4_K", "Q2_K"), ("Q6_K", "Q3_K")], ids="+".join
)
def test_posterior_of_one_density_is_that_of_the_grid(
    mix: tuple[str, ...], estimate: str, rng: np.random.Generator
) -> None:
    """Where both are told the same of the density they say the same.

    But for weights that grids' reaches leave no place for: reaches of intervals are not used there.
    Intervals do not know what scales of 0 tell, beside zeros and outliers.
    """
    x = sample(rng)
    x[[0, 2]] = x[[4, 6]]
    tables = [even_table(scalar(name)) for name in mix]
    plain = grids(mix, x)
    sources = [
        Source(each.type, density=tuple(map(tuple, table.tolist())))
        for each, table in zip(plain, tables, strict=True)
    ]
    others = [
        GridStated(type_with(scalar(name), table), each)
        for name, each, table in zip(mix, plain, tables, strict=True)
    ]
    grid, other = read(plain, x.size, sources), read(others, x.size)
    grid = grid._replace(scale_steps=np.zeros(len(mix)))  # intervals do not know coarse scales
    expected, tally, deviation = run("posterior", grid, estimate, deviation=True)
    out, other_tally, other_deviation = run("posterior", other, estimate, deviation=True)
    typical = np.repeat(np.sqrt(grid.scale[0] ** 2 / 12), 16)
    differs = (typical > 0) & (np.abs(out - expected) > 2e-3 * typical)
    assert np.mean(differs) < 0.002
    if estimate == "mean":
        before, after = (np.sum((each - x.reshape(-1))[differs] ** 2.0) for each in (expected, out))
        assert after <= 1.05 * before
        np.testing.assert_allclose(other_tally.array, tally.array, rtol=2e-3)
        near = np.isclose(other_deviation, deviation, rtol=5e-3, atol=1e-9)
        assert np.mean(near) > 0.99


# Root mean square difference over the error: what grids tell by code and intervals do not. The
# density of codes near the ends differs in Q6_K, that of coarse scales in all K-quants, that of the
# end codes and of the extreme weights (which have atoms) in Q8_0, Q5_0 and Q4_0.
DIFFERENCES = {
    ("Q5_0",): 0.04,
    ("Q4_0",): 0.06,
    ("Q8_0",): 0.02,
    ("Q6_K",): 0.03,
    ("Q6_K", "Q4_0"): 0.1,
    ("Q8_0", "Q6_K"): 0.13,
    ("Q5_K", "Q4_K", "Q2_K"): 0.02,
}


@pytest.mark.parametrize("mix", SETS, ids="+".join)
def test_posterior_is_nearly_that_of_the_grid(
    mix: tuple[str, ...], rng: np.random.Generator
) -> None:
    x = rng.standard_t(8, (256, 1024)).astype(np.float32) * np.float32(0.02)
    grid, other = read(grids(mix, x), x.size), read(stated(mix, x), x.size)
    expected, _, _ = run("posterior", grid)
    out, tally, _ = run("posterior", other)
    measured = error(expected, x)
    assert error(out, x) < 1.015 * measured
    assert np.mean((out - expected.astype(np.float64)) ** 2) < DIFFERENCES[mix] ** 2 * measured
    assert tally.variance / x.size == pytest.approx(error(out, x), rel=0.08)


@pytest.mark.parametrize("method", ["linear", "midpoint", "posterior"])
@pytest.mark.parametrize(
    ("mix", "which"),
    [
        (("Q6_K", "Q4_0"), (0,)),
        (("Q6_K", "Q4_0"), (1,)),
        (("Q5_K", "Q4_K", "Q2_K"), (0, 2)),
        (("Q4_K", "IQ3_S"), (0,)),
    ],
    ids=str,
)
def test_intervals_beside_other_inputs(
    mix: tuple[str, ...], which: tuple[int, ...], method: str, rng: np.random.Generator
) -> None:
    """Any mix of kinds says what the grids alone do; the error stays below that of the best."""
    x = rng.standard_t(8, (64, 1024)).astype(np.float32) * np.float32(0.02)
    ones = np.ones(x.shape[1], np.float32)
    raws = [
        libggml.quantize(type_by_name(name).type_id, x, ones if name == "IQ3_S" else None)
        for name in mix
    ]
    plain: list[Input] = [tensor_of(raw, name, x.size) for raw, name in zip(raws, mix, strict=True)]
    mixed: list[Input] = [
        state(raw, name, x.size) if k in which else tensor
        for k, (raw, name, tensor) in enumerate(zip(raws, mix, plain, strict=True))
    ]
    expected, tally, _ = run(method, read(plain, x.size))
    evidence = read(mixed, x.size)
    out, mixed_tally, _ = run(method, evidence)
    measured = error(expected, x)
    assert np.mean((out - expected.astype(np.float64)) ** 2) < 0.1**2 * measured
    if method == "posterior":
        assert error(out, x) < error(dequantize(raws[0], type_by_name(mix[0])), x)
    lower, upper = bounds(evidence)
    assert np.all((lower <= x.reshape(-1)) & (x.reshape(-1) <= upper))
    if method != "linear":
        assert np.all((lower <= out) & (out <= upper))
    slots = np.array(order([Source(each.type) for each in mixed]))
    grid_slots = np.array(order([Source(each.type) for each in plain]))
    np.testing.assert_allclose(mixed_tally.alone[slots], tally.alone[grid_slots], rtol=0.1)
    assert mixed_tally.variance == pytest.approx(tally.variance, rel=0.1)


@pytest.mark.parametrize("method", ["midpoint", "posterior"])
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)], ids=str)
def test_conflicts_are_counted_and_the_finest_input_wins(
    which: tuple[int, ...], method: str, rng: np.random.Generator
) -> None:
    x, y = rng.standard_normal((2, 4, 256), np.float32)
    plain: list[Input] = [grids(("Q6_K",), x)[0], grids(("Q5_K",), y)[0]]
    others: list[Input] = [stated(("Q6_K",), x)[0], stated(("Q5_K",), y)[0]]
    _, tally, _ = run(method, read(plain, x.size))
    evidence = read([others[k] if k in which else plain[k] for k in range(2)], x.size)
    out, mixed_tally, _ = run(method, evidence)
    assert mixed_tally.n_conflicts == tally.n_conflicts > 900
    lower, upper = bounds(evidence)
    conflicts = lower > upper
    finest = dequantize(quantize(x, type_by_name("Q6_K")), type_by_name("Q6_K"))
    np.testing.assert_array_equal(out[conflicts], finest[conflicts])
    assert count_conflicts(evidence, 1) == tally.n_conflicts
    assert count_conflicts(evidence, 2) == 2 * np.count_nonzero(conflicts.reshape(-1, 32)[::2])


@pytest.fixture
def columns(rng: np.random.Generator) -> tuple[F32Array, list[ColumnScaled]]:
    """Weights whose columns differ in size, rounded with two steps per column."""
    x = rng.standard_normal((96, 320), np.float32)
    x *= rng.lognormal(0, 0.3, 320).astype(np.float32)
    return x, [round_columns(x, 60, 1e-4), round_columns(x, 47, 2e-4)]


def test_steps_that_fit_no_grid(columns: tuple[F32Array, list[ColumnScaled]]) -> None:
    """Within sound bounds, and better than the best input by as much as is claimed."""
    x, inputs = columns
    evidence = read(inputs, x.size)
    lower, upper = bounds(evidence)
    assert np.all((lower <= x.reshape(-1)) & (x.reshape(-1) <= upper))
    alone = error(run("best", evidence)[0], x)
    np.testing.assert_array_equal(run("best", evidence)[0], evidence.interval_values[0])
    for method, gain in (("linear", 0.95), ("midpoint", 0.75), ("posterior", 0.75)):
        out, tally, deviation = run(method, evidence, deviation=True)
        assert error(out, x) < gain * alone
        assert tally.n_conflicts == 0
        assert tally.alone[0] / x.size == pytest.approx(alone, rel=0.03)
        if method == "posterior":
            assert tally.variance / x.size == pytest.approx(error(out, x), rel=0.05)
            assert np.sum(deviation.astype(np.float64) ** 2) == pytest.approx(
                tally.variance, rel=1e-3
            )
            assert np.all((lower <= out) & (out <= upper))


def test_posterior_against_the_naive_reference(
    columns: tuple[F32Array, list[ColumnScaled]],
) -> None:
    """A normal prior as wide as the superblock of the finest input, cut at the bounds."""
    x, inputs = columns
    evidence = read(inputs, x.size)
    out, _, deviation = run("posterior", evidence, deviation=True)
    values = evidence.interval_values[0].astype(np.float64).reshape(-1, 256)
    sigma = np.sqrt(np.mean(values**2, axis=1)).repeat(256)
    lower, upper = bounds(evidence)
    width = (upper - lower).astype(np.float64)
    seen = np.isfinite(width) & (width > 1e-3 * np.sqrt(evidence.interval_variance[0]))
    assert np.mean(seen) > 0.9
    some = np.flatnonzero(seen)[::32]  # scipy integrates each
    low, high = ((each / sigma)[some] for each in (lower, upper))
    reference = truncnorm(low, high, scale=sigma[some])
    off = np.abs(out[some] - reference.mean()) / width[some]
    assert np.sqrt(np.mean(off**2)) < 1e-3
    ratio = deviation[some] / reference.std()
    np.testing.assert_allclose(np.median(ratio), 1, atol=0.01)


def test_default_density_at_open_ends(rng: np.random.Generator) -> None:
    """Clipped weights are looked for around their value, on the inner side of which is a bound."""
    x = rng.standard_normal((64, 256), np.float32)
    steps = np.full(256, 1 / 50, np.float32)
    codes = np.clip(np.rint(x / steps), -128, 127).astype(np.int64)
    tensor = ColumnScaled(IntervalType(name="I8", relative_mse=1e-4), codes.reshape(-1), steps)
    assert (codes == 127).any()
    assert (codes == -128).any()
    evidence = read([tensor], x.size)
    out, tally, _ = run("posterior", evidence)
    at_end = (codes == 127) | (codes == -128)
    off = (out - evidence.interval_values[0]).reshape(x.shape)[at_end] * 50
    assert np.all(np.abs(off) < 0.5)
    assert tally.n_conflicts == 0


def test_what_is_broken_is_left_to_the_others(
    columns: tuple[F32Array, list[ColumnScaled]],
) -> None:
    x, inputs = columns
    evidence = read(inputs, x.size)
    evidence.interval_values[0, 16:32] = np.nan
    evidence.interval_lower[0, 16:32] = np.nan
    evidence.interval_upper[0, 16:32] = np.nan
    evidence.interval_variance[0, 48:64] = np.inf
    assert n_broken(evidence) == 1
    weights = np.array([0.75, 0.25])
    for method in ("linear", "midpoint", "posterior"):
        out, tally, _ = run(method, evidence)
        off = np.abs(out[16:32] - x.reshape(-1)[16:32])
        assert np.all(off <= 0.51 * np.sqrt(12 * evidence.interval_variance[1, 16:32]))
        assert np.all(np.isfinite(out))
        assert np.all(np.isfinite(tally.array))
    out, _, _ = run("linear", evidence._replace(weights=weights))
    np.testing.assert_allclose(out[16:32], evidence.interval_values[1, 16:32], rtol=1e-6)
    both = weights @ evidence.interval_values[:, 64:]
    np.testing.assert_allclose(out[64:], both, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [16, 240, 272])
def test_tiles_need_not_be_whole_superblocks(
    n: int, columns: tuple[F32Array, list[ColumnScaled]]
) -> None:
    x, inputs = columns
    for method in method_names():
        out, tally, deviation = run(method, read(inputs, n), deviation=True)
        assert np.all(np.isfinite(out))
        assert np.all(np.isfinite(deviation))
        steps = np.sqrt(12 * read(inputs, n).interval_variance[0])
        assert np.all(np.abs(out - x.reshape(-1)[:n]) < 0.8 * steps)
        assert tally.n_conflicts == 0


def test_power_of_two_scaling(columns: tuple[F32Array, list[ColumnScaled]]) -> None:
    x, _ = columns
    results = []
    for factor in (1, 2.0**-20):
        inputs = [round_columns(x * np.float32(factor), largest, 1e-4) for largest in (60, 47)]
        results.append(run("posterior", read(inputs, x.size))[0])
    size = np.abs(results[0]).max()
    np.testing.assert_allclose(results[0], results[1] * 2.0**20, rtol=2e-5, atol=1e-6 * size)


def test_inputs_without_cells_prove_nothing(
    columns: tuple[F32Array, list[ColumnScaled]],
) -> None:
    x, inputs = columns
    sources = [Source(each.type, has_cells=False) for each in inputs]
    evidence = read(inputs, x.size, sources)
    lower, upper = bounds(evidence)
    assert np.all(np.isneginf(lower) & np.isposinf(upper))
    linear, _, _ = run("linear", evidence)
    np.testing.assert_array_equal(run("midpoint", evidence)[0], linear)
    out, tally, _ = run("posterior", evidence)  # a product of normal densities
    precision = (1 / evidence.interval_variance).sum(0)
    mean = (evidence.interval_values / evidence.interval_variance).sum(0) / precision
    assert np.mean((out - mean) ** 2 * precision) < 0.02**2
    assert tally.variance == pytest.approx(np.sum(1 / precision), rel=0.02)
    other = ColumnScaled(inputs[1].type, -inputs[1].codes, inputs[1].steps)
    other_evidence = read([inputs[0], other], x.size, sources)
    assert compare_unproven(evidence, Rows((x.size,)))[0, 0] == 0
    assert compare_unproven(other_evidence, Rows((x.size,)))[0, 0] == x.size


@pytest.mark.parametrize("method", method_names())
def test_a_merge_takes_intervals(method: str, rng: np.random.Generator) -> None:
    """The object that a merge asks gives the same, and what each input alone has in their order."""
    x = rng.standard_t(8, (16, 1024)).astype(np.float32) * np.float32(0.02)
    raws = [quantize(x, type_by_name(name)) for name in ("Q4_0", "Q6_K")]
    inputs: list[Input] = [state(raws[0], "Q4_0", x.size), tensor_of(raws[1], "Q6_K", x.size)]
    expected, sums, _ = run(method, read(inputs, x.size))
    out = np.empty(x.size, np.float32)
    sources = [Source(each.type) for each in inputs]
    tally = TileEstimator(sources, method).estimate(inputs, 0, x.size, out)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_allclose(tally.alone, sums.alone[order(sources)])
    assert tally.alone[0] > 4 * tally.alone[1] > 0


def test_slots_and_the_finest() -> None:
    fine = IntervalType(name="fine", relative_mse=1e-9)
    coarse = IntervalType(name="coarse", relative_mse=1)
    q4, iq3 = type_by_name("Q4_K"), type_by_name("IQ3_S")
    cases = (
        ((iq3, fine, q4), (2, 1, 0), 1),
        ((coarse, q4, iq3), (1, 0, 2), 0),
        ((iq3, fine), (1, 0), 0),
    )
    for kinds, slots, finest in cases:
        sources = [Source(kind) for kind in kinds]
        assert tuple(order(sources)) == slots
        assert EvidenceBuffer(sources)._views(16).finest == finest


def test_intervals_have_no_bytes() -> None:
    kind = IntervalType(name="I8", relative_mse=1e-4)
    with pytest.raises(QuantError, match="type I8 has no bytes to unpack"):
        EvidenceBuffer([Source(kind)]).load([np.zeros(16, np.uint8)], 16)


def test_shares() -> None:
    """An interval type counts as the type that it is like, or as independent of all others."""
    q6, alike = type_by_name("Q6_K"), stated_type("Q6_K")
    own = IntervalType(name="own", relative_mse=1e-4)
    assert tempering(alike, [alike]) == tempering(q6, [q6]) == tempering(q6, [alike]) < 1
    assert tempering(own, [own, own, q6]) == 1
    assert interval_density(own)[0].tolist() == [0, 0, -1, -math.inf, math.inf]
    normal = IntervalType(name="own", relative_mse=1e-4, noise=0.1)
    assert interval_density(normal)[0].tolist() == [0, 0, 1, -math.inf, math.inf]
    uniform = IntervalType(name="own", relative_mse=1e-4, is_uniform=True)
    assert interval_density(uniform)[0].tolist() == [0, 0, 0, -math.inf, math.inf]
    single, several = interval_density(alike), interval_density(alike, [q6])
    np.testing.assert_allclose(several[:, :2], single[:, :2] * tempering(q6, [q6]), rtol=1e-6)


def test_bounds_of_intervals_and_grids_together(rng: np.random.Generator) -> None:
    x = sample(rng)
    intervals = Intervals()
    intervals.look_at(grids(("Q6_K",), x))
    # A grid whose scale is 0 proves nothing, since its weights may have been weighed.
    is_told = np.isfinite(intervals.bound(0, x.size)[0])
    assert 0.9 < is_told.mean() < 1
    intervals.look_at(grids(("Q6_K", "Q4_K"), x))
    lower, upper = (each.copy() for each in intervals.bound(0, x.size))
    intervals.look_at([*stated(("Q6_K",), x), *grids(("Q4_K",), x)])
    narrower, lesser = intervals.bound(0, x.size)
    np.testing.assert_array_equal(narrower[is_told], lower[is_told])
    np.testing.assert_array_equal(lesser[is_told], upper[is_told])
    assert (narrower >= lower).all()
    assert (lesser <= upper).all()

"""Estimators against float64 references, on blocks of libggml; and rules they must keep."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from recover._compiled import lanes
from recover._compiled.jit import bare_kernel
from recover.estimators import Request, Tally, _rule, estimator
from recover.estimators._product_tables import H
from recover.evidence.buffer import Evidence
from recover.evidence.cells import intersect_cells
from recover.evidence.densities import (
    correlation,
    likelihood,
)
from recover.quants import F32Array, ScalarType, U8Array, dequantize, type_by_name
from tests.naive import estimators as naive
from tests.oracle import libggml
from tests.support import joint_inputs
from tests.support.beliefs import believe, calm, extremes, load, n_extreme
from tests.support.kinds import quantized, vector
from tests.support.sizes_beside import narrowed

# Codes of which the weight that a block of 32 is fitted to has one.
MIXES = (
    ("Q5_K", "Q4_K", "Q2_K"),
    ("Q8_0", "Q6_K", "Q3_K", "Q4_0"),
    ("Q5_0", "Q5_1", "Q4_1", "IQ4_NL"),
    ("IQ4_XS", "Q2_K"),
    ("Q5_K", "NVFP4", "MXFP4"),
    ("Q4_K", "IQ3_S", "Q2_K"),
    ("IQ3_S", "IQ2_XS"),
)


def sample(rng: np.random.Generator) -> NDArray[np.float32]:
    """Rows with ordinary and awkward sub-blocks."""
    x = rng.standard_t(5, (8, 512)).astype(np.float32) * np.float32(0.02)
    x[0, 32:80] = 0
    x[1, :256] = 0.125
    x[2, 100] = 30
    x[3] *= np.float32(1e-4)
    return x


def encode(mix: tuple[str, ...], x: NDArray[np.float32]) -> list[U8Array]:
    ones = np.ones(x.shape[1], np.float32)
    return [
        libggml.quantize(
            type_by_name(name).type_id, x, ones if name.startswith(("IQ2", "IQ3")) else None
        )
        for name in mix
    ]


def run(method: str, evidence: Evidence, n: int, estimate: str = "mean") -> tuple[F32Array, Tally]:
    out = np.full(n, np.nan, np.float32)
    tally = Tally.zeros(len(evidence.codes) + len(evidence.values))
    estimator(method).estimate(evidence, out, tally, Request(estimate))
    return out, tally


def say(mix: tuple[str, ...], raws: list[U8Array], n: int) -> list[list[naive.Saying]]:
    """What each input says of each weight, by its own formulas in float64; scalar types first."""
    columns: list[list[naive.Saying]] = []
    for name, raw in sorted(zip(mix, raws, strict=True), key=lambda each: each[0][:3] == "IQ3"):
        kind = quantized(name)
        values = libggml.dequantize(kind.type_id, raw).astype(np.float64)
        if not isinstance(kind, ScalarType):
            share = kind.relative_mse
            variances = np.repeat(np.mean(values.reshape(-1, 256) ** 2, axis=1) * share, 256)
            columns.append(
                [
                    naive.Saying(float(value), float(variance), -math.inf, math.inf)
                    for value, variance in zip(values, variances, strict=True)
                ]
            )
            continue
        codes = np.empty(n, np.uint8)
        scale, offset = np.empty((2, n // 16), np.float32)
        kind.unpack(raw, codes, scale, offset)
        f16 = raw.reshape(-1, kind.type_size)[:, :2].copy().view(np.float16)[:, 0]
        column = []
        for i in range(n):
            s, o, q = float(scale[i // 16]), float(offset[i // 16]), codes[i]
            edges = [float(kind.lower_levels[q]), float(kind.upper_levels[q])]
            if s < 0:
                edges.reverse()
            d = float(f16[i // kind.block_size])
            slack = abs(s / d) * max(2**-11 * abs(d), 2**-25) if kind.rounds_scale_last and d else 0
            offset_slack = max(2**-11 * abs(o), 2**-25) if kind.rounds_offset_last else 0
            lower = s * edges[0] + o - abs(edges[0]) * (slack or 1e-30) - offset_slack
            upper = s * edges[1] + o + abs(edges[1]) * (slack or 1e-30) + offset_slack
            if n_extreme(name, codes, i) == 1:
                off = abs(float(kind.levels[q])) * slack + offset_slack
                lower, upper = values[i] - off, values[i] + off
            cell = (lower, upper) if s else (-math.inf, math.inf)
            tables = kind.lower_levels[q], kind.upper_levels[q]
            step = 2 * abs(s) * min(abs(float(edge) - float(kind.levels[q])) for edge in tables)
            column.append(naive.Saying(float(values[i]), kind.noise * s * s, *cell, step))
        columns.append(column)
    return [list(sayings) for sayings in zip(*columns, strict=True)]


def order(mix: tuple[str, ...]) -> tuple[str, ...]:
    """Scalar inputs first, as evidence has them."""
    return tuple(sorted(mix, key=lambda name: name.startswith(("IQ2", "IQ3"))))


@pytest.mark.parametrize("mix", MIXES, ids="+".join)
@pytest.mark.parametrize("method", ["linear", "midpoint"])
def test_against_the_naive_reference(
    method: str, mix: tuple[str, ...], rng: np.random.Generator
) -> None:
    x = sample(rng)
    mix = order(mix)
    raws = encode(mix, x)
    out, _ = run(method, load(mix, raws, x.size), x.size)
    reference = getattr(naive, method)
    expected = np.array([reference(sayings) for sayings in say(mix, raws, x.size)])
    scale = np.abs(x).reshape(-1, 256).max(axis=1).repeat(256)
    # 2e-9: float16 scales have no more precision than that on the row of tiny weights
    close = np.abs(out - expected) <= 3e-6 * scale + 2e-9
    assert np.all(close)


def test_vector_types_are_conditioned_on(rng: np.random.Generator) -> None:
    """As the precision matrix of the weights and all predictions tells."""
    mix = ("IQ3_S", "IQ3_XXS", "IQ2_XS")
    kinds = [vector(name) for name in mix]
    x = sample(rng)
    raws = encode(mix, x)
    out, tally = run("posterior", load(mix, raws, x.size), x.size)
    decoded = [
        libggml.dequantize(kind.type_id, raw).astype(np.float64)
        for kind, raw in zip(kinds, raws, strict=True)
    ]
    gains, spreads = np.array([likelihood(k) for k in kinds]).T
    rest = spreads / (gains**2 + spreads)
    covariance = np.ones((4, 4))
    for i, one in enumerate(kinds):
        covariance[0, 1 + i] = covariance[1 + i, 0] = covariance[1 + i, 1 + i] = 1 - rest[i]
        for j, two in enumerate(kinds):
            if i != j:
                both = correlation(one, two)
                covariance[1 + i, 1 + j] = 1 - rest[i] - rest[j] + both * (rest[i] * rest[j]) ** 0.5
    precision = np.linalg.inv(covariance)
    weights = -precision[0, 1:] / precision[0, 0]
    expected = sum(w * g * d for w, g, d in zip(weights, gains, decoded, strict=True))
    np.testing.assert_allclose(out, expected, atol=1e-6 * np.abs(x).max())
    squares = decoded[0] @ decoded[0] * (gains[0] ** 2 + spreads[0])
    assert tally.variance == pytest.approx(squares / precision[0, 0], rel=1e-4)


def test_rule_of_the_posterior() -> None:
    """Moments of normal densities that are cut off, against a dense sum."""
    inner, outer = _rule._WEIGHTS
    nodes = np.arange(-2, 3) * H
    weights = np.array([outer, inner, 1, inner, outer])
    dense = np.linspace(-1, 1, 20001)
    for gradient, curvature in itertools.product((0, 0.5, 1, 2), (0, -1, -4, -10, 1)):
        right, left = (
            about_exp(np.float32((end * gradient * H + curvature * H**2 / 2) / 8))
            for end in (1, -1)
        )
        product = right * left
        density = np.array([left**2 * product, left, 1, right, right**2 * product])
        found = []
        for t, mass in (
            (nodes, weights * density),
            (dense, np.exp(gradient * dense + curvature * dense**2 / 2)),
        ):
            mean = np.sum(mass * t) / mass.sum()
            found.append((mean, np.sum(mass * (t - mean) ** 2) / mass.sum()))
        (mean, variance), (true_mean, true_variance) = found
        assert abs(mean - true_mean) < 0.025 * true_variance**0.5
        assert variance == pytest.approx(
            true_variance, rel=1.5e-3 if gradient == curvature == 0 else 0.05
        )


def about_exp(y: np.float32) -> float:
    """What the kernels take for exp(8 y)."""
    out = np.empty(16, np.float32)
    call_exp(np.full(16, y), out)
    return float(out[0])


@bare_kernel
def call_exp(y: F32Array, out: F32Array) -> None:
    lanes.store(out, 0, _rule.exp(lanes.load(y, 0)))


@pytest.mark.parametrize("mix", MIXES[:-1], ids="+".join)
def test_posterior_against_the_naive_reference(
    mix: tuple[str, ...], rng: np.random.Generator
) -> None:
    x = sample(rng)
    x[3] = 0  # on tiny weights float32 and float16 have no precision to compare
    mix = order(mix)
    raws = encode(mix, x)
    evidence = load(mix, raws, x.size)
    out, _ = run("posterior", evidence, x.size)
    lower, upper = np.empty_like(out), np.empty_like(out)
    intersect_cells(evidence, lower, upper)
    outlier, prior = calm(mix, raws, x.size)
    assert outlier.any()
    beliefs = believe(mix, raws, x.size)
    if len(evidence.codes):
        prior = narrowed(evidence, beliefs, outlier, prior)
    pinned = extremes(mix, raws, x.size)
    assert np.all((out >= lower)[pinned] & (out <= upper)[pinned])
    n_compared, worst, total = 0, 0.0, 0.0
    for i in range(0, x.size, 3):
        if not beliefs[i] or not prior[i] or pinned[i]:
            continue
        reference = naive.posterior(beliefs[i], float(lower[i]), float(upper[i]), float(prior[i]))
        if reference is None or reference[1] < 1e-14:  # no place but within rounding
            continue
        deviation = abs(out[i] - reference[0]) / reference[1] ** 0.5
        worst, total, n_compared = max(worst, deviation), total + deviation**2, n_compared + 1
    assert n_compared > 1000
    assert (total / n_compared) ** 0.5 < 0.01  # standard deviations
    assert worst < 0.1


def test_inputs_in_turns(rng: np.random.Generator) -> None:
    """What is kept of one tensor's inputs is not taken for another's."""
    x = sample(rng)
    mixes = (("Q8_0", "Q4_0"), ("Q4_K",), ("Q5_0", "Q4_0"), ("Q8_0", "Q4_0"))
    evidence = [load(mix, encode(mix, x), x.size) for mix in mixes]
    found = [run("posterior", each, x.size) for each in evidence]
    for mix, (estimate, tally) in zip(mixes, found, strict=True):
        again = load(mix, encode(mix, x), x.size)
        for _ in range(2):
            expected, sums = run("posterior", again, x.size)
            np.testing.assert_array_equal(estimate, expected)
            np.testing.assert_array_equal(tally.array, sums.array)
    np.testing.assert_array_equal(found[0][0], found[3][0])
    assert not np.array_equal(found[0][0], found[2][0])


@pytest.mark.parametrize("mix", MIXES, ids="+".join)
def test_best_is_the_first_input_dequantized(
    mix: tuple[str, ...], rng: np.random.Generator
) -> None:
    x = sample(rng)
    mix = order(mix)
    raws = encode(mix, x)
    out, tally = run("best", load(mix, raws, x.size), x.size)
    np.testing.assert_array_equal(out, dequantize(raws[0], type_by_name(mix[0])))
    assert tally.variance == tally.alone[0] > 0


def test_expected_variances_are_the_measured_ones(rng: np.random.Generator) -> None:
    x = rng.standard_normal((64, 2048), np.float32)
    mix = ("Q5_K", "Q4_K", "Q2_K")
    raws = encode(mix, x)
    evidence = load(mix, [raw[: raw.size // 2] for raw in raws], x.size // 2)
    truth = x.reshape(-1)[: x.size // 2].astype(np.float64)
    for method in ("best", "linear", "posterior"):
        out, tally = run(method, evidence, truth.size)
        assert np.sum((out - truth) ** 2) == pytest.approx(tally.variance, rel=0.03)
    for k, (name, raw) in enumerate(zip(mix, raws, strict=True)):
        alone = dequantize(raw, type_by_name(name))[: truth.size]
        assert np.sum((alone - truth) ** 2) == pytest.approx(tally.alone[k], rel=0.05)


@pytest.mark.parametrize("size", [1, 2e-5])  # the latter has subnormal f16 scales
@pytest.mark.parametrize(
    "mix",
    [("Q6_K", "Q5_K", "Q4_K", "Q3_K"), ("Q5_1", "Q4_0", "Q8_0"), ("Q8_0", "Q4_K")],
    ids="+".join,
)
@pytest.mark.parametrize(
    ("method", "estimate"), [("midpoint", "mean"), ("posterior", "mean"), ("posterior", "map")]
)
def test_estimate_lies_in_the_intersection(
    method: str, estimate: str, mix: tuple[str, ...], size: float, rng: np.random.Generator
) -> None:
    x = sample(rng) if size == 1 else rng.standard_normal((256, 1024), np.float32)
    x *= np.float32(size)
    evidence = load(mix, encode(mix, x), x.size)
    out, tally = run(method, evidence, x.size, estimate)
    lower, upper = np.empty_like(out), np.empty_like(out)
    intersect_cells(evidence, lower, upper)
    assert tally.n_conflicts == 0
    assert np.all((lower <= out) & (out <= upper))


def test_estimates_at_an_edge_lie_in_their_cells() -> None:
    """Edges are sums of scale and offset, of larger numbers than they are: so is their rounding."""
    x = joint_inputs.hard_weights(128)["blocks of one sign"]
    sources = joint_inputs.sources_of("Q5_K+Q4_K+Q2_K")
    raws = joint_inputs.encode(sources, x)
    assert joint_inputs.run("posterior", sources, raws, x.size)[3]


@pytest.mark.parametrize("method", ["midpoint", "posterior"])
def test_conflicts_are_counted_and_the_finest_input_wins(
    method: str, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((4, 256), np.float32)
    other = rng.standard_normal((4, 256), np.float32)
    mix = ("Q6_K", "Q5_K")
    raws = [encode(("Q6_K",), x)[0], encode(("Q5_K",), other)[0]]
    evidence = load(mix, raws, x.size)
    out, tally = run(method, evidence, x.size)
    lower, upper = np.empty_like(out), np.empty_like(out)
    intersect_cells(evidence, lower, upper)
    conflicts = lower > upper
    assert tally.n_conflicts == np.count_nonzero(conflicts) > 900
    finest = dequantize(raws[0], type_by_name("Q6_K"))
    np.testing.assert_array_equal(out[conflicts], finest[conflicts])


def test_a_broken_block_is_left_to_the_other_inputs(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 256), np.float32)
    mix = ("Q5_K", "Q4_K")
    raws = encode(mix, x)
    raws[0][2:4] = (0x00, 0x7E)  # dmin is NaN
    for method in ("linear", "midpoint", "posterior"):
        out, _ = run(method, load(mix, raws, x.size), x.size)
        np.testing.assert_allclose(out, dequantize(raws[1], type_by_name("Q4_K")), atol=0.2)

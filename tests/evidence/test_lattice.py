"""Numbers of a source format within bounds, against ml_dtypes and numpy."""

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from recover.evidence.buffer import EvidenceBuffer, Source
from recover.evidence.lattice import (
    SIGNIFICAND_BITS,
    any_empty,
    count_empty,
    count_scales,
    count_without,
    snap,
)
from recover.evidence.tile import Evidence
from recover.quants import quantize, type_by_name

FORMATS = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}
N = 50_000


def draw(
    name: str, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Truth, bounds that hold it, and estimates between them."""
    truth = rng.standard_normal(N).astype(FORMATS[name]).astype(np.float32)
    width = np.abs(truth) * np.float32(2) ** -rng.integers(6, 14, N).astype(np.float32)
    share = rng.random(N).astype(np.float32)
    lower = np.minimum(truth - width * share, truth)
    upper = np.maximum(truth + width * (1 - share), truth)
    estimate = lower + (upper - lower) * rng.random(N).astype(np.float32)
    return truth, lower, upper, np.clip(estimate, lower, upper)


@pytest.mark.parametrize("name", FORMATS)
def test_single_numbers_are_found(name: str, rng: np.random.Generator) -> None:
    truth, lower, upper, out = draw(name, rng)
    before, deviation = out.copy(), np.ones(N, np.float32)
    n_certain, change, n_without, _ = snap(
        lower, upper, SIGNIFICAND_BITS[name], True, False, out, deviation
    )
    assert n_without == 0
    certain = deviation == 0
    stored = truth.astype(FORMATS[name])
    above = np.nextafter(stored, np.array(np.inf, stored.dtype)).astype(np.float32)
    below = np.nextafter(stored, np.array(-np.inf, stored.dtype)).astype(np.float32)
    alone = (above > upper) & (below < lower)
    assert n_certain == np.count_nonzero(certain)
    # What is gained is the error that the estimates had, whatever they were expected to have.
    gained = np.sum((before[certain].astype(np.float64) - truth[certain]) ** 2)
    assert -change == pytest.approx(gained, rel=1e-9)
    np.testing.assert_array_equal(out[certain], truth[certain])
    np.testing.assert_array_equal(out[~certain], before[~certain])
    normal = np.abs(truth) > 2.0**-13 if name == "f16" else np.full(N, True)
    np.testing.assert_array_equal(certain[normal], alone[normal])
    assert not np.any(certain & ~alone)


@pytest.mark.parametrize("name", FORMATS)
def test_all_are_rounded_within_their_bounds(name: str, rng: np.random.Generator) -> None:
    truth, lower, upper, out = draw(name, rng)
    nearest = out.astype(FORMATS[name]).astype(np.float32)
    snap(lower, upper, SIGNIFICAND_BITS[name], False, True, out, np.ones(N, np.float32))
    normal = np.abs(truth) > 2.0**-12
    assert np.all((lower <= out) & (out <= upper) | ~normal)
    np.testing.assert_array_equal(out[normal], out[normal].astype(FORMATS[name]).astype(np.float32))
    inside = (lower <= nearest) & (nearest <= upper) & normal
    wrong = np.mean(out[inside] != truth[inside])
    assert wrong <= np.mean(nearest[inside] != truth[inside])


def test_contradictions_prove_nothing() -> None:
    lower = np.array([1.1, -np.inf, np.nan], np.float32)
    upper = np.array([1.0, 1.0, np.nan], np.float32)
    before, deviation = np.array([1.05, 0.3, 0.7], np.float32), np.ones(3, np.float32)
    out = before.copy()
    assert snap(lower, upper, 8, True, False, out, deviation) == (0, 0.0, 0, 0.0)
    np.testing.assert_array_equal(deviation, 1)
    np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("name", FORMATS)
def test_intervals_without_a_number_are_counted(name: str, rng: np.random.Generator) -> None:
    """As often as is expected of intervals that lie anywhere; against a plain search."""
    signs = np.array([-1, 1], np.float32)
    middle = rng.uniform(0.01, 1, N).astype(np.float32) * rng.choice(signs, N)
    width = np.abs(middle) * np.float32(2) ** -rng.integers(6, 14, N).astype(np.float32)
    lower, upper = middle - width / 2, middle + width / 2
    nearest = middle.astype(FORMATS[name])
    far = [np.nextafter(nearest, np.array(x, nearest.dtype)) for x in (-np.inf, np.inf)]
    candidates = np.stack([each.astype(np.float32) for each in (nearest, *far)])
    n_inside = np.count_nonzero((lower <= candidates) & (candidates <= upper), axis=0)
    bits, expected = SIGNIFICAND_BITS[name], int(np.count_nonzero(n_inside == 0))
    n_bounded, n_without, chance, n_single = count_without(lower, upper, bits)
    assert (n_bounded, n_without) == (N, expected)
    assert n_single == np.count_nonzero(n_inside == 1)
    assert chance == pytest.approx(expected, rel=0.05)
    found = snap(lower, upper, bits, True, False, middle.copy(), np.ones(N, np.float32))
    assert (found[0], found[2:]) == (n_single, (n_without, chance))


def stated(lower: NDArray[np.float32], upper: NDArray[np.float32]) -> Evidence:
    """What an input says that states such intervals; NaN states nothing."""
    kind = type_by_name("Q8_0")
    raw = np.zeros(lower.size // 32 * kind.type_size, np.uint8)
    nothing = EvidenceBuffer([Source(kind)]).load([raw], lower.size)
    fields = {
        name: getattr(nothing, name)[:0]
        for name in ("codes", "levels", "lower_levels", "upper_levels", "end_codes", "extremes")
    }
    for name in ("scale", "offset", "scale_error", "offset_error"):
        fields[name] = np.empty((0, lower.size // 16), np.float32)
    return nothing._replace(**fields, interval_lower=lower[None], interval_upper=upper[None])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [1.0, 1e-5, 1e-38, 1e36])
def test_sixteen_at_a_time(name: str, size: float, rng: np.random.Generator) -> None:
    """Also of weights that are subnormal or too large, intervals around 0, and broken ones."""
    with np.errstate(over="ignore", invalid="ignore"):
        middle = (rng.standard_normal(4096) * size).astype(np.float32)
        width = np.abs(middle) * np.float32(2) ** -rng.integers(0, 14, 4096).astype(np.float32)
        lower, upper = middle - width, middle + width
    odd = rng.integers(0, 4096, (5, 40))
    lower[odd[0]], upper[odd[1]] = -np.inf, np.inf
    lower[odd[2]], upper[odd[3]] = np.nan, np.nan
    lower[odd[4]], upper[odd[4]] = upper[odd[4]], lower[odd[4]]
    bits = SIGNIFICAND_BITS[name]
    for part in (slice(0, 4096), slice(0, 1040), slice(0, 0)):
        n_empty, chance = count_empty(lower[part], upper[part], bits)
        _, n_without, expected, _ = count_without(lower[part], upper[part], bits)
        assert n_empty == n_without
        assert chance == pytest.approx(expected, rel=1e-5)
    for start in range(0, 4096, 32):
        n_empty, _ = count_empty(lower[start : start + 32], upper[start : start + 32], bits)
        assert any_empty(stated(lower[start : start + 32], upper[start : start + 32]), bits) == (
            n_empty > 0
        )


@pytest.mark.parametrize(("kind", "at", "divisor"), [("Q8_0", 0, 127), ("Q4_0", 0, -8)])
def test_scales_of_other_weights_are_counted(
    kind: str, at: int, divisor: float, rng: np.random.Generator
) -> None:
    x = rng.standard_normal((64, 256), np.float32)
    stored_as = type_by_name(kind)
    rounded = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    raw = quantize(rounded, stored_as)
    assert count_scales(raw, stored_as.type_size, at, divisor) == (x.size // 32, 0)
    _, n_foreign = count_scales(quantize(x, stored_as), stored_as.type_size, at, divisor)
    assert n_foreign == pytest.approx(x.size / 32 * 7 / 8, rel=0.1)

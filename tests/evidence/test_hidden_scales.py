"""Cells of codes that were chosen with a scale which was changed before it was stored."""

import numpy as np
import pytest

from recover.containers.model import ArrayTensor
from recover.evidence.buffer import EvidenceBuffer, Source
from recover.evidence.cells import intersect_cells
from recover.evidence.intervals import Intervals
from recover.quants import F32Array, quantize, type_by_name
from tests.support.encoders.ik import FORMATS, encode

ROW = 1024


def draw(kind: str, n_rows: int, seed: int = 1) -> F32Array:
    """Weights of a kind."""
    rng, shape = np.random.default_rng(seed), (n_rows, ROW)
    x = rng.standard_normal(shape) * np.exp(rng.normal(0, 0.3, (n_rows, 1)))
    if kind == "heavy":
        x = rng.standard_t(2.5, shape)
    elif kind == "uneven":
        x *= np.exp(rng.normal(0, 1, (1, ROW)))
    elif kind == "sparse":
        x *= rng.random(shape) < 0.1
    elif kind == "one sign":
        x = np.abs(x)
    elif kind == "small":
        x *= np.exp2(-rng.integers(0, 12, (n_rows, 1)))
    weights: F32Array = (0.02 * x).astype(np.float32)
    return weights


KINDS = ("ordinary", "heavy", "uneven", "sparse", "one sign", "small")


def tensor_of(name: str, x: F32Array) -> ArrayTensor:
    kind = type_by_name(name)
    raw = encode(name, x).reshape(-1) if name in FORMATS else quantize(x, kind)
    return ArrayTensor(name, (ROW, len(x)), kind, raw)


def proven(names: tuple[str, ...], x: F32Array) -> tuple[F32Array, F32Array]:
    intervals = Intervals()
    intervals.look_at([tensor_of(name, x) for name in names])
    lower, upper = intervals.bound(0, x.size)
    return lower.copy(), upper.copy()


def usual(names: tuple[str, ...], x: F32Array) -> tuple[F32Array, F32Array]:
    """Bounds as estimates take them."""
    tensors = [tensor_of(name, x) for name in names]
    evidence = EvidenceBuffer([Source(each.type) for each in tensors]).read(tensors, 0, x.size)
    lower, upper = np.empty((2, x.size), np.float32)
    intersect_cells(evidence, lower, upper)
    return lower, upper


def n_outside(bounds: tuple[F32Array, F32Array], x: F32Array) -> int:
    flat = x.reshape(-1)
    return int(np.count_nonzero((flat < bounds[0]) | (flat > bounds[1])))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
def test_no_weight_is_outside(name: str, kind: str) -> None:
    """Alone, and where others narrow the ratio of the scales."""
    x = draw(kind, 64)
    for others in ((), ("Q4_K",), ("Q8_0", "IQ4_K" if name != "IQ4_K" else "IQ3_KS")):
        assert n_outside(proven((name, *others), x), x) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_no_weight_of_ten_million_is_outside(name: str) -> None:
    n_rows = 10_500_000 // ROW // len(KINDS) // 8
    n = 0
    for seed in range(8):
        for kind in KINDS:
            x = draw(kind, n_rows, seed)
            for others in ((), ("Q5_K",)):
                assert n_outside(proven((name, *others), x), x) == 0
            n += x.size
    assert n > 10_000_000


@pytest.mark.parametrize("name", FORMATS)
def test_others_narrow_the_cells(name: str) -> None:
    """A finer input leaves little of the ratios that are possible."""
    x = draw("ordinary", 16)
    alone = proven((name,), x)
    tensors = [tensor_of(each, x) for each in (name, "Q8_0")]
    buffer = EvidenceBuffer([Source(each.type) for each in tensors], proven=True)
    evidence = buffer.read(tensors, 0, x.size)
    narrowed = evidence.interval_lower[0], evidence.interval_upper[0]
    assert (narrowed[0] >= alone[0]).all()
    assert (narrowed[1] <= alone[1]).all()
    two_sided = np.isfinite(alone[1] - alone[0])
    before = (alone[1] - alone[0])[two_sided].mean()
    after = (narrowed[1] - narrowed[0])[two_sided].mean()
    assert after < (0.995 if "6" in name or "KS" in name else 0.98) * before
    assert n_outside(narrowed, x) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "names", [("IQ4_K", "IQ4_KS", "Q4_K"), ("IQ2_K", "IQ3_K"), ("IQ3_KS", "IQ2_KS", "Q8_0")]
)
def test_what_is_usual_makes_no_contradictions(names: tuple[str, ...], kind: str) -> None:
    """Ratios that are not usual are found out, or do no harm."""
    x = draw(kind, 64)
    lower, upper = usual(names, x)
    assert not (lower > upper).any()
    assert n_outside((lower, upper), x) < 0.02 * x.size
    sure = proven(names, x)
    assert (lower >= sure[0]).all()
    assert (upper <= sure[1]).all()


def test_other_weights_contradict() -> None:
    x, other = draw("ordinary", 16), draw("ordinary", 16, 2)
    tensors = [tensor_of("IQ4_K", x), tensor_of("Q4_K", other)]
    intervals = Intervals()
    intervals.look_at(tensors)
    lower, upper = intervals.bound(0, x.size)
    assert np.mean(lower > upper) > 0.5


def test_broken_scales_prove_nothing() -> None:
    x = draw("ordinary", 4)
    raw = encode("IQ4_K", x)
    raw[0, :2] = [0, 0x7C]  # infinite
    raw[1, :2] = [0, 0x7E]  # not a number
    raw[2, :2] = 0
    tensor = ArrayTensor("w", (ROW, 4), type_by_name("IQ4_K"), raw.reshape(-1))
    intervals = Intervals()
    intervals.look_at([tensor, tensor_of("Q4_K", x)])
    lower, upper = intervals.bound(0, x.size)
    assert n_outside((lower, upper), x) == 0
    intervals.look_at([tensor])
    lower, upper = intervals.bound(0, x.size)
    for row in range(3):
        assert np.isneginf(lower[ROW * row : ROW * row + 256]).all()
        assert np.isposinf(upper[ROW * row : ROW * row + 256]).all()

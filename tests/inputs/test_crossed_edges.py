"""Errors of codes without cells beside an input that is so coarse that its own hide them."""

from dataclasses import dataclass

import numpy as np
import pytest

from recover.inputs.foreign import measure_ratio
from recover.quants import F32Array, IntervalType, Stated, quantize, type_by_name
from tests.support.stated_intervals import tensor_of

_KIND = IntervalType(name="soft", relative_mse=1e-4)


@dataclass(frozen=True)
class Said:
    """Values with an error, of which a variance is stated."""

    value: F32Array
    variance: F32Array
    type: IntervalType = _KIND
    has_cells: bool = False

    def intervals(self, start: int, end: int, out: Stated) -> None:
        """See `recover.quants.IntervalTensor`."""
        out.lower[:], out.upper[:] = -np.inf, np.inf
        out.value[:], out.variance[:] = self.value[start:end], self.variance[start:end]


@pytest.fixture(scope="module")
def weights() -> F32Array:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1024, 256)) * rng.uniform(0.01, 0.05, (1024, 1))
    return x.astype(np.float32)


@pytest.mark.parametrize("name", ["Q2_K", "Q4_K"])
@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.8])
@pytest.mark.parametrize("is_uniform", [False, True])
def test_crossed_edges_tell_small_errors(
    weights: F32Array, name: str, ratio: float, is_uniform: bool
) -> None:
    """Whatever their distribution; of different sizes in different rows."""
    rng = np.random.default_rng(4)
    step = np.float32(0.03 if name == "Q4_K" else 0.1)
    deviation = np.repeat(step * 0.3 * weights.std(axis=1), 256)
    n = weights.size
    unit = 12**0.5 * (rng.random(n) - 0.5) if is_uniform else rng.standard_normal(n)
    value = weights.reshape(-1) + (deviation * unit * ratio**0.5).astype(np.float32)
    said = Said(value.astype(np.float32), np.square(deviation))
    known = tensor_of(quantize(weights, type_by_name(name)), name, n)
    assert measure_ratio(said, known) == pytest.approx(ratio, rel=0.1)  # 5% are left to chance


def test_without_edges_nothing_but_the_typical_is_told(weights: F32Array) -> None:
    """The other input is finer by nothing, and confines no weight."""
    deviation = np.full(weights.size, 1e-4, np.float32)
    value = weights.reshape(-1) + 2 * deviation
    said = Said(value, np.square(deviation))
    other = Said(weights.reshape(-1), np.full(weights.size, 1e-4, np.float32))
    known = type("Known", (Said,), {"n_weights": weights.size})(other.value, other.variance)
    assert measure_ratio(said, known, is_sure=False) == pytest.approx(1, abs=0.05)

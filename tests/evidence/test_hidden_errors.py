"""What types with hidden scales state of their errors: by the size of a weight in its sub-block."""

from functools import cache

import numpy as np
import pytest

from recover.containers.model import ArrayTensor
from recover.evidence.buffer import EvidenceBuffer, Source
from recover.quants import F32Array, U8Array, type_by_name
from tests.support.encoders.ik import encode

NAMES = "IQ3_K", "IQ4_K", "IQ5_K", "IQ6_K", "IQ3_KS", "IQ4_KS", "IQ5_KS"


def stated(name: str, raw: U8Array, *, weighted: bool = False) -> tuple[F32Array, F32Array]:
    """Values and variances of rows of 256 weights."""
    kind = type_by_name(name)
    n = 256 * len(raw)
    tensor = ArrayTensor(name, (256, len(raw)), kind, raw.reshape(-1))
    tile = EvidenceBuffer([Source(kind, weighted=weighted)]).read([tensor], 0, n)
    return tile.interval_values[0].copy(), tile.interval_variance[0].copy()


def shares(name: str, value: F32Array) -> F32Array:
    """The squares of values over the mean square of their sub-blocks."""
    square = np.square(value).reshape(-1, 32 if name.endswith("KS") else 16)
    share: F32Array = (square / square.mean(axis=1, keepdims=True)).reshape(-1)
    return share


@cache
def normal(name: str) -> U8Array:
    """Rows of normal weights as a type."""
    return encode(name, np.random.default_rng(11).normal(0, 0.02, (64, 256)).astype(np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_large_weights_of_a_sub_block_have_small_errors(name: str) -> None:
    raw = normal(name)
    value, variance = stated(name, raw)
    share = shares(name, value)
    middle = (share > 0.5) & (share < 1)
    small = share < 0.05
    width = widths(name, raw)
    closed = np.isfinite(width)
    relative = variance / np.square(width)
    assert relative[small & closed].mean() > 1.1 * relative[middle & closed].mean()


def widths(name: str, raw: U8Array) -> F32Array:
    """Of cells of the stored scales; infinite at ends."""
    kind = type_by_name(name)
    n = 256 * len(raw)
    tensor = ArrayTensor(name, (256, len(raw)), kind, raw.reshape(-1))
    tile = EvidenceBuffer([Source(kind)]).read([tensor], 0, n)
    width: F32Array = tile.interval_upper[0] - tile.interval_lower[0]
    return width


@pytest.mark.parametrize("name", NAMES)
def test_an_importance_matrix_changes_the_errors(name: str) -> None:
    raw = normal(name)
    value, plain = stated(name, raw)
    same, weighted = stated(name, raw, weighted=True)
    assert np.array_equal(value, same)
    share = shares(name, value)
    # The search spreads its care: small weights are nearer to their levels, large ones farther.
    small = (share < 0.05) & np.isfinite(plain)
    assert weighted[small].sum() < plain[small].sum()
    large = (share > 3) & np.isfinite(plain)
    assert weighted[large].sum() > plain[large].sum()


@pytest.mark.parametrize("name", ["IQ4_K", "IQ5_K"])
def test_coarse_scales_leave_weights_anywhere(name: str) -> None:
    """Beside a sub-block of large weights the scales of the others are small integers."""
    rng = np.random.default_rng(12)
    x = rng.normal(0, 0.02, (64, 256)).astype(np.float32)
    beside = x.copy()
    beside[:, :16] *= 12
    errors = []
    for weights in (x, beside):
        raw = encode(name, weights)
        value, variance = stated(name, raw)
        rest = np.ones(weights.shape, np.bool_)
        rest[:, :16] = False
        chosen = rest.reshape(-1) & (shares(name, value) > 1) & np.isfinite(variance)
        errors.append(variance[chosen].mean() / np.square(value[chosen]).mean())
    assert errors[1] > 1.2 * errors[0]

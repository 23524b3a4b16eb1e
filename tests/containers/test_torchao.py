"""torchao's integers: what is decoded, what codes prove, and what is refused."""

import numpy as np
import pytest

from recover.containers.huggingface.scaled import ScaledMatrix
from recover.errors import SafetensorsError
from tests.golden.foreign_files import load
from tests.support.encoders.torchao import encode
from tests.support.foreign_modules import Array, heavy_tailed, n_outside, rounded, state
from tests.support.format_checks import check_widened, matrix_of
from tests.support.hostile_modules import check_hostile

GOLDEN = load("torchao")
KINDS = [(8, None), (8, 64), (4, 32), (3, 128)]


def weights_of(seed: int, n_rows: int = 64, row_length: int = 512) -> Array:
    weights = heavy_tailed(np.random.default_rng(seed), n_rows, row_length)
    weights[1] = np.abs(weights[1]) + 0.01
    weights[2] = 0
    return weights


@pytest.mark.parametrize("case", GOLDEN)
def test_reads_what_torchao_wrote(case: str) -> None:
    arrays, original, decoded, config, _ = GOLDEN[case]
    found = matrix_of(arrays, config=config)
    assert found.label.startswith(f"torchao {case.split(',')[0]}")
    stated = state(found)
    kind = "F32" if "F32" in case else "BF16"
    assert np.array_equal(rounded(stated.value, kind), decoded.reshape(-1))
    assert n_outside(stated, original) == 0
    if case.startswith("FP8"):
        return
    own = encode(
        original,
        int(case[3]),
        int(case.split()[3].strip(",")) if "groups" in case else None,
        kind,
        symmetric="asymmetric" not in case,
        scale_kind="BF16" if arrays["_weight_scale"].dtype.itemsize == 2 else "F32",
    )
    for leaf, array in arrays.items():
        assert np.array_equal(own[leaf], array), leaf


@pytest.mark.parametrize(("n_bits", "group"), KINDS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kinds", [("BF16", "F32"), ("BF16", "BF16"), ("F16", "F16")])
def test_bounds_hold(
    n_bits: int, group: int | None, symmetric: bool, kinds: tuple[str, str]
) -> None:
    weights = weights_of(n_bits)
    kind, scale_kind = kinds
    arrays = encode(weights, n_bits, group, kind, symmetric=symmetric, scale_kind=scale_kind)
    found = matrix_of(arrays)
    assert found.has_cells
    assert n_outside(state(found), rounded(weights, kind)) == 0
    check_widened(found, weights)


@pytest.mark.parametrize("n_bits", [4, 8])
def test_the_encoder_may_have_seen_half_precision(n_bits: int) -> None:
    """Of which a file says nothing where scales are F32: small weights lose more by it."""
    weights = weights_of(n_bits) * np.float32(2.0**-16)
    found = matrix_of(encode(weights, n_bits, None, "F16", scale_kind="F32"))
    check_widened(found, weights)


@pytest.mark.slow
@pytest.mark.parametrize(("n_bits", "group"), KINDS)
def test_bounds_hold_of_many_weights(n_bits: int, group: int | None) -> None:
    weights = heavy_tailed(np.random.default_rng(n_bits), 2560, 4096)
    for scale_kind in ("F32", "BF16"):
        found = matrix_of(encode(weights, n_bits, group, scale_kind=scale_kind))
        assert n_outside(state(found), rounded(weights, "BF16")) == 0


def test_errors_are_as_expected() -> None:
    weights = np.random.default_rng(1).normal(0, 0.02, (256, 512)).astype(np.float32)
    weights = rounded(weights, "BF16")
    for n_bits, group in ((8, None), (4, 32)):
        stated = state(matrix_of(encode(weights, n_bits, group)))
        measured = np.mean(np.square(stated.value.astype(np.float64) - weights.reshape(-1)))
        assert stated.variance.mean() == pytest.approx(measured, rel=0.05)


def test_nothing_is_known_of_scaled_columns() -> None:
    arrays = encode(weights_of(1)) | {"_weight_act_pre_scale": np.ones(512, np.float32)}
    found = matrix_of(arrays)
    assert isinstance(found, ScaledMatrix)
    assert found.stored.has_cells
    assert "scaled" in found.label
    assert np.isposinf(state(found).variance).all()


def test_packed_layouts_are_refused() -> None:
    arrays = encode(weights_of(1), 4, 32)
    arrays["_weight_zero_point"] = arrays["_weight_zero_point"].astype(np.float32)
    with pytest.raises(SafetensorsError, match="Int4Tensor"):
        matrix_of(arrays)


def test_damaged_arrays() -> None:
    assert check_hostile(encode(weights_of(1, 8, 256))) > 20

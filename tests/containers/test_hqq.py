"""HQQ: what is decoded, what codes prove, and what is refused."""

import numpy as np
import pytest

from recover.containers.huggingface.formats import Matrix
from recover.errors import SafetensorsError
from tests.golden.foreign_files import load
from tests.support.encoders.hqq import PARTS, encode
from tests.support.foreign_modules import Array, heavy_tailed, n_outside, rounded, state
from tests.support.format_checks import check_says_nothing, matrix_of

GOLDEN = load("hqq")


def matrix(arrays: dict[str, Array]) -> Matrix:
    return matrix_of(arrays, {"quant_method": "hqq"})


def weights_of(seed: int, n_rows: int = 64, row_length: int = 320) -> Array:
    weights = heavy_tailed(np.random.default_rng(seed), n_rows, row_length)
    weights[1] = np.abs(weights[1]) + 0.01
    weights[2] = 0
    weights[3] *= 1e-4
    return weights


@pytest.mark.parametrize("case", GOLDEN)
def test_reads_what_hqq_wrote(case: str) -> None:
    arrays, original, decoded, config, _ = GOLDEN[case]
    found = matrix_of(arrays, config)
    assert found.leaves == arrays.keys()
    assert (found.n_rows, found.row_length) == original.shape
    stated = state(found)
    assert np.array_equal(stated.value, decoded.reshape(-1))
    assert n_outside(stated, original) == 0


@pytest.mark.parametrize("case", GOLDEN)
def test_own_encoder_is_hqq(case: str) -> None:
    arrays, original, *_ = GOLDEN[case]
    n_bits, group, axis = (int(arrays[leaf]) for leaf in ("nbits", "group_size", "axis"))
    kind = case.rpartition(" ")[2]
    own = encode(original, n_bits, group, kind, axis=axis, on_gpu=False)
    assert np.array_equal(own["W_q"], arrays["W_q"])
    for leaf in ("scale", "zero"):
        expected = arrays[leaf].astype(np.float32)
        assert np.allclose(own[leaf].astype(np.float32), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("n_bits", PARTS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_bounds_hold(n_bits: int, axis: int, kind: str, on_gpu: bool) -> None:
    weights = weights_of(n_bits)
    found = matrix(encode(weights, n_bits, 64, kind, axis=axis, on_gpu=on_gpu))
    assert found.has_cells
    assert found.seen_as == kind
    stated = state(found)
    assert n_outside(stated, rounded(weights, kind)) == 0
    for part, whole in zip(state(found, 700, 1300), stated, strict=True):
        assert np.array_equal(part, whole[700:1300])


@pytest.mark.slow
@pytest.mark.parametrize("n_bits", PARTS)
@pytest.mark.parametrize("axis", [0, 1])
def test_bounds_hold_of_many_weights(n_bits: int, axis: int) -> None:
    weights = heavy_tailed(np.random.default_rng(n_bits), 2560, 4096)
    for kind in ("BF16", "F16"):
        found = matrix(encode(weights, n_bits, 64, kind, axis=axis, n_steps=1))
        assert n_outside(state(found), rounded(weights, kind)) == 0


def test_scales_of_a_gpu_may_be_stored_in_more_precision() -> None:
    weights = weights_of(1)
    arrays = encode(weights, 8, 64, "F16")
    for leaf in ("scale", "zero"):
        arrays[leaf] = arrays[leaf].astype(np.float32)
    assert n_outside(state(matrix(arrays)), rounded(weights, "F16")) == 0


@pytest.mark.parametrize("n_bits", [2, 3, 4, 6])
def test_errors_are_as_expected(n_bits: int) -> None:
    weights = np.random.default_rng(1).normal(0, 0.02, (256, 1024)).astype(np.float32)
    stated = state(matrix(encode(weights, n_bits)))
    measured = np.mean(np.square(stated.value.astype(np.float64) - weights.reshape(-1)))
    assert stated.variance.mean() == pytest.approx(measured, rel=0.06)


def test_equal_settings_share_a_type() -> None:
    one, two = matrix(encode(weights_of(1))), matrix(encode(weights_of(2)))
    assert one.type is two.type
    assert one.type.name == "HQQ4"


@pytest.mark.parametrize(
    "change",
    [
        {"nbits": np.array(7, np.int32)},
        {"nbits": np.array(1.58, np.float32)},
        {"nbits": None},
        {"axis": np.array(2, np.int32)},
        {"axis": np.zeros(2, np.int32)},
        {"axis": np.zeros(0, np.int32)},
        {"shape": np.array([64, 321])},
        {"shape": np.array([-64, -320])},
        {"shape": np.array([1 << 62, 1 << 62])},
        {"shape": np.array(64)},
        {"group_size": np.array(0, np.int32)},
        {"group_size": np.array(-64, np.int32)},
        {"group_size": np.array(128, np.int32)},
        {"scale": None},
        {"zero": np.zeros((319, 1), np.float16)},
        {"scale": np.zeros((320, 1), np.int32)},
        {"W_q": np.zeros((160, 64), np.int32)},
        {"W_q": np.zeros((159, 64), np.uint8)},
        {"W_q": np.zeros((0, 64), np.uint8)},
        {"W_q": np.zeros(160 * 64, np.uint8)},
        {"view_as_float": np.array(1, np.uint8)},
        {"quant_scale": np.array(1, np.uint8)},
    ],
)
def test_damaged_arrays_are_refused(change: dict[str, Array | None]) -> None:
    arrays = encode(weights_of(1)) | change
    with pytest.raises(SafetensorsError):
        matrix({leaf: array for leaf, array in arrays.items() if array is not None})


def test_settings_may_be_in_the_configuration_alone() -> None:
    arrays = encode(weights_of(1))
    whole = state(matrix(arrays))
    for leaf in ("nbits", "group_size", "axis"):
        del arrays[leaf]
    how = {"nbits": 4, "group_size": 64, "axis": 1}
    for config in (how, {"quant_config": {"weight_quant_params": how}}):
        found = matrix_of(arrays, config)
        assert np.array_equal(state(found).value, whole.value)


def test_numbers_that_mean_nothing_state_nothing() -> None:
    arrays = encode(weights_of(1))
    arrays["scale"][:3, 0] = np.nan, np.inf, 0
    arrays["zero"][3:5, 0] = np.nan, np.inf
    check_says_nothing(matrix(arrays), 320)

"""MLX's affine quantization: what is decoded, what codes prove, and what is refused."""

import numpy as np
import pytest

from recover.containers.huggingface.formats import Matrix, all_formats
from recover.errors import SafetensorsError
from tests.golden.foreign_files import load
from tests.support.encoders.mlx import encode, encode_as_early
from tests.support.foreign_modules import Array, heavy_tailed, n_outside, rounded, state
from tests.support.format_checks import check_says_nothing, matrix_of

BITS = (2, 3, 4, 5, 6, 8)
GOLDEN = load("mlx")


def matrix(arrays: dict[str, Array], group: object = 64) -> Matrix:
    return matrix_of(arrays, {"group_size": group})


@pytest.mark.parametrize("case", GOLDEN)
def test_reads_what_mlx_wrote(case: str) -> None:
    arrays, original, decoded, config, _ = GOLDEN[case]
    found = matrix_of(arrays, config)
    assert found.has_cells
    assert (found.n_rows, found.row_length) == original.shape
    stated = state(found)
    assert np.array_equal(stated.value, decoded.reshape(-1))
    assert n_outside(stated, original) == 0


@pytest.mark.parametrize("case", GOLDEN)
def test_own_encoder_is_mlx(case: str) -> None:
    arrays, original, _, config, _ = GOLDEN[case]
    own = encode(original, config["bits"], config["group_size"], case.rpartition(" ")[2])
    for leaf, array in arrays.items():
        assert np.array_equal(own[leaf], array), leaf


@pytest.mark.parametrize("kind", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("n_bits", BITS)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_bounds_hold(n_bits: int, group: int, kind: str) -> None:
    weights = heavy_tailed(np.random.default_rng(n_bits), 64, 512)
    weights[0] = np.abs(weights[0]) + 0.01  # far from zero: the edge is many steps away
    weights[1] = -np.abs(weights[1]) - 0.5
    weights[2] = 0
    weights[3, :300] = 0
    weights[4] *= 1e-6  # below MLX's smallest scale
    found = matrix(encode(weights, n_bits, group, kind), group)
    assert found.has_cells
    assert found.seen_as == kind
    assert n_outside(state(found), rounded(weights, kind)) == 0


@pytest.mark.parametrize("n_bits", [2, 4, 6])
@pytest.mark.parametrize("kind", ["BF16", "F16", "F32"])
def test_bounds_of_early_versions_hold(n_bits: int, kind: str) -> None:
    weights = heavy_tailed(np.random.default_rng(n_bits), 64, 512)
    found = matrix(encode_as_early(weights, n_bits, 64, kind))
    assert found.has_cells
    assert "early" in found.label
    stated, seen = state(found), rounded(weights, kind)
    assert n_outside(stated, seen) == 0
    widths = (stated.upper - stated.lower).reshape(-1, 64)
    steps = np.ptp(seen.reshape(-1, 64), axis=1, keepdims=True) / ((1 << n_bits) - 1)
    assert np.mean(widths / steps) < 1.6


@pytest.mark.slow
@pytest.mark.parametrize("n_bits", BITS)
def test_bounds_hold_of_many_weights(n_bits: int) -> None:
    weights = heavy_tailed(np.random.default_rng(n_bits), 2560, 4096)
    for kind in ("BF16", "F16", "F32"):
        found = matrix(encode(weights, n_bits, 64, kind))
        assert n_outside(state(found), rounded(weights, kind)) == 0


def test_the_scale_is_known_better_than_stored() -> None:
    weights = rounded(heavy_tailed(np.random.default_rng(0), 64, 512), "BF16")
    arrays = encode(weights)
    stated = state(matrix(arrays))
    widths = np.median((stated.upper - stated.lower).reshape(-1, 64), axis=1)
    groups = weights.reshape(-1, 64)
    low, high = groups.min(1), groups.max(1)
    edge = np.where(np.abs(low) > np.abs(high), low, high)
    scale = np.abs(edge / np.rint(edge / ((high - low) / 15)))
    assert np.abs(widths / scale - 1).max() < 1e-4
    assert np.abs(np.abs(arrays["scales"].astype(np.float32).reshape(-1)) / scale - 1).max() > 1e-3


def test_the_edge_of_a_group_is_exact_where_it_is_alone() -> None:
    weights = np.tile(np.linspace(-0.75, 0.875, 64, dtype=np.float32), (2, 2))
    weights[:, [0, 64]] = weights[1, 1] = -1
    stated = state(matrix(encode(weights)))
    assert np.allclose(stated.lower[[0, 64]], -1, atol=1e-6)
    assert np.allclose(stated.upper[[0, 64]], -1, atol=1e-6)
    assert stated.upper[128] > -0.96  # there are two of code 0


def test_errors_are_as_expected() -> None:
    weights = heavy_tailed(np.random.default_rng(3), 256, 1024)
    for n_bits in (4, 6, 8):
        seen = rounded(weights, "BF16")
        stated = state(matrix(encode(weights, n_bits)))
        measured = np.mean(np.square(stated.value.astype(np.float64) - seen.reshape(-1)))
        assert stated.variance.mean() == pytest.approx(measured, rel=0.04)


def test_trained_scales_prove_nothing() -> None:
    rng = np.random.default_rng(5)
    arrays = encode(heavy_tailed(rng, 64, 512))
    for leaf in ("scales", "biases"):
        changed = arrays[leaf].astype(np.float32) * rng.normal(1, 0.01, arrays[leaf].shape)
        arrays[leaf] = changed.astype(arrays[leaf].dtype)
    found = matrix(arrays)
    assert not found.has_cells
    assert "trained" in found.label
    stated = state(found)
    assert np.isinf(stated.lower).all()
    assert np.isinf(stated.upper).all()
    assert np.isfinite(stated.variance).all()


@pytest.mark.parametrize("n_bits", BITS)
def test_any_range_is_the_part_of_the_whole(n_bits: int) -> None:
    found = matrix(encode(heavy_tailed(np.random.default_rng(1), 8, 192), n_bits))
    whole = state(found)
    for start, end in ((0, 1), (1, 65), (63, 64), (100, 700), (1500, 1536)):
        for part, all_of_it in zip(state(found, start, end), whole, strict=True):
            assert np.array_equal(part, all_of_it[start:end])


def test_equal_settings_share_a_type() -> None:
    weights = heavy_tailed(np.random.default_rng(1), 8, 128)
    one, two = matrix(encode(weights)), matrix(encode(2 * weights))
    assert one.type is two.type
    assert one.type.name == "MLX4"
    assert "mlx" in [each.name for each in all_formats()]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"scales": np.zeros((7, 8), np.float32)}, "biases has the shape"),
        ({"scales": np.zeros((0, 8), np.float32)}, "scales is F32 of shape"),
        ({"scales": np.zeros(64, np.float32)}, "of 2 dimensions"),
        ({"biases": np.zeros((8, 8), np.int32)}, "biases is I32"),
        ({"weight": np.zeros((7, 64), np.uint32)}, "weight has 7 rows"),
        ({"weight": np.zeros((8, 112), np.uint32)}, "7 bits is not supported"),
        ({"weight": np.zeros((8, 0), np.uint32)}, "weight is U32 of shape"),
    ],
)
def test_damaged_arrays_are_refused(change: dict[str, Array], text: str) -> None:
    arrays = encode(heavy_tailed(np.random.default_rng(1), 8, 512)) | change
    with pytest.raises(SafetensorsError, match=text):
        matrix(arrays)


@pytest.mark.parametrize("group", [None, 0, -64, "64", 63, 4096, 1 << 40])
def test_wrong_group_sizes_are_refused(group: object) -> None:
    arrays = encode(heavy_tailed(np.random.default_rng(1), 8, 4096))
    with pytest.raises(SafetensorsError):
        matrix(arrays, group)


def test_numbers_that_mean_nothing_state_nothing() -> None:
    arrays = encode(heavy_tailed(np.random.default_rng(1), 64, 4096))
    arrays["scales"][0, :3] = np.nan, np.inf, 0
    check_says_nothing(matrix(arrays), 192)

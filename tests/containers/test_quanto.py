"""optimum-quanto: what is decoded, what codes prove, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from recover.containers.huggingface.formats import Matrix, read_matrix
from recover.errors import SafetensorsError
from tests.golden.foreign_files import load
from tests.support.encoders.quanto import encode_groups, encode_rows
from tests.support.foreign_modules import Array, heavy_tailed, module_of, n_outside, rounded, state
from tests.support.format_checks import check_says_nothing, check_widened, matrix_of
from tests.support.hostile_modules import check_hostile

GOLDEN = load("quanto")


def weights_of(seed: int, n_rows: int = 64, row_length: int = 512) -> Array:
    weights = heavy_tailed(np.random.default_rng(seed), n_rows, row_length)
    weights[1] = np.abs(weights[1]) + 0.01
    return weights


def encoded(weights: Array, name: str, kind: str) -> dict[str, Array]:
    if name in ("qint2", "qint4"):
        return encode_groups(weights, int(name[-1]), 128, kind)
    return encode_rows(weights, kind, floats=name == "qfloat8")


@pytest.mark.parametrize("case", GOLDEN)
def test_reads_what_quanto_wrote(case: str) -> None:
    arrays, original, decoded, config, _ = GOLDEN[case]
    found = matrix_of(arrays, config=config)
    assert case.split(",")[0].replace("qfloat8", "FP8") in found.label
    assert found.leaves >= arrays.keys() - {"bias"}
    stated = state(found)
    assert np.array_equal(stated.value, decoded.reshape(-1))
    assert n_outside(stated, original) == 0
    own = encoded(original, *case.split(", "))
    for leaf in own.keys() - {"bias"}:
        assert np.array_equal(own[leaf], arrays[leaf]), leaf


@pytest.mark.parametrize("kind", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("name", ["qint2", "qint4", "qint8", "qfloat8"])
def test_bounds_hold(name: str, kind: str) -> None:
    weights = weights_of(1)
    found = matrix_of(encoded(weights, name, kind))
    assert found.has_cells
    stated, seen = state(found), rounded(weights, kind)
    assert n_outside(stated, seen) == 0
    check_widened(found, weights)
    measured = np.mean(np.square(stated.value.astype(np.float64) - seen.reshape(-1)))
    assert stated.variance.mean() == pytest.approx(measured, rel=0.15)
    for part, whole in zip(state(found, 1000, 30_001), stated, strict=True):
        assert np.array_equal(part, whole[1000:30_001])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qint2", "qint4", "qint8", "qfloat8"])
def test_bounds_hold_of_many_weights(name: str) -> None:
    weights = heavy_tailed(np.random.default_rng(2), 2560, 4096)
    for kind in ("BF16", "F16", "F32"):
        found = matrix_of(encoded(weights, name, kind))
        assert n_outside(state(found), rounded(weights, kind)) == 0


def test_shifts_are_not_always_those_that_were_used() -> None:
    """As a layout for devices leaves them; of groups around zero that changes nothing."""
    rng = np.random.default_rng(3)
    weights = heavy_tailed(rng, 256, 512)
    weights[::4] = np.abs(weights[::4])
    weights[1::4] = -np.abs(weights[1::4]) - rng.uniform(0, 0.1, (64, 1))
    weights[2::4, ::128] = 2
    arrays = encode_groups(weights)
    scale, shift = arrays["weight._scale"], arrays["weight._shift"]
    middle = 8 * scale - shift
    again = 8 * scale - middle
    assert middle.dtype == again.dtype == scale.dtype
    assert np.mean(again[12:16] == shift[12:16]) == 1
    assert np.mean(again == shift) < 0.8
    found = matrix_of(arrays | {"weight._shift": again})
    seen = rounded(weights, "BF16")
    stated = state(found)
    assert n_outside(stated, seen) == 0
    exact = state(matrix_of(arrays))
    plain = slice(3 * 512, 4 * 512)
    for each, before in zip(stated, exact, strict=True):
        assert np.array_equal(each[plain], before[plain])


@pytest.mark.parametrize("kind", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("name", ["qint4", "qint8"])
def test_scales_that_are_no_normal_numbers_prove_nothing(name: str, kind: str) -> None:
    weights = weights_of(4)
    weights[0] *= np.float32(2.0**-20 if kind == "F16" else 2.0**-132)
    with np.errstate(divide="ignore", invalid="ignore"):
        arrays = encoded(weights, name, kind)
    check_says_nothing(matrix_of(arrays), weights.shape[1])


def without_bias(row_length: int | None, n_rows: int | None = None) -> Matrix | None:
    """A matrix of 64 x 512 weights in groups, of a model whose sizes say so."""
    arrays = encode_groups(weights_of(1))
    del arrays["bias"]
    return read_matrix(replace(module_of(arrays), sizes=lambda: (row_length, n_rows)))


@pytest.mark.parametrize("row_length", [None, 511, 0])
def test_groups_need_a_size(row_length: int | None) -> None:
    with pytest.raises(SafetensorsError, match="does not store the size"):
        without_bias(row_length)


@pytest.mark.parametrize("sizes", [(512, None), (None, 64), (512, 64)])
def test_the_size_of_the_model_does_as_well(sizes: tuple[int | None, int | None]) -> None:
    found = without_bias(*sizes)
    assert found is not None
    assert (found.n_rows, found.row_length) == (64, 512)
    assert n_outside(state(found), rounded(weights_of(1), "BF16")) == 0


@pytest.mark.parametrize("name", ["qint2", "qint4", "qint8", "qfloat8"])
def test_damaged_arrays(name: str) -> None:
    assert check_hostile(encoded(weights_of(1, 8, 256), name, "BF16")) > 20

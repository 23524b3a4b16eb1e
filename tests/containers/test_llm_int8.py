"""LLM.int8 weights: what their codes prove of the weights."""

import numpy as np
import pytest

from recover.containers.huggingface.formats import read_matrix
from recover.errors import SafetensorsError
from tests.support.encoders.bitsandbytes import encode_int8
from tests.support.foreign_modules import FLOATS, heavy_tailed, module_of, n_outside, rounded, state
from tests.support.format_checks import check_matrix, check_widened, matrix_of
from tests.support.golden import golden
from tests.support.hostile_modules import check_hostile


def check(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    w = heavy_tailed(rng, *shape)
    matrix = matrix_of(encode_int8(w))
    assert matrix.seen_as == "F16"
    check_matrix(matrix, rounded(w, "F16"))
    for original in FLOATS:
        x = rounded(w, original)
        check_widened(matrix_of(encode_int8(x)), x)


def test_weights_lie_in_their_cells(rng: np.random.Generator) -> None:
    check(rng, (91, 1000))


@pytest.mark.slow
def test_many_weights_lie_in_their_cells(rng: np.random.Generator) -> None:
    check(rng, (4000, 2501))


def test_bitsandbytes() -> None:
    case = golden("llm_int8")
    matrix = read_matrix(case.module)
    assert matrix is not None
    stated = state(matrix)
    np.testing.assert_array_equal(stated.value.reshape(case.decoded.shape), case.decoded)
    assert n_outside(stated, case.original) == 0
    own = module_of(encode_int8(case.original))
    for leaf, tensor in own.tensors.items():
        np.testing.assert_array_equal(tensor.raw, case.module.tensors[leaf].raw)


def test_no_weight_is_larger_than_the_largest(rng: np.random.Generator) -> None:
    arrays = encode_int8(heavy_tailed(rng, 16, 64))
    stated = state(matrix_of(arrays))
    largest = arrays["SCB"].repeat(64) * np.float32(1 + 1e-5)
    assert np.all(stated.upper <= largest)
    assert np.all(stated.lower >= -largest)


def test_one_weight_alone_with_an_outermost_code_is_the_largest(rng: np.random.Generator) -> None:
    """Of several any may be, so that they have the usual bounds."""
    w = heavy_tailed(rng, 200, 512)
    w[7, 5:8] = np.abs(w[7]).max() * np.array([1, 0.999, -0.999])
    seen, matrix = rounded(w, "F16"), matrix_of(encode_int8(w))
    stated = state(matrix)
    is_end = np.abs(stated.value).reshape(w.shape) >= 126.9 / 127 * np.abs(seen).max(1)[:, None]
    width = (stated.upper - stated.lower).reshape(w.shape) / np.abs(seen)
    for row in range(len(w)):
        is_alone = np.count_nonzero(is_end[row]) == 1
        assert np.all((width[row, is_end[row]] < 1e-5) == is_alone)
    assert not np.any(width[~is_end] < 1e-5)
    assert is_end[7].sum() > 3
    assert n_outside(stated, seen) == 0
    part = state(matrix, 7 * 512 + 6, 30 * 512 + 9)  # rows that are begun and not finished
    np.testing.assert_array_equal(part.lower, stated.lower[7 * 512 + 6 : 30 * 512 + 9])


def test_orders_of_tiles_are_refused(rng: np.random.Generator) -> None:
    arrays = encode_int8(heavy_tailed(rng, 16, 64))
    without = {leaf: each for leaf, each in arrays.items() if leaf != "weight_format"}
    assert matrix_of(without).label == "LLM.int8"
    with pytest.raises(SafetensorsError, match="order of tiles"):
        matrix_of({**arrays, "weight_format": np.array(2, np.uint8)})


def test_damaged_modules(rng: np.random.Generator) -> None:
    assert check_hostile(encode_int8(heavy_tailed(rng, 8, 32))) > 25

"""What every format of quantized matrices must do: checks that the tests of each share."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from recover.containers.huggingface.formats import Matrix, read_matrix
from recover.containers.huggingface.formats._compensated import CompensatedMatrix
from recover.containers.huggingface.rows import Rows
from recover.containers.huggingface.scaled import ScaledMatrix
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.quants import Stated
from tests.support.encoders.awq import AwqBlock
from tests.support.foreign_modules import Array, module_of, n_outside, state

_AWQ_NAMES = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
_RANGES = (0, 1), (5, 6), (3, 130), (126, 131), (1, 1025)


def matrix_of(
    arrays: Mapping[str, Array], config: Mapping[str, Any] | None = None, recipe: str = ""
) -> Matrix:
    """What is read of a module's arrays."""
    found = read_matrix(module_of(arrays, config, recipe))
    assert found is not None
    return found


def awq_matrices(block: AwqBlock) -> dict[str, ScaledMatrix]:
    """What is read of the matrices of a block, by GGUF's names."""
    found = {}
    for name, arrays in block.arrays.items():
        module = module_of(arrays, {"quant_method": "awq"})
        matrix = read_matrix(replace(module, name=f"layer.{_AWQ_NAMES.get(name, name)}"))
        assert isinstance(matrix, ScaledMatrix)
        found[name] = matrix
    return found


def check_matrix(matrix: Matrix, seen: Array, within: float = 0.06) -> None:
    """No weight lies outside of its bounds, errors are as expected, any range says the same.

    `seen` are the weights that the encoder was given, in its precision; `within` is how far
    expected and measured errors may be apart.
    """
    assert (matrix.n_rows, matrix.row_length) == seen.shape
    whole = state(matrix)
    assert n_outside(whole, seen) == 0
    assert np.all(whole.lower <= whole.value)
    assert np.all(whole.value <= whole.upper)
    off = np.square(whole.value.astype(np.float64) - seen.reshape(-1))
    assert abs(np.mean(whole.variance, dtype=np.float64) / np.mean(off) - 1) < within
    n = seen.size
    k = matrix.row_length
    for start, end in (*_RANGES, (k - 3, k + 5), (n - 7, n), (k, 3 * k), (n // 2 + 1, n)):
        part = state(matrix, start, end)
        for some, everything in zip(part, whole, strict=True):
            np.testing.assert_array_equal(some, everything[start:end])


def check_widened(matrix: Matrix, original: Array) -> None:
    """No original lies outside of what a folder's tensor states, whatever the encoder saw."""
    tensor = QuantizedTensor("weight", original.shape[::-1], (Rows(matrix),), 0)
    stated = np.empty((4, original.size), np.float32)
    tensor.intervals(0, original.size, Stated(*stated))
    assert np.all((stated[1] <= original.reshape(-1)) & (original.reshape(-1) <= stated[2]))


def check_says_nothing(matrix: Matrix, n: int) -> None:
    """The first weights have no bounds, whatever else is wrong with them."""
    stated = state(matrix)
    for bound in (stated.lower[:n], stated.upper[:n]):
        assert not np.isfinite(bound).any()
    assert not np.isnan(stated.variance).any()


def check_strip(matrix: CompensatedMatrix) -> None:
    """Some columns alone say what they say in the whole matrix."""
    length = matrix.row_length
    columns = np.array([0, 5, length // 2, length // 2 + 1, 10, length - 1])
    for each in (matrix, matrix.as_rounded):
        for one, other in zip(state(each), state(each.strip(columns)), strict=True):
            expected = one.reshape(-1, length)[:, columns]
            np.testing.assert_array_equal(other.reshape(expected.shape), expected)

"""What every format of quantized matrices must do: checks that the tests of each share."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from recover._text import printable
from recover.containers.huggingface.formats import Matrix, read_matrix
from recover.containers.huggingface.modules import Module
from recover.containers.huggingface.rows import Rows
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.containers.safetensors.reader import BITS, Tensor
from recover.errors import SafetensorsError
from recover.quants import Stated
from tests.support.foreign_modules import Array, module_of, n_outside, state

_RANGES = (0, 1), (5, 6), (3, 130), (126, 131), (1, 1025)


def matrix_of(
    arrays: Mapping[str, Array], config: Mapping[str, Any] | None = None, recipe: str = ""
) -> Matrix:
    """What is read of a module's arrays."""
    found = read_matrix(module_of(arrays, config, recipe))
    assert found is not None
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


def _mutated(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor with other types and shapes, as a valid file may have them, and other bytes."""
    n_bytes = tensor.raw.size
    for dtype, n_bits in BITS.items():
        if dtype != tensor.dtype and n_bits == BITS[tensor.dtype]:
            yield replace(tensor, dtype=dtype)
        elif n_bytes * 8 % n_bits == 0 and tensor.shape:
            yield replace(tensor, dtype=dtype, shape=(n_bytes * 8 // n_bits,))
    shape, n = tensor.shape, tensor.n_weights
    for other in ((n,), (n, 1), (1, n), (1, 1, n), shape[::-1], (*shape, 1), (1, *shape)):
        if other != shape:
            yield replace(tensor, shape=other)
    for kept in (0, 1, n // 2, n - 1):
        raw = tensor.raw[: kept * n_bytes // max(n, 1)]
        for other in ((kept,), (kept, 1), (1, kept), (kept, 0)):
            if other[-1]:
                yield replace(tensor, shape=other, raw=raw)
    for byte in (0, 0x7F, 0x80, 0xFF):
        yield replace(tensor, raw=np.full(n_bytes, byte, np.uint8))
    if tensor.dtype in ("F32", "F16", "BF16"):  # the upper byte of each holds the sign
        signs = np.zeros((n, n_bytes // n), np.uint8)
        signs[:, -1] = 0x80
        yield replace(tensor, raw=tensor.raw ^ signs.reshape(-1))


def check_hostile(
    arrays: Mapping[str, Array], config: Mapping[str, Any] | None = None, recipe: str = ""
) -> int:
    """Whatever arrays say, there is a matrix or an error for people; returns how many errors."""
    module = module_of(arrays, config, recipe)
    variants = [
        {**module.tensors, leaf: each}
        for leaf, tensor in module.tensors.items()
        for each in _mutated(tensor)
    ]
    variants += [
        {leaf: each for leaf, each in module.tensors.items() if leaf != gone}
        for gone in module.tensors
    ]
    return sum(is_refused(replace(module, tensors=tensors)) for tensors in variants)


def is_refused(module: Module) -> bool:
    """Whether a module is refused; if not, whatever its matrix states can be asked for."""
    try:
        matrix = read_matrix(module)
    except SafetensorsError as error:
        text = str(error)
        assert printable(text) == text
        assert module.name in text
        return True
    if matrix is not None:
        n_most = max(8 * tensor.raw.size for tensor in module.tensors.values())
        assert matrix.n_rows * matrix.row_length <= n_most
        with np.errstate(all="ignore"):
            stated = state(matrix)
        assert not np.any(stated.lower > stated.upper)
    return False

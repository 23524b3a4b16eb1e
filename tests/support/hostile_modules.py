"""Modules whose arrays are not what a format says: there is a matrix, or an error for people."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from recover._text import printable
from recover.containers.huggingface.formats import read_matrix
from recover.containers.huggingface.modules import Module
from recover.containers.safetensors.reader import BITS, Tensor
from recover.errors import SafetensorsError
from tests.support.foreign_modules import Array, module_of, state


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

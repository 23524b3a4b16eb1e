"""What the schemes have in common: the tensors of one module, and the weight that they make."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted
from recover.containers.safetensors.reader import Tensor
from recover.errors import ReblockError
from recover.quants import F32Array
from recover.reblock.floats import F64Array
from recover.reblock.integers import IntegerRows, row_chunks

_NUMBERS = {
    "I8": "<i1",
    "U8": "<u1",
    "F8_E4M3": "<u1",
    "F8_E8M0": "<u1",
    "I32": "<u4",
    "U32": "<u4",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "BF16": "<u2",
}
FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Module:
    """The tensors of one module of a model.

    Attributes
    ----------
    name : str
        For instance ``model.layers.0.mlp.up_proj``.
    tensors : mapping of str to Tensor
        By what follows the module's name: ``qweight``, ``scales``.
    config : mapping of str to Any
        The quantization entry of ``config.json``; empty if there is none.
    """

    name: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]

    def error(self, text: str) -> ReblockError:
        """An error that names the module."""
        return ReblockError(f"module {quoted(self.name)}: {text}")

    def integer(self, key: str) -> int | None:
        """A whole number of the configuration; None if it is not there or none."""
        value = self.config.get(key)
        return value if type(value) is int else None

    def take(self, leaf: str, dtypes: tuple[str, ...], n_dims: int) -> Tensor:
        """A tensor that must be there, of one of these types and so many dimensions.

        Raises
        ------
        ReblockError
            If it is missing or another one, or has no numbers.
        """
        tensor = self.tensors.get(leaf)
        if tensor is None:
            raise self.error(f"there is no {leaf}")
        if tensor.dtype not in dtypes or len(tensor.shape) != n_dims or not tensor.n_weights:
            raise self.error(
                f"{leaf} is {tensor.dtype} of shape {list(tensor.shape)}, not"
                f" {' or '.join(dtypes)} of {n_dims} dimensions"
            )
        return tensor

    def expect(self, leaf: str, shape: tuple[int, ...]) -> None:
        """Refuse a tensor of another shape."""
        found = self.tensors[leaf].shape
        if found != shape:
            raise self.error(f"{leaf} has the shape {list(found)}, not {list(shape)}")


@dataclass(frozen=True, kw_only=True)
class FloatRows:
    """Rows that are no integers times float16 scales, but perhaps bfloat16 numbers.

    Attributes
    ----------
    n_rows, row_length : int
        Size.
    group : int or None
        Weights along a row that share a scale.
    obstacle : str
        Why bfloat16 does not hold them; empty if it does.
    reference : Callable
        ``reference(first, last) -> float64 (last - first, row_length)``.
    """

    n_rows: int
    row_length: int
    group: int | None
    obstacle: str
    reference: Callable[[int, int], F64Array]


@dataclass(frozen=True, kw_only=True)
class Weight:
    """The weight of a module.

    Attributes
    ----------
    stored_as : str
        For people: ``GPTQ 4-bit``.
    rows : IntegerRows or FloatRows
        The numbers, one row per output.
    leaves : frozenset of str
        The module's tensors that it is made of, or that have no place in GGUF.
    note : str
        Conditions of the claim.
    """

    stored_as: str
    rows: IntegerRows | FloatRows
    leaves: frozenset[str]
    note: str = ""


def values(tensor: Tensor) -> NDArray[Any]:
    """The numbers as they are stored; bfloat16 and float8 as their bits, perhaps not aligned."""
    return tensor.raw.view(np.dtype(_NUMBERS[tensor.dtype])).reshape(tensor.shape)


def as_float32(tensor: Tensor, numbers: NDArray[Any]) -> F32Array:
    """Stored floats (part of `values`) as float32; exact."""
    if tensor.dtype == "BF16":
        return (numbers.astype(np.uint32, order="C") << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):
        return numbers.astype(np.float32, order="C")


def unpacked(words: NDArray[Any], n_bits: int) -> NDArray[np.int32]:
    """Fields of `n_bits` of each word, the lowest first, along a new last dimension."""
    shifts = np.arange(0, 32, n_bits, dtype=np.uint32)
    fields = (words[..., None] >> shifts) & np.uint32((1 << n_bits) - 1)
    return fields.astype(np.int32)


def zero_range(
    n_rows: int, n_columns: int, zeros: Callable[[int, int], NDArray[Any]]
) -> tuple[int, int]:
    """Smallest and largest zero point."""
    low, high = 1 << 30, -(1 << 30)
    for first, last in row_chunks(n_rows, n_columns):
        part = zeros(first, last)
        low, high = min(low, int(part.min())), max(high, int(part.max()))
    return low, high


def check_order(module: Module, leaf: str, row_length: int, group: int) -> None:
    """Refuse columns whose scales are not in order (act-order).

    Raises
    ------
    ReblockError
        If ``g_idx`` is not column // group.
    """
    if leaf not in module.tensors:
        return
    tensor = module.take(leaf, ("I32", "U32", "I64"), 1)
    if tensor.shape != (row_length,):
        raise module.error(f"{leaf} has {tensor.n_weights} entries for {row_length} columns")
    numbers = values(tensor)
    if not all(
        np.array_equal(numbers[start:end].astype(np.int64), np.arange(start, end) // group)
        for start, end in row_chunks(row_length, 1)
    ):
        raise module.error(
            f"{leaf} is not in order (act-order): the columns that share a scale are scattered over"
            " the row, so that no block of 32 has one scale, and no type holds that exactly"
        )

"""What the schemes have in common: the tensors of one module, and the weight that they make."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.modules import Module, values
from recover.reblock.floats import F64Array
from recover.reblock.integers import IntegerRows, row_chunks


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
    SafetensorsError
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

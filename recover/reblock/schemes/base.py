"""What the schemes have in common: the tensors of one module, and the weight that they make."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.formats import read_matrix
from recover.containers.huggingface.modules import Module
from recover.quants import I8Array, Stated
from recover.reblock.blocks import BlockRows
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
    rows : IntegerRows, FloatRows or BlockRows
        The numbers, one row per output.
    leaves : frozenset of str
        The module's tensors that it is made of, or that have no place in GGUF.
    note : str
        Conditions of the claim.
    """

    stored_as: str
    rows: IntegerRows | FloatRows | BlockRows
    leaves: frozenset[str]
    note: str = ""


def streamed(words: NDArray[Any], n_bits: int) -> NDArray[np.int32]:
    """Fields of any width that rows of words (n, n_words) hold end to end, the lowest bits first.

    Returns
    -------
    int32 (n, 32 n_words / n_bits)
    """
    raw = np.ascontiguousarray(words, "<u4").view(np.uint8).reshape(len(words), -1)
    bits = np.unpackbits(raw, axis=1, bitorder="little")
    whole = bits.shape[1] // n_bits
    fields = bits[:, : whole * n_bits].reshape(len(words), whole, n_bits)
    return fields.astype(np.int32) @ (1 << np.arange(n_bits, dtype=np.int32))


def unpacked(words: NDArray[Any], n_bits: int) -> NDArray[np.int32]:
    """Fields of `n_bits` of each word, the lowest first, along a new last dimension."""
    shifts = np.arange(0, 32, n_bits, dtype=np.uint32)
    fields = (words[..., None] >> shifts) & np.uint32((1 << n_bits) - 1)
    return fields.astype(np.int32)


def subtract_zeros(out: I8Array, zeros: NDArray[Any], group: int) -> None:
    """Codes (n, row_length), filled in as uint8, less the zero points (n, n_groups)."""
    grouped = out.reshape(len(out), -1, group)
    np.subtract(grouped, zeros.astype(np.int8)[:, :, None], out=grouped)


def zero_range(
    n_rows: int, n_columns: int, zeros: Callable[[int, int], NDArray[Any]]
) -> tuple[int, int]:
    """Smallest and largest zero point."""
    low, high = 1 << 30, -(1 << 30)
    for first, last in row_chunks(n_rows, n_columns):
        part = zeros(first, last)
        low, high = min(low, int(part.min())), max(high, int(part.max()))
    return low, high


def obstacle_of_order(leaf: str) -> str:
    """Why columns whose scales are not in order fit no type."""
    return (
        f"{leaf} is not in order (act-order): the columns that share a scale are scattered over the"
        " row, so that no block of 32 has one scale, and no type holds that exactly"
    )


def decoded(module: Module, obstacle: str = "") -> Weight | None:
    """The weight of a module as its own programs decode it, of whatever format; None if of none.

    Parameters
    ----------
    module : Module
        The arrays.
    obstacle : str
        Why no type holds it exactly, if there is more to say than that no scheme does.

    Raises
    ------
    SafetensorsError
        If a format knows the module, but cannot read it.
    """
    found = read_matrix(module)
    if found is None:
        return None
    matrix, length = found, found.row_length

    def reference(first: int, last: int) -> F64Array:
        stated = Stated.of((last - first) * length)
        matrix.intervals(first * length, last * length, stated)
        return stated.value.reshape(last - first, length).astype(np.float64)

    return Weight(
        stored_as=matrix.label,
        rows=FloatRows(
            n_rows=matrix.n_rows,
            row_length=length,
            group=None,
            obstacle=obstacle or "no scheme keeps the numbers of this format exactly",
            reference=reference,
        ),
        leaves=matrix.leaves,
    )

"""Rows whose numbers are those of a GGUF type already: 4-bit floats with their scales."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recover.quants import F32Array, TensorType, U8Array, type_by_name
from recover.reblock.floats import copied, stored_as_float
from recover.reblock.integers import Request, by_rows, check_row_length, flat_reference, inexact
from recover.reblock.source import OriginalTensor

F64Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BlockRows:
    """Rows of blocks.

    Attributes
    ----------
    n_rows, row_length : int
        All rows of a stack are counted.
    group : int
        Weights along a row that share a scale.
    type : TensorType
        Which has the same codes and scales.
    obstacle : str
        Why it does not hold them after all; empty if it does.
    bf16_obstacle : str
        Why BF16 does not hold the weights; empty if it does.
    blocks : Callable
        ``blocks(first, last, out: uint8)`` fills in the bytes of rows.
    beside : float32 (n_matrices,) or None
        What all weights of each matrix of a stack are multiplied by in addition.
    reference : Callable
        ``reference(first, last) -> float64 (last - first, row_length)``: code times all scales, by
        plain NumPy from the source.
    touched : str
        Why some weights are none of the type's, so that they get the nearest; empty if all are.
    """

    n_rows: int
    row_length: int
    group: int
    type: TensorType
    obstacle: str
    bf16_obstacle: str
    blocks: Callable[[int, int, U8Array], None]
    beside: F32Array | None = None
    reference: Callable[[int, int], F64Array]
    touched: str = ""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.type.n_bytes(self.row_length)


def block_tensor(
    name: str,
    dims: tuple[int, ...],
    stored_as: str,
    rows: BlockRows,
    request: Request,
    note: str = "",
) -> OriginalTensor:
    """The output tensor of rows of blocks.

    Parameters
    ----------
    name, dims, stored_as
        See `OriginalTensor`.
    rows : BlockRows
        What is to be stored.
    request : Request
        What the user wants.
    note : str
        Conditions of the claim, in addition.

    Raises
    ------
    ReblockError
        If no type is exact, or not the wanted one, and inexact ones are not allowed.
    """
    check_row_length(name, rows.row_length)
    if not rows.obstacle and request.outtype in (None, rows.type.name):
        formula = "code x scale" + ("" if rows.beside is None else ", times the scale beside it")
        said = rows.touched or f"{rows.type.name} holds {formula}"
        return OriginalTensor(
            name=name,
            dims=dims,
            stored_as=stored_as,
            outtype=rows.type,
            group=rows.group,
            exact=not rows.touched,
            reason="; ".join(filter(None, (said, note))),
            encode=by_rows(rows.row_length, rows.type, rows.blocks),
            reference=flat_reference(rows.row_length, rows.reference),
            beside=rows.beside,
        )
    obstacle = (
        rows.obstacle or f"{request.outtype} does not hold it exactly, {rows.type.name} would"
    )
    if request.outtype == "BF16" or rows.obstacle:
        if not rows.bf16_obstacle and request.outtype in (None, "BF16"):
            return stored_as_float(
                name=name,
                dims=dims,
                stored_as=stored_as,
                group=rows.group,
                outtype=type_by_name("BF16"),
                reason="; ".join(filter(None, ("BF16 holds code x scale", note))),
                reference=flat_reference(rows.row_length, rows.reference),
                exact=True,
            )
        obstacle = "; ".join(filter(None, (rows.obstacle, rows.bf16_obstacle)))
    return inexact(
        name, dims, stored_as, rows.group, obstacle, rows.row_length, rows.reference, request
    )


Pieces = Callable[[int, int], Iterator[tuple[int, int, int, slice]]]
"""``pieces(first, last)``: of rows of a stack the matrix, its rows, and their place."""


def joined_blocks(
    parts: Sequence[BlockRows], pieces: Pieces, reference: Callable[[int, int], F64Array]
) -> BlockRows:
    """The rows of matrices of one type, one below the other, by how they lie in the stack."""
    size = parts[0].row_bytes

    def blocks(first: int, last: int, out: U8Array) -> None:
        for matrix, begin, end, place in pieces(first, last):
            parts[matrix].blocks(begin, end, out[place.start * size : place.stop * size])

    beside = None
    if any(part.beside is not None for part in parts):
        one = np.ones(1, np.float32)
        beside = np.concatenate([one if part.beside is None else part.beside for part in parts])
    return replace(
        parts[0],
        n_rows=sum(part.n_rows for part in parts),
        obstacle=next((part.obstacle for part in parts if part.obstacle), ""),
        bf16_obstacle=next((part.bf16_obstacle for part in parts if part.bf16_obstacle), ""),
        touched=next((part.touched for part in parts if part.touched), ""),
        blocks=blocks,
        beside=beside,
        reference=reference,
    )


def with_scales(tensor: OriginalTensor) -> Iterator[OriginalTensor]:
    """A tensor, and the tensor of scales beside it if it has any."""
    yield tensor
    if tensor.beside is not None:
        name = f"{tensor.name.removesuffix('.weight')}.scale"
        yield copied(name, (tensor.beside.size,), "F32", tensor.beside.view(np.uint8))

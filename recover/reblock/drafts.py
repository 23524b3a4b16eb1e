"""Tensors on their way from a model's own layout to that of GGUF: renamed, permuted, stacked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted
from recover.containers.gguf.header import MAX_DIMS
from recover.containers.huggingface.modules import FLOATS
from recover.containers.safetensors.reader import Tensor
from recover.errors import ReblockError
from recover.quants import F32Array, I8Array, type_by_name
from recover.reblock.floats import F64Array, converted, copied, decode_floats, stored_as_float
from recover.reblock.integers import (
    IntegerRows,
    Request,
    check_row_length,
    exact_tensor,
    flat_reference,
    inexact,
)
from recover.reblock.schemes import Weight
from recover.reblock.schemes.base import FloatRows
from recover.reblock.source import OriginalTensor

Rows = IntegerRows | FloatRows
_LARGEST_HEAD = 1 << 25


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One tensor of the output, before its type is decided.

    Attributes
    ----------
    name : str
        In the output.
    dims : tuple of int
        Row length first.
    stored_as : str
        For people; of floats the type.
    rows : IntegerRows or FloatRows
        The numbers.
    is_float : bool
        Whether the source stores floats.
    plain : Tensor or None
        The source's tensor, if its bytes can be taken as they are.
    note : str
        Conditions of a claim of exactness.
    """

    name: str
    dims: tuple[int, ...]
    stored_as: str
    rows: Rows
    is_float: bool = False
    plain: Tensor | None = None
    note: str = ""


def draft_weight(name: str, weight: Weight) -> Draft:
    """The draft of a weight that a scheme has read."""
    rows = weight.rows
    return Draft(
        name=name,
        dims=(rows.row_length, rows.n_rows),
        stored_as=weight.stored_as,
        rows=rows,
        note=weight.note,
    )


def draft_floats(tensor: Tensor) -> Draft:
    """The draft of a tensor of floats.

    Raises
    ------
    ReblockError
        If GGUF has no such type or number of dimensions.
    """
    size, length = tensor.raw.size // tensor.n_weights, _dims(tensor)[0]

    def reference(first: int, last: int) -> F64Array:
        raw = tensor.raw[size * first * length : size * last * length]
        return decode_floats(raw, tensor.dtype).reshape(-1, length)

    return _draft_plain(tensor, reference)


def draft_copy(tensor: Tensor) -> Draft:
    """The draft of numbers that are no weights and stay as they are; errors as `draft_floats`."""

    def refuse(_first: int, _last: int) -> F64Array:
        raise ReblockError(f"tensor {quoted(tensor.name)}: {tensor.dtype} is only copied")

    return _draft_plain(tensor, refuse)


def _draft_plain(tensor: Tensor, reference: Callable[[int, int], F64Array]) -> Draft:
    """The draft of a tensor whose bytes can be taken as they are."""
    dims = _dims(tensor)
    rows = FloatRows(
        n_rows=tensor.n_weights // dims[0],
        row_length=dims[0],
        group=None,
        obstacle="",
        reference=reference,
    )
    return Draft(
        name=tensor.name,
        dims=dims,
        stored_as=tensor.dtype,
        rows=rows,
        is_float=True,
        plain=tensor,
    )


def _dims(tensor: Tensor) -> tuple[int, ...]:
    """Sizes, row length first."""
    if len(tensor.shape) > MAX_DIMS:
        raise ReblockError(f"tensor {quoted(tensor.name)}: more than {MAX_DIMS} dimensions")
    return tensor.shape[::-1] or (1,)


def finished(draft: Draft, request: Request, *, norms_as_f32: bool) -> OriginalTensor:
    """Decide the type.

    Parameters
    ----------
    draft : Draft
        The tensor.
    request : Request
        What the user wants.
    norms_as_f32 : bool
        Whether one-dimensional floats become F32, as llama.cpp wants them.

    Raises
    ------
    ReblockError
        If no type is exact and inexact ones are not allowed.
    """
    name, dims, rows = draft.name, draft.dims, draft.rows
    if isinstance(rows, IntegerRows):
        return exact_tensor(name, dims, draft.stored_as, rows, request, draft.note)
    reference = flat_reference(rows.row_length, rows.reference)
    if draft.is_float and draft.plain is not None:
        reference = _flat_floats(draft.plain)
    else:
        check_row_length(name, rows.row_length)
    if draft.is_float:
        as_f32 = norms_as_f32 and len(dims) == 1 and draft.stored_as in FLOATS
        outtype = type_by_name("F32" if as_f32 else draft.stored_as)
        if draft.plain is not None and outtype.name == draft.stored_as:
            return copied(name, dims, draft.stored_as, draft.plain.raw)
        return converted(name, dims, draft.stored_as, outtype, reference)
    obstacle = rows.obstacle
    if not obstacle and request.outtype not in (None, "BF16"):
        obstacle = f"{request.outtype} does not hold it exactly, BF16 would"
    if obstacle:
        return inexact(
            name,
            dims,
            draft.stored_as,
            rows.group,
            obstacle,
            rows.row_length,
            rows.reference,
            request,
        )
    return stored_as_float(
        name=name,
        dims=dims,
        stored_as=draft.stored_as,
        group=rows.group,
        outtype=type_by_name("BF16"),
        reason="; ".join(filter(None, ("BF16 holds code x scale", draft.note))),
        reference=reference,
        exact=True,
    )


def _flat_floats(tensor: Tensor) -> Callable[[int, int], F64Array]:
    size, raw, dtype = tensor.raw.size // tensor.n_weights, tensor.raw, tensor.dtype
    return lambda start, end: decode_floats(raw[size * start : size * end], dtype)


def permuted(draft: Draft, order: NDArray[np.int64]) -> Draft:
    """The rows in another order inside every block of ``order.size`` rows.

    Row ``i`` of a block becomes what row ``order[i]`` was.
    """
    rows, size = draft.rows, order.size
    if rows.n_rows % size:
        raise ReblockError(
            f"tensor {quoted(draft.name)}: {rows.n_rows} rows are no whole heads of {size}"
        )
    if size * rows.row_length > _LARGEST_HEAD:
        raise ReblockError(
            f"tensor {quoted(draft.name)}: heads of {size} x {rows.row_length} weights; more than"
            f" {_LARGEST_HEAD} are not supported"
        )

    def gathered(read: Callable[[int, int], NDArray[Any]], first: int, last: int) -> F64Array:
        begin, end = first // size * size, -(-last // size) * size
        blocks = read(begin, end).reshape((end - begin) // size, size, -1)[:, order]
        return blocks.reshape(end - begin, -1)[first - begin : last - begin]

    def reference(first: int, last: int) -> F64Array:
        return gathered(draft.rows.reference, first, last)

    if isinstance(rows, FloatRows):
        return replace(draft, rows=replace(rows, reference=reference), plain=None)
    integers = rows

    def codes(first: int, last: int, out: I8Array) -> None:
        def read(begin: int, end: int) -> I8Array:
            found = np.empty((end - begin, integers.row_length), np.int8)
            integers.codes(begin, end, found)
            return found

        out[:] = gathered(read, first, last)

    offsets = integers.offsets
    moved = replace(
        integers,
        codes=codes,
        scales=lambda first, last: _as_f32(gathered(integers.scales, first, last)),
        offsets=None
        if offsets is None
        else lambda first, last: _as_f32(gathered(offsets, first, last)),
        reference=reference,
    )
    return replace(draft, rows=moved)


def _as_f32(found: NDArray[Any]) -> F32Array:
    return found.astype(np.float32, copy=False)


def stacked(name: str, drafts: Sequence[Draft]) -> Draft:
    """Matrices of the same size and kind as one tensor of three dimensions.

    Raises
    ------
    ReblockError
        If they differ in size or in how they are stored.
    """
    first_one = drafts[0]
    kind = _kind(first_one)
    for draft in drafts:
        if _kind(draft) != kind:
            raise ReblockError(
                f"tensor {quoted(draft.name)}: cannot be stacked with {quoted(first_one.name)},"
                " which has another shape or is stored otherwise"
            )
    n_rows = first_one.rows.n_rows
    each = [draft.rows for draft in drafts]

    def joined(
        read: Callable[[Rows], Callable[[int, int], NDArray[Any]]], first: int, last: int
    ) -> NDArray[Any]:
        parts = []
        while first < last:
            matrix, row = divmod(first, n_rows)
            n = min(last - first, n_rows - row)
            parts.append(read(each[matrix])(row, row + n))
            first += n
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def reference(first: int, last: int) -> F64Array:
        return joined(lambda rows: rows.reference, first, last).astype(np.float64, copy=False)

    dims = (*first_one.dims[:2], len(drafts))
    rows = first_one.rows
    if isinstance(rows, FloatRows):
        obstacle = next(
            (part.obstacle for part in each if isinstance(part, FloatRows) and part.obstacle), ""
        )
        moved: Rows = replace(
            rows, n_rows=n_rows * len(each), obstacle=obstacle, reference=reference
        )
        return replace(first_one, name=name, dims=dims, rows=moved, plain=None)
    integers = [part for part in each if isinstance(part, IntegerRows)]

    def codes(first: int, last: int, out: I8Array) -> None:
        at = first
        while at < last:
            matrix, row = divmod(at, n_rows)
            n = min(last - at, n_rows - row)
            integers[matrix].codes(row, row + n, out[at - first : at - first + n])
            at += n

    def scales(first: int, last: int) -> F32Array:
        return _as_f32(joined(lambda part: _integers(part).scales, first, last))

    def offsets(first: int, last: int) -> F32Array:
        return _as_f32(joined(lambda part: _offsets(part), first, last))

    moved = replace(
        rows,
        n_rows=n_rows * len(each),
        lowest=min(part.lowest for part in integers),
        highest=max(part.highest for part in integers),
        codes=codes,
        scales=scales,
        offsets=None if rows.offsets is None else offsets,
        reference=reference,
    )
    return replace(first_one, name=name, dims=dims, rows=moved)


def _kind(draft: Draft) -> tuple[object, ...]:
    """What has to be the same in a stack."""
    rows = draft.rows
    is_integer = isinstance(rows, IntegerRows)
    has_offsets = isinstance(rows, IntegerRows) and rows.offsets is not None
    return draft.dims, is_integer, has_offsets, rows.group, draft.is_float and draft.stored_as


def _integers(rows: Rows) -> IntegerRows:
    if not isinstance(rows, IntegerRows):
        raise ReblockError("floats among integers")
    return rows


def _offsets(rows: Rows) -> Callable[[int, int], F32Array]:
    offsets = _integers(rows).offsets
    if offsets is None:
        raise ReblockError("weights with and without offsets")
    return offsets

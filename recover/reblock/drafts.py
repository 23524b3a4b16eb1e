"""Tensors on their way from a model's own layout to that of GGUF: renamed, permuted, stacked."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted
from recover.containers.gguf.header import MAX_DIMS
from recover.containers.huggingface.modules import FLOATS
from recover.containers.safetensors.reader import Tensor
from recover.errors import ReblockError
from recover.inputs.originals.codes import as_float64
from recover.inputs.originals.grid import Floats, TransposedFloats
from recover.quants import F32Array, I8Array, U8Array, type_by_name
from recover.reblock.blocks import BlockRows, block_tensor, joined_blocks
from recover.reblock.floats import F64Array, converted, copied, decode_floats, stored_as_float
from recover.reblock.grids import OffGrid, on_grid
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

Rows = IntegerRows | FloatRows | BlockRows
_FAR = 4  # rows that are further apart are not read together


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
    rows : IntegerRows, FloatRows or BlockRows
        The numbers.
    is_float : bool
        Whether the source stores floats.
    plain : Tensor or None
        The source's tensor, if its bytes can be taken as they are.
    stored : Floats or None
        The floats row after row, if they were not selected or stacked since.
    note : str
        Conditions of a claim of exactness.
    floats : Draft or None
        The floats that a grid was found in.
    nearly : str
        The type that would hold all but some of the floats.
    """

    name: str
    dims: tuple[int, ...]
    stored_as: str
    rows: Rows
    is_float: bool = False
    plain: Tensor | None = None
    stored: Floats | None = None
    note: str = ""
    floats: "Draft | None" = None
    nearly: str = ""


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
        stored=Floats(tensor.raw, tensor.dtype, dims[0]),
    )


def transposed(draft: Draft) -> Draft:
    """Matrices of floats whose columns become rows."""
    assert draft.plain is not None
    n_columns, length, *others = draft.dims
    stored = TransposedFloats(draft.plain.raw, draft.stored_as, length, n_columns)

    def reference(first: int, last: int) -> F64Array:
        words = stored.words(first * length, last * length)
        return as_float64(words, draft.stored_as).reshape(-1, length)

    rows = replace(draft.rows, n_rows=stored.n_rows, row_length=length, reference=reference)
    dims = (length, n_columns, *others)
    return replace(draft, dims=dims, rows=rows, plain=None, stored=stored)


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
        Whether one-dimensional floats and biases become F32, as llama.cpp wants them.

    Raises
    ------
    ReblockError
        If no type is exact and inexact ones are not allowed.
    """
    name, dims, rows = draft.name, draft.dims, draft.rows
    if isinstance(rows, BlockRows):
        return block_tensor(name, dims, draft.stored_as, rows, request, draft.note)
    if isinstance(rows, IntegerRows):
        return exact_tensor(name, dims, draft.stored_as, rows, request, draft.note)
    reference = flat_reference(rows.row_length, rows.reference)
    if draft.is_float and draft.plain is not None:
        reference = _flat_floats(draft.plain)
    else:
        check_row_length(name, rows.row_length)
    if draft.is_float:
        is_vector = len(dims) == 1 or name.endswith(".bias")
        as_f32 = norms_as_f32 and is_vector and draft.stored_as in FLOATS
        outtype = type_by_name("F32" if as_f32 else draft.stored_as)
        if draft.plain is not None and outtype.name == draft.stored_as:
            return replace(copied(name, dims, outtype.name, draft.plain.raw), reason=draft.note)
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
    formula = "every number" if rows.group is None else "code x scale"
    return stored_as_float(
        name=name,
        dims=dims,
        stored_as=draft.stored_as,
        group=rows.group,
        outtype=type_by_name("BF16"),
        reason="; ".join(filter(None, (f"BF16 holds {formula}", draft.note))),
        reference=reference,
        exact=True,
    )


def with_grid(draft: Draft, request: Request, n_threads: int | None) -> Draft:
    """A tensor of floats as the integers or 4-bit floats behind it, if there are any."""
    if draft.stored is None or len(draft.dims) < 2:
        return draft
    found = on_grid(draft.name, draft.stored, request, n_threads)
    if isinstance(found, OffGrid):
        return replace(draft, note=found.said, nearly=found.type_name)
    if isinstance(found, str):
        return replace(draft, note=found)
    return replace(
        draft,
        rows=found.rows,
        is_float=False,
        plain=None,
        stored=None,
        note=found.said,
        floats=draft,
    )


def _flat_floats(tensor: Tensor) -> Callable[[int, int], F64Array]:
    size, raw, dtype = tensor.raw.size // tensor.n_weights, tensor.raw, tensor.dtype
    return lambda start, end: decode_floats(raw[size * start : size * end], dtype)


def selected(draft: Draft, order: NDArray[np.int64], dims: tuple[int, ...]) -> Draft:
    """Some of the rows, in some order.

    Parameters
    ----------
    draft : Draft
        What they are taken from.
    order : int64 (n_rows,)
        For each row of the result that of the draft.
    dims : tuple of int
        Of the result, row length first.
    """
    rows = draft.rows

    def gathered(read: Callable[[int, int], NDArray[Any]], first: int, last: int) -> NDArray[Any]:
        return _gathered(read, order[first:last])

    def reference(first: int, last: int) -> F64Array:
        return gathered(rows.reference, first, last)

    if isinstance(rows, FloatRows):
        moved: Rows = replace(rows, n_rows=order.size, reference=reference)
    elif isinstance(rows, BlockRows):
        moved = replace(
            rows,
            n_rows=order.size,
            blocks=lambda first, last, out: np.copyto(
                out.reshape(last - first, -1), gathered(_blocks_of(rows), first, last)
            ),
            reference=reference,
        )
    else:
        offsets = rows.offsets
        moved = replace(
            rows,
            n_rows=order.size,
            codes=lambda first, last, out: np.copyto(out, gathered(_codes_of(rows), first, last)),
            scales=lambda first, last: _as_f32(gathered(rows.scales, first, last)),
            offsets=None
            if offsets is None
            else lambda first, last: _as_f32(gathered(offsets, first, last)),
            reference=reference,
        )
    return replace(draft, rows=moved, dims=dims, plain=None, stored=None)


def _gathered(read: Callable[[int, int], NDArray[Any]], order: NDArray[np.int64]) -> NDArray[Any]:
    """Rows in an order, of which those that lie close to each other are read together."""
    places = np.argsort(order, kind="stable")
    ascending = order[places]
    cuts = np.flatnonzero(np.diff(ascending) > _FAR) + 1
    parts = []
    for rows in np.split(ascending, cuts):
        begin, end = int(rows[0]), int(rows[-1]) + 1
        found = read(begin, end)
        parts.append(found if rows.size == end - begin else found[rows - begin])
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if np.array_equal(ascending, order):
        return whole
    out = np.empty_like(whole)
    out[places] = whole
    return out


def _blocks_of(rows: BlockRows) -> Callable[[int, int], U8Array]:
    """The bytes of rows as a matrix."""

    def read(first: int, last: int) -> U8Array:
        found = np.empty((last - first, rows.row_bytes), np.uint8)
        rows.blocks(first, last, found.reshape(-1))
        return found

    return read


def _codes_of(rows: IntegerRows) -> Callable[[int, int], I8Array]:
    """The codes of rows as a matrix."""

    def read(first: int, last: int) -> I8Array:
        found = np.empty((last - first, rows.row_length), np.int8)
        rows.codes(first, last, found)
        return found

    return read


def _as_f32(found: NDArray[Any]) -> F32Array:
    return found.astype(np.float32, copy=False)


def stacked(name: str, drafts: Sequence[Draft]) -> Draft:
    """Matrices of the same size and kind as one tensor of three dimensions.

    Raises
    ------
    ReblockError
        If they differ in size or in how they are stored.
    """
    if len({_kind(draft) for draft in drafts}) > 1:  # some may have grids and others not
        drafts = [draft.floats or draft for draft in drafts]
    first_one = drafts[0]
    kind = _kind(first_one)
    for draft in drafts:
        if _kind(draft) != kind:
            raise ReblockError(
                f"tensor {quoted(draft.name)}: cannot be stacked with {quoted(first_one.name)},"
                " which has another shape or is stored otherwise"
            )
    dims = (*first_one.dims[:2], len(drafts))
    rows = _joined([draft.rows for draft in drafts])
    return replace(first_one, name=name, dims=dims, rows=rows, plain=None, stored=None)


def _joined(parts: Sequence[Rows]) -> Rows:
    """The rows of matrices of one kind, one below the other."""
    first_one = parts[0]
    n_rows = first_one.n_rows

    def pieces(first: int, last: int) -> Iterator[tuple[int, int, int, slice]]:
        """Matrices, their rows, and where these are among the rows `first` to `last`."""
        at = first
        while at < last:
            matrix, row = divmod(at, n_rows)
            n = min(last - at, n_rows - row)
            yield matrix, row, row + n, slice(at - first, at - first + n)
            at += n

    def joined(
        reads: Sequence[Callable[[int, int], NDArray[Any]]], first: int, last: int
    ) -> NDArray[Any]:
        found = [reads[matrix](begin, end) for matrix, begin, end, _ in pieces(first, last)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    references = [part.reference for part in parts]

    def reference(first: int, last: int) -> F64Array:
        return joined(references, first, last).astype(np.float64, copy=False)

    if isinstance(first_one, FloatRows):
        floats = [part for part in parts if isinstance(part, FloatRows)]
        obstacle = next((part.obstacle for part in floats if part.obstacle), "")
        n_all = n_rows * len(parts)
        return replace(first_one, n_rows=n_all, obstacle=obstacle, reference=reference)
    if isinstance(first_one, BlockRows):
        blocks = [part for part in parts if isinstance(part, BlockRows)]
        return joined_blocks(blocks, pieces, reference)
    integers = [part for part in parts if isinstance(part, IntegerRows)]
    all_scales = [part.scales for part in integers]
    all_offsets = [part.offsets for part in integers if part.offsets is not None]

    def codes(first: int, last: int, out: I8Array) -> None:
        for matrix, begin, end, place in pieces(first, last):
            integers[matrix].codes(begin, end, out[place])

    return replace(
        first_one,
        n_rows=n_rows * len(parts),
        lowest=min(part.lowest for part in integers),
        highest=max(part.highest for part in integers),
        codes=codes,
        scales=lambda first, last: _as_f32(joined(all_scales, first, last)),
        offsets=(lambda first, last: _as_f32(joined(all_offsets, first, last)))
        if all_offsets
        else None,
        reference=reference,
    )


def _kind(draft: Draft) -> tuple[object, ...]:
    """What has to be the same in a stack."""
    rows = draft.rows
    what: object = draft.is_float and draft.stored_as
    if isinstance(rows, IntegerRows):
        what = rows.offsets is not None
    elif isinstance(rows, BlockRows):
        what = rows.type.name
    return draft.dims, type(rows), what, rows.group

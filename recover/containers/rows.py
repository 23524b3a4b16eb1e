"""Blocks of tensors that are stored by rows: each gets the header of its row, row after row.

The decoders of types know blocks, not rows. So a block gets the header of its row in front, and
rows that are interleaved are taken apart: what remains are blocks that can be cut anywhere.
"""

from typing import Protocol

import numpy as np

from recover.quants import InterleavedType, OpaqueType, TensorType, U8Array


class Stored(Protocol):
    """Stored bytes: an array, or something of which each slice is one."""

    @property
    def size(self) -> int: ...  # noqa: D102
    def __getitem__(self, part: slice, /) -> U8Array: ...


def type_of_blocks(kind: TensorType) -> TensorType:
    """What the blocks are that `blocks_of` gives of a tensor that is stored as `kind`."""
    return kind.plain if isinstance(kind, InterleavedType) else kind


def blocks_of(raw: Stored, kind: TensorType, row_length: int, start: int, end: int) -> U8Array:
    """The blocks of weights `start` to `end` of a tensor.

    Parameters
    ----------
    raw : Stored (n_bytes,)
        The bytes of all of its rows.
    kind : TensorType
        How they are stored.
    row_length : int
        Weights of a row.
    start, end : int
        The range, whole blocks.

    Returns
    -------
    uint8 (n_blocks * part_size,)
        Read-only. A view of `raw`, unless its type is stored by rows.

    Raises
    ------
    QuantError
        If the range is no whole number of blocks.
    """
    if not kind.is_by_rows:
        return raw[kind.n_bytes(start) : kind.n_bytes(end)]
    if isinstance(kind, OpaqueType):
        first, last = (kind.position(each, row_length) for each in (start, end))
        return raw[first:last]
    size, n_together = kind.block_size, kind.rows_interleaved
    per_row, per_set = row_length // size, row_length // size * n_together
    first, last = (kind.blocks_before(each) for each in (start, end))
    out = np.empty((last - first, kind.part_size), np.uint8)
    set_bytes = kind.tensor_bytes((row_length, n_together))
    at = first
    while at < last:
        number, within = divmod(at, per_set)
        upto = min(last, (number + 1) * per_set)
        rows = raw[number * set_bytes : (number + 1) * set_bytes]
        _take(rows, kind, per_row, within, out[at - first : upto - first])
        at = upto
    out.flags.writeable = False
    return out.reshape(-1)


def rows_of_blocks(blocks: U8Array, kind: TensorType, row_length: int) -> U8Array:
    """The bytes of whole rows, of which `blocks_of` gave the blocks; not of interleaved ones.

    Parameters
    ----------
    blocks : uint8 (n_blocks * part_size,)
        The blocks of some rows.
    kind : TensorType
        How they are stored.
    row_length : int
        Weights of a row.

    Returns
    -------
    uint8 (n_bytes,)
        `blocks` itself, unless the type's rows have headers.
    """
    if not kind.row_header:
        return blocks
    parts = blocks.reshape(-1, kind.blocks_before(row_length), kind.part_size)
    headers = parts[:, 0, : kind.row_header]
    stored = parts[:, :, kind.row_header :].reshape(len(parts), -1)
    rows: U8Array = np.concatenate([headers, stored], axis=1).reshape(-1)
    return rows


def _take(rows: U8Array, kind: TensorType, per_row: int, first: int, out: U8Array) -> None:
    """Blocks from number `first` on of rows that are stored together."""
    n_together, n_header = kind.rows_interleaved, kind.row_header
    headers = rows[: n_together * n_header].reshape(n_together, n_header)
    mixed = rows[n_together * n_header :].reshape(per_row, -1)
    last = first + len(out)
    one_row = first // per_row == (last - 1) // per_row
    begin, stop = (first % per_row, (last - 1) % per_row + 1) if one_row else (0, per_row)
    if isinstance(kind, InterleavedType):
        blocks = np.empty((n_together, stop - begin, kind.type_size), np.uint8)
        kind.separate(mixed[begin:stop].reshape(-1), blocks)
    else:
        blocks = mixed[begin:stop].reshape(1, stop - begin, kind.type_size)
    at = 0
    for row in range(first // per_row, (last - 1) // per_row + 1):
        from_, to = max(first, row * per_row), min(last, (row + 1) * per_row)
        part = out[at : at + to - from_]
        part[:, :n_header] = headers[row]
        part[:, n_header:] = blocks[row, from_ - row * per_row - begin : to - row * per_row - begin]
        at += to - from_

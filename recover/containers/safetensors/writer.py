"""Laying out safetensors files: the header, and where every tensor's bytes go.

A file is the length of the header (8 bytes, little-endian), the header (JSON, padded with spaces),
and the tensors' bytes without gaps. The header is padded so that the data begin at a multiple of
`ALIGNMENT`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from recover._text import quoted
from recover.errors import OutputError

ALIGNMENT = 64
"""Bytes; the format itself asks for 8."""

ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}
"""Bytes of one number, by dtype."""

_LARGEST_HEADER = 100_000_000  # readers refuse longer ones


class Layout(NamedTuple):
    """Where everything goes."""

    header: bytes
    """The beginning of the file, up to where the data begin."""
    positions: tuple[int, ...]
    """Of the first byte of each tensor in the file."""
    n_bytes: int
    """Size of the file."""


def lay_out(
    tensors: Sequence[tuple[str, str, Sequence[int]]],
    metadata: Mapping[str, str],
    n_header: int = 0,
) -> Layout:
    """Place tensors one after the other.

    Parameters
    ----------
    tensors : sequence of (name, dtype, shape)
        In the order of the file; the row length is the last of the shape.
    metadata : mapping of str to str
        What the file says of itself.
    n_header : int
        The fewest bytes of the header: those of another layout, if its positions are to stay.

    Returns
    -------
    Layout

    Raises
    ------
    OutputError
        If a name cannot be used, or the header becomes too long for readers.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    starts, end = [], 0
    for name, dtype, shape in tensors:
        if name in entries:
            raise OutputError(f"tensor name {quoted(name)} is taken in a safetensors file")
        starts.append(end)
        end += math.prod(shape) * ITEM_SIZES[dtype]
        entries[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [starts[-1], end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False)
    encoded = text.encode()
    encoded += b" " * max(-(8 + len(encoded)) % ALIGNMENT, n_header - 8 - len(encoded))
    if len(encoded) > _LARGEST_HEADER:
        raise OutputError(
            f"a safetensors header of {len(encoded):,} bytes is too long for readers, which take"
            f" {_LARGEST_HEADER:,} at most; write fewer tensors at a time"
        )
    header = len(encoded).to_bytes(8, "little") + encoded
    positions = tuple(len(header) + start for start in starts)
    return Layout(header, positions, len(header) + end)

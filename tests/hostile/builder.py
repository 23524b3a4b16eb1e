"""GGUF files byte by byte, from the format's description alone; right ones and wrong ones."""

import struct
from collections.abc import Sequence

from tests.hostile.kinds import F32, FORMATS, STRING


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def string(text: str | bytes, length: int | None = None) -> bytes:
    """A string, perhaps with a wrong length."""
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if length is None else length) + raw


def scalar(kind: int, value: object) -> bytes:
    """A value without its type."""
    if kind == STRING:
        assert isinstance(value, str | bytes)
        return string(value)
    return struct.pack("<" + FORMATS[kind], value)


def array(kind: int, items: Sequence[bytes], n_items: int | None = None) -> bytes:
    """An array without its own type, perhaps with a wrong number of elements."""
    return u32(kind) + u64(len(items) if n_items is None else n_items) + b"".join(items)


def kv(key: str | bytes, kind: int, raw: bytes) -> bytes:
    """A metadata entry from its value's bytes."""
    return string(key) + u32(kind) + raw


def tensor(
    name: str | bytes,
    dims: Sequence[int] = (8,),
    kind: int = F32,
    offset: int = 0,
    n_dims: int | None = None,
) -> bytes:
    """A row of the tensor table."""
    n_dims = len(dims) if n_dims is None else n_dims
    return string(name) + u32(n_dims) + b"".join(map(u64, dims)) + u32(kind) + u64(offset)


def gguf(
    entries: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    alignment: int = 32,
    magic: bytes = b"GGUF",
    version: bytes = u32(3),
    n_entries: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    """A whole file; the data section begins at the first multiple of `alignment`."""
    n_entries = len(entries) if n_entries is None else n_entries
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    head = magic + version + u64(n_tensors) + u64(n_entries) + b"".join([*entries, *tensors])
    return head + bytes(-len(head) % alignment) + data if tensors else head

"""Importance matrices built byte by byte."""

import struct

from tests.hostile.builder import gguf, tensor
from tests.hostile.kinds import F16, F32


def i32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}i", *numbers)


def f32(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def entry(
    name: str | bytes = "a",
    values: bytes = f32(1, 2),
    *,
    n_calls: int = 2,
    length: int | None = None,
    n_values: int | None = None,
) -> bytes:
    raw = name.encode() if isinstance(name, str) else name
    length = len(raw) if length is None else length
    n_values = len(values) // 4 if n_values is None else n_values
    return i32(length) + raw + i32(n_calls, n_values) + values


def legacy(*entries: bytes, n_entries: int | None = None, end: bytes = i32(5, 1) + b"t") -> bytes:
    return i32(len(entries) if n_entries is None else n_entries) + b"".join(entries) + end


def modern(
    sums: bytes = f32(2, 4),
    counts: bytes = f32(2),
    *,
    sums_type: int = F32,
    counts_type: int = F32,
    names: tuple[str, str] = ("a.in_sum2", "a.counts"),
    entries: tuple[bytes, ...] = (),
) -> bytes:
    width = {F32: 4, F16: 2}
    tensors = [
        tensor(names[0], (len(sums) // width[sums_type],), sums_type),
        tensor(names[1], (len(counts) // width[counts_type],), counts_type, 32),
    ]
    return gguf([*entries], tensors, sums.ljust(32, b"\0") + counts.ljust(32, b"\0"))

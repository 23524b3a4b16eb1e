"""How bytes are put into files, and what is noted of them."""

import os
import zlib
from collections.abc import Iterator

import numpy as np

from recover._files import write_all


def weave(descriptor: int, position: int, data: memoryview, size: int, step: int) -> None:
    """Write `size` bytes of an open file, the next `step` bytes behind them, and so on."""
    n = data.nbytes // size
    n_bytes = (n - 1) * step + size
    between = bytearray(n * step)
    at = 0
    while at < n_bytes:
        found = os.pread(descriptor, n_bytes - at, position + at)
        if not found:
            break
        between[at : at + len(found)] = found
        at += len(found)
    rows = np.frombuffer(between, np.uint8).reshape(n, step)
    rows[:, :size] = np.frombuffer(data, np.uint8).reshape(n, size)
    write_all(descriptor, memoryview(between)[:n_bytes], position)


def checksums(
    position: int, data: bytes | memoryview, n_pieces: int
) -> Iterator[tuple[int, int, int]]:
    """Position, number of bytes, and CRC-32 of pieces of one size that were written there."""
    view = memoryview(data)
    n_bytes = view.nbytes // n_pieces
    if n_pieces == 1:
        yield position, n_bytes, zlib.crc32(view)
        return
    view = view.cast("B")
    for at in range(0, n_pieces * n_bytes, n_bytes):
        yield position + at, n_bytes, zlib.crc32(view[at : at + n_bytes])

"""Bytes that are written between others."""

import os

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

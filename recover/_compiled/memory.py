"""Memory for kernels that load and store whole cache lines."""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_LINE = 64  # bytes of a cache line, and of the longest vector registers

Scalar = TypeVar("Scalar", bound=np.generic)


def aligned(n: int, dtype: type[Scalar]) -> NDArray[Scalar]:
    """An array (n,) with arbitrary contents that begins with a cache line.

    NumPy's arrays begin anywhere at a multiple of 16 bytes. Sixteen float32 may lie in two lines
    then, which takes longer to load, above all after they were stored.
    """
    n_bytes = n * np.dtype(dtype).itemsize
    memory: NDArray[Any] = np.empty(n_bytes + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + n_bytes].view(dtype)

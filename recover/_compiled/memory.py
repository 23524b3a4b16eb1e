"""Memory for kernels: of whole cache lines, and such as cannot be written to."""

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


def constant(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """A view that cannot be written to.

    Kernels are compiled once for such arrays and once for others. What a file stores is one.
    """
    view = array.view()
    view.flags.writeable = False
    return view

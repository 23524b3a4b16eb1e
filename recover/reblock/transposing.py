"""Matrices that are stored transposed."""

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import kernel

I8Array = NDArray[np.int8]

_STRIP = 64


@kernel
def transpose(source: I8Array, column: int, out: I8Array) -> None:
    """Columns of `source` (K, N) from `column` on to the rows of `out` (n, K).

    `source` must be contiguous, so that each strip of a row is copied at once.
    """
    n_rows, row_length = out.shape
    strip = np.empty((_STRIP, _STRIP), np.int8)
    for start in range(0, row_length, _STRIP):
        n_k = min(_STRIP, row_length - start)
        for first in range(0, n_rows, _STRIP):
            n = min(_STRIP, n_rows - first)
            for k in range(n_k):
                begin = column + first
                copied, line = strip[k], source[start + k, begin : begin + n]
                for i in range(n):
                    copied[i] = line[i]
            for i in range(n):
                line = out[first + i, start : start + n_k]
                for k in range(n_k):
                    line[k] = strip[k, i]

"""The original's logits, kept on the disk while other models are compared with them."""

import os
import tempfile
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from recover.errors import EvaluationError
from recover.execution.reserving import make_room

F32Array = NDArray[np.float32]

# Logits up to 32 below the largest of their row have codes up to this one.
_RANGE, _N_NEAR = np.float32(32), np.float32(60_000)
_NEAR = 1024.0
# What the other codes stand for: distances in equal ratios, then masks, and what is never next.
_FAR = np.concatenate(
    [
        np.geomspace(_RANGE, _NEAR, 5001),
        np.geomspace(_NEAR, np.finfo(np.float32).max, 534)[1:],
        [np.inf],
    ]
).astype(np.float32)
_FAR_LIMITS = np.sqrt(_FAR[:-1].astype(np.float64) * _FAR[1:])
_TINY = np.finfo(np.float32).tiny


class ReferenceLogits:
    """Blocks of logits in a temporary file without a name: it goes whatever ends the process.

    Parameters
    ----------
    n_blocks : int
        Number of blocks.
    shape : tuple of int
        Rows and columns of each.
    compact : bool
        Two bytes per logit instead of four: up to 32 below the largest of its row the root of the
        distance in 60,000 steps, so that the likely tokens, which matter, are kept with the least
        errors; beyond it the distance within 0.04%, up to 1024. This moves a mean divergence by
        less than 1e-6.

    Raises
    ------
    EvaluationError
        If the file cannot be made, or there is no space for it.
    """

    def __init__(self, n_blocks: int, shape: tuple[int, int], *, compact: bool) -> None:
        self.shape = shape
        self._compact = compact
        self._block_bytes = block_bytes(shape, compact=compact)
        self._n_bytes = n_blocks * self._block_bytes
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(prefix="recover-")  # noqa: SIM115
        except OSError as error:
            raise self._error(error) from None
        try:
            make_room(self._file.fileno(), self._n_bytes)
        except OSError as error:
            self._file.close()
            raise self._error(error) from None

    def __enter__(self) -> Self:
        """The reference itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Drop the file."""
        self._file.close()

    def store(self, block: int, logits: F32Array) -> None:
        """Keep one block.

        Parameters
        ----------
        block : int
            Its number.
        logits : float32 (rows, columns)
            None of them NaN.

        Raises
        ------
        EvaluationError
            If it cannot be written.
        """
        parts: tuple[NDArray[Any], ...] = (logits,)
        if self._compact:
            top = logits.max(axis=1, keepdims=True)
            distance = top - logits
            span = np.minimum(top - logits.min(axis=1, keepdims=True), _RANGE)
            below = np.minimum(distance, span) / np.maximum(span, _TINY)
            codes = np.rint(_N_NEAR * np.sqrt(below)).astype(np.uint16)
            is_far = distance > _RANGE
            codes[is_far] = 60_001 + np.searchsorted(_FAR_LIMITS, distance[is_far])
            parts = top, span, codes
        position = block * self._block_bytes
        try:
            for part in parts:
                view = np.ascontiguousarray(part).data.cast("B")
                while view:
                    n_written = os.pwrite(self._file.fileno(), view, position)
                    view, position = view[n_written:], position + n_written
        except OSError as error:
            raise self._error(error) from None

    def load(self, block: int) -> F32Array:
        """One block as it was, or nearly so if it is kept compact."""
        position = block * self._block_bytes
        if not self._compact:
            return self._read(np.float32, self.shape, position)
        rows = self.shape[0]
        top, span = self._read(np.float32, (2, rows, 1), position)
        codes: NDArray[np.uint16] = self._read(np.uint16, self.shape, position + 8 * rows)
        distance: F32Array = span * np.square(codes / _N_NEAR)
        is_far = codes > 60_000
        distance[is_far] = _FAR[codes[is_far] - 60_001]
        return top - distance

    def _read(self, dtype: type[Any], shape: tuple[int, ...], position: int) -> NDArray[Any]:
        array = np.empty(shape, dtype)
        view = array.data.cast("B")
        while view:
            n_read = os.preadv(self._file.fileno(), [view], position)
            if n_read == 0:
                raise EvaluationError("the temporary file of logits was truncated")
            view, position = view[n_read:], position + n_read
        return array

    def _error(self, error: OSError) -> EvaluationError:
        folder = tempfile.gettempdir()
        return EvaluationError(
            f"{folder}: cannot hold the {self._n_bytes:,} bytes of the original's logits"
            f" ({error.strerror}); set TMPDIR to a folder with more space, or take fewer --chunks"
        )


def block_bytes(shape: tuple[int, int], *, compact: bool) -> int:
    """Size of one block on the disk."""
    rows, columns = shape
    return rows * (8 + 2 * columns if compact else 4 * columns)

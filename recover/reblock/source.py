"""What every source of integer weights gives: tensors that can be written range by range."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover.quants import F32Array, TensorType, U8Array


@dataclass(frozen=True, kw_only=True)
class OriginalTensor:
    """One tensor of the output, and how its bytes come from the source.

    Attributes
    ----------
    name : str
        In the output.
    dims : tuple of int
        Row length first.
    stored_as : str
        What the source stores, for people (``int8 x bf16``, ``GPTQ 4-bit``, ``BF16``).
    outtype : TensorType
        What is written.
    group : int or None
        Weights along a row that share one scale in the source; None for floats.
    exact : bool
        Whether every written weight will be exactly what the source means.
    reason : str
        Why it is exact or not, and under which conditions; may be empty for plain copies.
    encode : Callable
        ``encode(start, end, out)``: the stored bytes of weights `start` to `end` (flat, in the
        order of the output; whole blocks) into `out`, uint8. Callable from several threads at once.
    reference : Callable or None
        ``reference(start, end) -> float64 (end - start,)``: code times scale in float64, straight
        from the source and by other means than `encode`, for the verification.
    beside : float32 (n_matrices,) or None
        What the decoded weights of each matrix of a stack are multiplied by to be those of
        `reference`; the output has it as a tensor of its own.
    proven : bool
        Whether all the codes are beyond doubt under the conditions of the source; if not, the
        tensor is never called exact, however well it is written.
    """

    name: str
    dims: tuple[int, ...]
    stored_as: str
    outtype: TensorType
    group: int | None
    exact: bool
    reason: str
    encode: Callable[[int, int, U8Array], None]
    reference: Callable[[int, int], NDArray[np.float64]] | None
    beside: F32Array | None = None
    proven: bool = True

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return int(np.prod(self.dims, dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class Original:
    """A model to be re-blocked.

    Attributes
    ----------
    path : Path
        As given.
    parts : tuple of Path
        All files that are read; none of them may be overwritten.
    metadata : tuple of bytes
        Encoded key-value entries of the output (`recover.containers.gguf.header.encode_key_value`).
    tensors : tuple of OriginalTensor
        In output order.
    conditions : tuple of str
        What every claim of exactness rests on, for the report.
    warnings : tuple of str
        What the user should know.
    left_out : tuple of str
        Tensors of the source that are not written, such as those of a vision tower.
    asked : dict
        The parameters of `recover.reblock.dispatch.open_original` that it was opened with, as plain
        data, with absolute paths.
    """

    path: Path
    parts: tuple[Path, ...]
    metadata: tuple[bytes, ...]
    tensors: tuple[OriginalTensor, ...]
    conditions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)

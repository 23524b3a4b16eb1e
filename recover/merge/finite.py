"""NaN and infinite values in tensors that are copied, and in evidence."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import kernel
from recover.evidence.buffer import Evidence
from recover.quants import (
    GROUP,
    F32Array,
    FloatType,
    OpaqueType,
    TensorType,
    U8Array,
    dequantize,
)


def n_not_finite(raw: U8Array, kind: TensorType) -> int:
    """NaN and infinite weights among some stored ones.

    Parameters
    ----------
    raw : uint8 (n_bytes,)
        Whole blocks.
    kind : TensorType
        Their type; integers are all finite.
    """
    if isinstance(kind, FloatType | OpaqueType) and kind.exponent:
        words = raw.view(f"<u{kind.type_size}")
        return int(_count(words, words.dtype.type(kind.exponent)))
    if not isinstance(kind, OpaqueType):
        weights: F32Array = dequantize(raw, kind)
        return int(weights.size - np.count_nonzero(np.isfinite(weights)))
    return 0


def n_broken(evidence: Evidence) -> int:
    """Groups of 16 weights of which an input has NaN or infinite values."""
    decoded = evidence.interval_values, evidence.values
    numbers = evidence.scale, evidence.offset, *decoded
    with np.errstate(invalid="ignore"):  # of infinite numbers of both signs
        total = sum(np.add.reduce(each, None) for each in numbers if each.size)
    if np.isfinite(total):
        return 0
    sound = (np.isfinite(evidence.scale) & np.isfinite(evidence.offset)).all(0)
    for values in decoded:
        groups = np.isfinite(values).reshape(len(values), sound.size, GROUP)
        sound &= groups.all((0, 2))
    return int(np.count_nonzero(~sound))


@kernel
def _count(words: NDArray[Any], exponent: Any) -> Any:
    """Words whose exponent's bits are all 1."""
    n = np.int64(0)
    for i in range(words.size):
        n += np.int64((words[i] & exponent) == exponent)
    return n

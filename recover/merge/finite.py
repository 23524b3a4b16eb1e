"""NaN and infinite values in tensors that are copied, and in evidence."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import any_lane
from recover._compiled.jit import inner, kernel
from recover._compiled.lanes import LANES, load, splat
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


def n_not_finite(raw: U8Array, kind: TensorType, n_tensors: int = 1) -> NDArray[np.int64]:
    """NaN and infinite weights among those of tensors: int64 (n_tensors,).

    Parameters
    ----------
    raw : uint8 (n_bytes,)
        Whole blocks of tensors of one size, one behind the other.
    kind : TensorType
        Their type; integers are all finite.
    n_tensors : int
        How many tensors there are.
    """
    if isinstance(kind, FloatType | OpaqueType) and kind.exponent:
        words = raw.view(f"<u{kind.type_size}").reshape(n_tensors, -1)
        exponent, found = words.dtype.type(kind.exponent), np.empty(n_tensors, np.int64)
        for i, each in enumerate(words):
            found[i] = _count(each, exponent)
        return found
    if not isinstance(kind, OpaqueType):
        broken = ~np.isfinite(dequantize(raw, kind))
        return np.add.reduce(broken.reshape(n_tensors, -1), 1, dtype=np.int64)
    return np.zeros(n_tensors, np.int64)


def n_broken(evidence: Evidence, n_tensors: int = 1) -> NDArray[np.int64]:
    """Groups of 16 weights of which an input has NaN or infinite values: int64 (n_tensors,).

    So many tensors of one size lie one behind the other in the evidence.
    """
    counts = np.zeros(n_tensors, np.int64)
    decoded = evidence.interval_values, evidence.values
    _count_broken(evidence.scale, evidence.offset, *decoded, counts)
    return counts


@kernel
def _count_broken(
    scale: F32Array,
    offset: F32Array,
    stated: F32Array,
    decoded: F32Array,
    counts: NDArray[np.int64],
) -> None:
    """Add to the counts (n_tensors,); the numbers are rows (..., n / 16) and (..., n)."""
    if _are_finite(scale) and _are_finite(offset) and _are_finite(stated) and _are_finite(decoded):
        return
    n_groups = scale.shape[1]
    for g in range(n_groups):
        first, last = GROUP * g, GROUP * (g + 1)
        is_sound = _are_sound(scale, g, g + 1) and _are_sound(offset, g, g + 1)
        is_sound = is_sound and _are_sound(stated, first, last) and _are_sound(decoded, first, last)
        counts[g * counts.size // n_groups] += not is_sound


@inner
def _are_sound(values: F32Array, start: int, end: int) -> bool:
    """Whether all numbers in some columns are finite."""
    n = 0
    for k in range(values.shape[0]):
        for i in range(start, end):
            n += not np.isfinite(values[k, i])
    return n == 0


@inner
def _are_finite(values: F32Array) -> bool:
    """Whether all of some rows are, one behind the other."""
    values = values.reshape(values.size)
    whole, limit = values.size // LANES * LANES, np.float32(np.inf)
    found = splat(limit) < limit
    for i in range(0, whole, LANES):
        found = found | ~(abs(load(values, i)) < limit)
    n = 0
    for i in range(whole, values.size):
        n += not np.isfinite(values[i])
    return n == 0 and not any_lane(found)


@kernel
def _count(words: NDArray[Any], exponent: Any) -> Any:
    """Words whose exponent's bits are all 1."""
    n = np.int64(0)
    for i in range(words.size):
        n += np.int64((words[i] & exponent) == exponent)
    return n

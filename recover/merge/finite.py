"""NaN and infinite values in tensors that are copied, and in evidence."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._compiled.across import any_lane
from recover._compiled.jit import kernel
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
    decoded = evidence.interval_values, evidence.values
    numbers = evidence.scale, evidence.offset, *decoded
    if all(_are_finite(each.reshape(-1)) for each in numbers if each.size):
        return np.zeros(n_tensors, np.int64)
    sound = (np.isfinite(evidence.scale) & np.isfinite(evidence.offset)).all(0)
    for values in decoded:
        groups = np.isfinite(values).reshape(len(values), sound.size, GROUP)
        sound &= groups.all((0, 2))
    return np.add.reduce(~sound.reshape(n_tensors, -1), 1, dtype=np.int64)


@kernel
def _are_finite(values: F32Array) -> bool:
    """Whether all of (n,) are."""
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

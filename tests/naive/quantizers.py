"""Slow float64 references of the named quantizers; they know nothing of the package."""

import numpy as np
from numpy.typing import NDArray

_FLOAT16 = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float64)
_SCALES = _FLOAT16[np.isfinite(_FLOAT16) & (_FLOAT16 != 0)]


def best_q4_0_error(block: NDArray[np.float32]) -> float:
    """The smallest square error of a Q4_0 block: every float16 is tried, with its nearest codes."""
    x = block.astype(np.float64)
    best = float(x @ x)  # of the scale 0
    for scales in np.array_split(_SCALES[:, None], 16):
        levels = np.clip(np.rint(x / scales), -8, 7)
        best = min(best, float(((x - scales * levels) ** 2).sum(1).min()))
    return best


def nearest_codes(
    x: NDArray[np.float32], scale: NDArray[np.float32], minimum: NDArray[np.float32], highest: int
) -> NDArray[np.uint8]:
    """The codes of ``scale * code - minimum``, in float32, as the last step of ggml's encoders."""
    return np.clip(np.rint((x + minimum) / scale), 0, highest).astype(np.uint8)

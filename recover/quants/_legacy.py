"""What the 32-weight formats share: nibbles, fifth bits, and the cells of truncating encoders."""

import numpy as np

from recover._jit import kernel
from recover.quants.base import F32Array, U8Array, table


@kernel
def split_nibbles(qs: U8Array, codes: U8Array) -> None:
    """16 bytes to 32 codes: low nibbles first, then high nibbles."""
    for j in range(16):
        codes[j] = qs[j] & np.uint8(15)
        codes[j + 16] = qs[j] >> np.uint8(4)


@kernel
def add_fifth_bits(qh: U8Array, codes: U8Array) -> None:
    """Adds 16 to code j where bit j of the four bytes of `qh` is set."""
    bits = np.uint32(0)
    for j in range(4):
        bits |= np.uint32(qh[j]) << np.uint32(8 * j)
    for j in range(32):
        codes[j] |= np.uint8(((bits >> np.uint32(j)) & np.uint32(1)) << np.uint32(4))


def extreme_code_cells(n_codes: int) -> tuple[F32Array, F32Array]:
    """Cells where the block's weight of largest magnitude is given the lowest code.

    The encoder divides by ``d = max / -half`` with ``half = n_codes / 2`` and rounds; no weight is
    beyond ``half * d`` in magnitude, which bounds both end cells.
    """
    half = n_codes // 2
    level = np.arange(-half, half)
    lower, upper = level - 0.5, level + 0.5
    lower[0], upper[-1] = -half, half
    return table(lower, fill=-np.inf), table(upper, fill=np.inf)


def range_cells(n_codes: int) -> tuple[F32Array, F32Array]:
    """Cells where the codes span exactly from the block's minimum (code 0) to its maximum."""
    level = np.arange(n_codes)
    lower, upper = level - 0.5, level + 0.5
    lower[0], upper[-1] = 0, n_codes - 1
    return table(lower, fill=-np.inf), table(upper, fill=np.inf)

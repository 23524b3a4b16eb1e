"""What MXFP4 and NVFP4 share: 4-bit floats (E2M1), their cells and their codes.

The stored code has a sign bit, and there are two zeros. Unpacked codes are renumbered, so that
levels rise with the code: 0 to 14, of which 7 is zero.
"""

import numpy as np

from recover._compiled.jit import inner
from recover._compiled.lanes import load, splat, store_bytes, truncate, where
from recover.quants.base import F32Array, U8Array, table

_MAGNITUDES = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32)
_STORED = np.concatenate((_MAGNITUDES, -_MAGNITUDES))
_VALUES = np.concatenate((-_MAGNITUDES[:0:-1], _MAGNITUDES))

LEVELS = table(_VALUES)
"""`kvalues_fp4` of ggml in order: twice what an E2M1 number is, so that all are integers."""


def nearest_cells() -> tuple[F32Array, F32Array]:
    """Edges half-way between neighbours, open at both ends.

    `best_index_mxfp4` takes the first level l with the smallest ``abs(l * d - x)``, d as stored.
    The products are exact, as a level has two significant bits at most and d four. The distances
    to the two levels around x are exact, too (Sterbenz's lemma: each level is at most twice the one
    before); next to 0 ``d - x`` may be rounded, but not across d / 2, which is a float32. All other
    levels are further by at least d. So the level is the nearest one, either of two equally near,
    as long as neither a product overflows nor x is so large that rounding hides a difference of d:
    see `ScalarType.scale_limit`.
    """
    middle = (_VALUES[1:] + _VALUES[:-1]) / 2
    lower = np.concatenate(([-np.inf], middle))
    upper = np.concatenate((middle, [np.inf]))
    return table(lower, fill=-np.inf), table(upper, fill=np.inf)


@inner
def renumber(codes: U8Array) -> None:
    """Stored codes to those whose levels rise; both zeros become one."""
    for i in range(codes.size):
        q = codes[i]
        codes[i] = np.uint8(q + 7) if q < 8 else np.uint8(15 - q)


@inner
def encode_fp4(x: F32Array, d: np.float32, codes: U8Array) -> None:
    """Stored codes of the levels nearest to weights, a multiple of 16, for the scale `d`.

    Mirrors `best_index_mxfp4`; of equally near levels the first one in the order of ggml.
    """
    for i in range(0, x.size, 16):
        value = load(x, i)
        least = abs(splat(_STORED[0] * d) - value)
        code = truncate(splat(np.float32(0)))
        for k in range(1, 16):
            error = abs(splat(_STORED[k] * d) - value)
            code = where(error < least, k, code)
            least = where(error < least, error, least)
        store_bytes(codes, i, code)

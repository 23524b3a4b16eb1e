"""The code book that IQ4_NL and IQ4_XS share."""

import numpy as np

from recover.quants.base import F32Array, table

_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float64
)

LEVELS = table(_VALUES)
"""`kvalues_iq4nl` of ggml."""


def codebook_cells() -> tuple[F32Array, F32Array]:
    """Edges half-way between neighbours, open at both ends; see `best_index_int8`."""
    middle = (_VALUES[1:] + _VALUES[:-1]) / 2
    lower = np.concatenate(([-np.inf], middle))
    upper = np.concatenate((middle, [np.inf]))
    return table(lower, fill=-np.inf), table(upper, fill=np.inf)

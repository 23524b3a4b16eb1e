"""Which quotients are rounded to a code, by the encoder's own arithmetic.

Encoders that divide in 16 bits round twice: the quotient to the floats that they compute in, and
that to a whole number. With 8 bits of precision, quotients from 64 on are multiples of 1/2, and
those between two codes go to the even one: the cells of even codes are 3 times as wide as those of
odd ones. So cells are not derived but found, by rounding all quotients that there are.
"""

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
PRECISION = {"F32": 24, "F16": 11, "BF16": 8}
"""Bits of the significand, with the first one."""

_LEAST = -3
"""Binary exponent of a quotient that is far from any edge of a cell."""


def rounded_to(kind: str, numbers: F64) -> F64:
    """Numbers rounded to the nearest floats, ties to even; exponents are not limited."""
    significand, exponent = np.frexp(numbers)
    n_bits = PRECISION[kind]
    rounded: F64 = np.ldexp(np.rint(np.ldexp(significand, n_bits)), exponent - n_bits)
    return rounded


def edges(kind: str, lowest: int, n_codes: int, zeros: NDArray[np.int64]) -> F64:
    """Between which quotients the codes ``rint(quotient + zero)`` lie.

    Parameters
    ----------
    kind : str
        The floats that quotient and sum are rounded to: ``F32``, ``F16`` or ``BF16``.
    lowest, n_codes : int
        The least code, and how many there are.
    zeros : int (n,)
        Whole numbers that are added to quotients.

    Returns
    -------
    float64 (n, n_codes - 1)
        A quotient that lies between two codes is rounded to either of them.
    """
    if kind == "F32":  # too many to look at, and so many that halves are met exactly
        return np.arange(lowest + 0.5, lowest + n_codes - 1) - zeros[:, None].astype(np.float64)
    n_bits, most = PRECISION[kind], int(np.ceil(np.log2(n_codes))) + 2
    significands = np.arange(1 << (n_bits - 1), 1 << n_bits, dtype=np.float64)
    positive = np.ldexp(significands, np.arange(_LEAST, most)[:, None] - n_bits).reshape(-1)
    quotients = np.concatenate([-positive[::-1], [0.0], positive])
    middles = (quotients[1:] + quotients[:-1]) / 2
    found = np.empty((len(zeros), n_codes - 1))
    for each, zero in zip(found, zeros.tolist(), strict=True):
        codes = np.rint(rounded_to(kind, quotients + zero))
        each[:] = middles[np.searchsorted(codes, lowest + np.arange(1, n_codes)) - 1]
    return found

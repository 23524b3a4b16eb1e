"""The named quantizers, and their errors next to those of ggml's encoders."""

import numpy as np
from numpy.typing import NDArray

from recover.quants import ScalarType, quantize
from recover.quants.variants import all_variants
from tests.oracle import libggml

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
MADE = [(variant.name, name) for variant in all_variants() for name in variant.encoders]


def errors_of(kind: ScalarType, raw: NDArray[np.uint8], x: F32) -> F64:
    """The square error of each block as ggml decodes it; infinite where that is no number."""
    decoded = libggml.dequantize(kind.type_id, raw).astype(np.float64)
    with np.errstate(invalid="ignore"):
        squares = (decoded - x.reshape(-1)) ** 2
    errors: F64 = squares.reshape(-1, kind.block_size).sum(1)
    return np.where(np.isnan(errors), np.inf, errors)


def errors(kind: ScalarType, variant: str, x: F32) -> tuple[F64, F64]:
    """The errors of each block: the variant's and those of ggml's encoder."""
    x = x.reshape(-1, kind.block_size)
    ours = errors_of(kind, quantize(x, kind, quantizer=variant), x)
    return ours, errors_of(kind, libggml.quantize(kind.type_id, x), x)

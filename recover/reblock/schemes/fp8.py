"""FP8 (e4m3) with a scale per tensor, per row or per tile.

``weight`` (N, K); ``weight_scale`` or ``weight_scale_inv``, which despite its name multiplies, too.
Scales that are powers of two (always so if they are stored as e8m0) only move the exponent, so that
BF16 holds every weight.
"""

import numpy as np

from recover.containers.huggingface.formats.fp8 import (
    ACTIVATION_LEAVES,
    SCALE_LEAVES,
    as_matrix,
    e4m3,
    e8m0,
    find_scale,
    parse,
)
from recover.containers.huggingface.modules import Module, values
from recover.containers.safetensors.reader import Tensor
from recover.reblock.floats import F64Array, decode_floats
from recover.reblock.schemes.base import FloatRows, Weight

_E4M3 = e4m3()


def read(module: Module) -> Weight | None:
    """The weight of a module that is stored as FP8."""
    weight, leaf = module.tensors.get("weight"), find_scale(module)
    if weight is None or weight.dtype != "F8_E4M3" or leaf is None:
        return None
    stored = parse(module, ("F8_E4M3",), leaf)
    n_rows, row_length, codes = stored.n_rows, stored.row_length, values(stored.weight)
    scales = _scale_values(stored.scale)

    def reference(first: int, last: int) -> F64Array:
        rows = scales[np.arange(first, last) // stored.high]
        per_weight = np.repeat(rows, stored.wide, 1)[:, :row_length]
        with np.errstate(invalid="ignore"):
            return _E4M3[codes[first:last]] * per_weight

    return Weight(
        stored_as=f"FP8 x {stored.scale.dtype}",
        rows=FloatRows(
            n_rows=n_rows,
            row_length=row_length,
            group=min(stored.wide, row_length),
            obstacle=_obstacle(scales, leaf),
            reference=reference,
        ),
        leaves=frozenset({"weight", *SCALE_LEAVES, *ACTIVATION_LEAVES}),
        note="every scale is a power of two",
    )


def _scale_values(scale: Tensor) -> F64Array:
    """Scales as a matrix."""
    if scale.dtype == "F8_E8M0":
        found = e8m0(scale.raw).astype(np.float64)
    else:
        found = decode_floats(scale.raw, scale.dtype)
    return found.reshape(as_matrix(scale))


def _obstacle(scales: F64Array, leaf: str) -> str:
    """Why bfloat16 does not hold the weights."""
    mantissa, exponent = np.frexp(np.abs(scales))
    bad = ~(((mantissa == 0.5) | (scales == 0)) & np.isfinite(scales))
    if bad.any():
        return (
            f"{leaf} has {int(bad.sum())} scales that are no powers of two"
            f" ({scales[bad][0]:.9g}): the products have more digits than any 8- or 16-bit type"
        )
    # e4m3 goes from 2^-9 to 448 < 2^9, normal bfloat16 from 2^-126 to 2^128
    if exponent.min() < -116 or exponent.max() > 119:
        return f"{leaf} has scales so small or large that the weights leave the range of bfloat16"
    return ""

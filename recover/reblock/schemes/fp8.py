"""FP8 (e4m3, e5m2) with a scale per tensor, row, group or tile, or without one.

See `recover.containers.huggingface.formats.fp8`. Scales that are powers of two only move the
exponent, so that BF16 holds every weight; without scales it does so, too.
"""

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.formats import _mlx_floats
from recover.containers.huggingface.formats.fp8 import (
    ACTIVATION_LEAVES,
    EXPONENTS,
    SCALE_LEAVES,
    StoredFP8,
    as_matrix,
    e4m3,
    e5m2,
    e8m0,
    find_scale,
    parse,
)
from recover.containers.huggingface.modules import Module, values
from recover.containers.safetensors.reader import Tensor
from recover.quants import U8Array
from recover.reblock.floats import F64Array, decode_floats
from recover.reblock.integers import row_chunks
from recover.reblock.schemes.base import FloatRows, Weight

_NUMBERS = {"F8_E4M3": e4m3(), "F8_E5M2": e5m2()}
_LEAVES = frozenset({"weight", "scales", *SCALE_LEAVES, *ACTIVATION_LEAVES})


def read(module: Module) -> Weight | None:
    """The weight of a module that is stored as FP8."""
    module = _mlx_floats.renamed(module)
    weight = module.tensors.get("weight")
    if weight is None or weight.dtype not in _NUMBERS:
        return None
    leaf = find_scale(module)
    if leaf is None:
        return _without_scale(module)
    stored = parse(module, tuple(_NUMBERS), leaf, in_groups=True)
    numbers, codes = _NUMBERS[weight.dtype], values(stored.weight)
    _check_finite(module, codes, numbers)
    scales = _scale_values(stored.scale)

    def reference(first: int, last: int) -> F64Array:
        rows = scales[np.arange(first, last) // stored.high]
        per_weight = np.repeat(rows, stored.wide, 1)[:, : stored.row_length]
        with np.errstate(invalid="ignore"):
            return numbers[codes[first:last]] * per_weight

    return Weight(
        stored_as=f"{_name(weight)} x {stored.scale.dtype}",
        rows=FloatRows(
            n_rows=stored.n_rows,
            row_length=stored.row_length,
            group=min(stored.wide, stored.row_length),
            obstacle=_obstacle(stored, scales),
            reference=reference,
        ),
        leaves=_LEAVES,
        note="every scale is a power of two",
    )


def _without_scale(module: Module) -> Weight | None:
    """A weight whose bytes are its numbers."""
    weight = module.tensors["weight"]
    if any("scale" in leaf for leaf in set(module.tensors).difference(ACTIVATION_LEAVES)):
        return None  # the format says which of them is not known
    weight = module.take("weight", tuple(_NUMBERS), 2)
    numbers, codes = _NUMBERS[weight.dtype], values(weight)
    _check_finite(module, codes, numbers)
    n_rows, row_length = weight.shape
    return Weight(
        stored_as=_name(weight),
        rows=FloatRows(
            n_rows=n_rows,
            row_length=row_length,
            group=None,
            obstacle="",
            reference=lambda first, last: numbers[codes[first:last]],
        ),
        leaves=_LEAVES,
    )


def _name(weight: Tensor) -> str:
    return "FP8" if weight.dtype == "F8_E4M3" else "FP8 e5m2"


def _check_finite(module: Module, codes: U8Array, numbers: NDArray[np.float64]) -> None:
    """Refuse weights that are no numbers, which trained ones never are."""
    is_bad = ~np.isfinite(numbers)
    n_rows, row_length = codes.shape
    n_bad = sum(
        int(np.count_nonzero(is_bad[codes[first:last]]))
        for first, last in row_chunks(n_rows, row_length)
    )
    if n_bad:
        raise module.error(
            f"{n_bad} of {codes.size} codes ({module.tensors['weight'].dtype}) stand for infinity"
            " or for no number, which trained weights never are: the file is damaged, or its bytes"
            " are of another type; take another copy of the model, or leave the tensor out"
        )


def _scale_values(scale: Tensor) -> F64Array:
    """Scales as a matrix."""
    if scale.dtype in EXPONENTS:
        found = e8m0(scale.raw).astype(np.float64)
    else:
        found = decode_floats(scale.raw, scale.dtype)
    return found.reshape(as_matrix(scale))


def _obstacle(stored: StoredFP8, scales: F64Array) -> str:
    """Why bfloat16 does not hold the weights."""
    leaf = stored.leaf
    mantissa, exponent = np.frexp(np.abs(scales))
    bad = ~(((mantissa == 0.5) | (scales == 0)) & np.isfinite(scales))
    if bad.any():
        return (
            f"{leaf} has {int(bad.sum())} scales that are no powers of two"
            f" ({scales[bad][0]:.9g}): the products have more digits than any 8- or 16-bit type"
        )
    # codes go from 2^-16 (e5m2) to less than 2^16, normal bfloat16 from 2^-126 to 2^128
    if exponent.min() < -109 or exponent.max() > 112:
        return f"{leaf} has scales so small or large that the weights leave the range of bfloat16"
    return ""

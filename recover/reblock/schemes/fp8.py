"""FP8 (e4m3) with a scale per tensor, per row or per tile.

``weight`` (N, K); ``weight_scale`` or ``weight_scale_inv``, which despite its name multiplies, too.
Scales that are powers of two (always so if they are stored as e8m0) only move the exponent, so that
BF16 holds every weight.
"""

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.modules import Module, values
from recover.containers.safetensors.reader import Tensor
from recover.reblock.floats import F64Array, decode_floats
from recover.reblock.schemes.base import FloatRows, Weight

_SCALES = ("weight_scale_inv", "weight_scale")
_IGNORED = ("input_scale", "output_scale")
_MOST_SCALES = 1 << 22
_SCALE_TYPES = ("F32", "BF16", "F16", "F8_E8M0")


def _e4m3() -> NDArray[np.float64]:
    """What the 256 codes mean: 4 exponent bits of bias 7, 3 bits of mantissa, no infinity."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = np.where(
        exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0)
    )
    magnitude[(code & 127) == 127] = np.nan
    return np.where(code & 128, -magnitude, magnitude)


_E4M3 = _e4m3()


def read(module: Module) -> Weight | None:
    """The weight of a module that is stored as FP8."""
    weight = module.tensors.get("weight")
    leaf = next((each for each in _SCALES if each in module.tensors), None)
    if weight is None or weight.dtype != "F8_E4M3" or leaf is None:
        return None
    weight = module.take("weight", ("F8_E4M3",), 2)
    (n_rows, row_length), codes = weight.shape, values(weight)
    scale = module.tensors[leaf]
    if scale.dtype not in _SCALE_TYPES or not scale.n_weights:
        raise module.error(f"{leaf} is {scale.dtype} of shape {list(scale.shape)}")
    if scale.n_weights > _MOST_SCALES:
        raise module.error(f"{leaf} has {scale.n_weights} scales; at most {_MOST_SCALES} are read")
    scales = _scale_values(scale)
    high, wide = _tile(module, leaf, n_rows, row_length, scales.shape)

    def reference(first: int, last: int) -> F64Array:
        rows = scales[np.arange(first, last) // high]
        per_weight = np.repeat(rows, wide, 1)[:, :row_length]
        with np.errstate(invalid="ignore"):
            return _E4M3[codes[first:last]] * per_weight

    return Weight(
        stored_as=f"FP8 x {scale.dtype}",
        rows=FloatRows(
            n_rows=n_rows,
            row_length=row_length,
            group=min(wide, row_length),
            obstacle=_obstacle(scales, leaf),
            reference=reference,
        ),
        leaves=frozenset({"weight", *_SCALES, *_IGNORED}),
        note="every scale is a power of two",
    )


def _scale_values(scale: Tensor) -> F64Array:
    """Scales as a matrix."""
    if scale.dtype == "F8_E8M0":
        exponents = scale.raw.astype(np.float64) - 127
        found = np.where(scale.raw == 255, np.nan, np.exp2(exponents))
    else:
        found = decode_floats(scale.raw, scale.dtype)
    n_columns = scale.shape[-1] if len(scale.shape) == 2 else 1
    return found.reshape(-1, n_columns)


def _tile(
    module: Module, leaf: str, n_rows: int, row_length: int, shape: tuple[int, ...]
) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    if shape == (1, 1):
        return n_rows, row_length
    if shape == (n_rows, 1):
        return 1, row_length
    sizes = module.config.get("weight_block_size") or [128, 128]
    is_pair = isinstance(sizes, list) and len(sizes) == 2
    if not is_pair or not all(type(n) is int and n > 0 for n in sizes):
        raise module.error("weight_block_size is no pair of sizes")
    high, wide = sizes
    if shape != (-(-n_rows // high), -(-row_length // wide)):
        raise module.error(
            f"{leaf} has the shape {list(shape)}, which is no scale per tile of {high} x {wide} of"
            f" {n_rows} x {row_length} weights"
        )
    return high, wide


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

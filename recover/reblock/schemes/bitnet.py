"""BitNet: ternary weights, one scale per matrix (transformers, ``integrations/bitnet.py``).

``weight`` U8 (N / 4, K): the codes of rows i, i + N / 4, i + N / 2 and i + 3 N / 4, plus 1, in two
bits each, the lowest first. ``weight_scale``: one number. A weight is its code over that number,
unless ``linear_class`` is ``autobitlinear``, which multiplies.
"""

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.modules import FLOATS, Module, as_float32, values
from recover.quants import F32Array, I8Array
from recover.reblock.floats import F64Array
from recover.reblock.integers import IntegerRows, row_chunks
from recover.reblock.schemes.base import Weight

_METHOD, _MULTIPLIES = "bitnet", "autobitlinear"
_PER_BYTE = 4
_SCALE = "weight_scale"


def read(module: Module) -> Weight | None:
    """The weight of a module that is stored as BitNet's."""
    weight = module.tensors.get("weight")
    if module.config.get("quant_method") != _METHOD or weight is None or weight.dtype != "U8":
        return None
    packed = values(module.take("weight", ("U8",), 2))
    scale = module.tensors.get(_SCALE)
    if scale is None or scale.dtype not in FLOATS or scale.n_weights != 1:
        raise module.error(f"there is no {_SCALE} of one number")
    n_quarter, row_length = packed.shape
    _check_ternary(module, packed)
    stored = as_float32(scale, values(scale)).reshape(())[()]
    multiplies = module.config.get("linear_class") == _MULTIPLIES
    with np.errstate(divide="ignore"):
        factor = stored if multiplies else np.float32(1) / stored

    def fields(first: int, last: int) -> NDArray[np.uint8]:
        rows = np.arange(first, last)
        shifts = (rows // n_quarter * 2).astype(np.uint8)
        found: NDArray[np.uint8] = (packed[rows % n_quarter] >> shifts[:, None]) & np.uint8(3)
        return found

    def codes(first: int, last: int, out: I8Array) -> None:
        np.subtract(fields(first, last).view(np.int8), np.int8(1), out=out)

    def scales(first: int, last: int) -> F32Array:
        return np.full((last - first, 1), factor, np.float32)

    def reference(first: int, last: int) -> F64Array:
        numbers = fields(first, last).astype(np.float64) - 1
        return numbers * np.float64(stored) if multiplies else numbers / np.float64(stored)

    return Weight(
        stored_as=f"ternary {'x' if multiplies else '/'} {scale.dtype}",
        rows=IntegerRows(
            n_rows=_PER_BYTE * n_quarter,
            row_length=row_length,
            group=row_length,
            lowest=-1,
            highest=1,
            codes=codes,
            scales=scales,
            reference=reference,
        ),
        leaves=frozenset({"weight", _SCALE}),
    )


def _check_ternary(module: Module, packed: NDArray[np.uint8]) -> None:
    """Refuse codes that stand for 2."""
    for first, last in row_chunks(*packed.shape):
        part = packed[first:last]
        if np.any(part & (part >> np.uint8(1)) & np.uint8(0x55)):
            raise module.error("a code is 3, which stands for no ternary weight")

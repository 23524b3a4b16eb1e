"""MLX's affine quantization; exact are 2, 3 and 4 bits.

``weight`` uint32 (N, K * bits / 32): codes along K, the lowest bits first; ``scales`` and
``biases`` (N, G). A weight is code * scale + bias.
"""

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.formats._codes import unpack_rows
from recover.containers.huggingface.formats.mlx import LEAVES, is_stored, packed
from recover.containers.huggingface.modules import Module, as_float32, values
from recover.quants import F32Array, I8Array
from recover.reblock.floats import F64Array
from recover.reblock.integers import IntegerRows
from recover.reblock.schemes.base import FloatRows, Weight, streamed, unpacked


def read(module: Module) -> Weight | None:
    """The weight of a module that MLX quantized."""
    if not is_stored(module):
        return None
    found = packed(module)
    scale, bias, n_bits, group = found.scales, found.biases, found.n_bits, found.group
    n_rows, row_length, n_groups = found.n_rows, found.row_length, scale.shape[1]
    words = values(found.weight)
    all_scales, all_biases = values(scale), values(bias)

    def codes(first: int, last: int, out: I8Array) -> None:
        raw = np.array(words[first:last], np.uint32).view(np.uint8).reshape(last - first, -1)
        unpack_rows(raw, n_bits, row_length, 0, out.view(np.uint8).reshape(-1))

    def scales(first: int, last: int) -> F32Array:
        return as_float32(scale, all_scales[first:last])

    def biases(first: int, last: int) -> F32Array:
        return as_float32(bias, all_biases[first:last])

    def reference(first: int, last: int) -> F64Array:
        shape = (last - first, n_groups, group)
        unpack = streamed if 32 % n_bits else unpacked
        numbers: NDArray[np.int32] = unpack(words[first:last], n_bits).reshape(shape)
        scaled = numbers * scales(first, last).astype(np.float64)[:, :, None]
        return (scaled + biases(first, last)[:, :, None]).reshape(last - first, row_length)

    rows: IntegerRows | FloatRows
    if n_bits <= 4:
        rows = IntegerRows(
            n_rows=n_rows,
            row_length=row_length,
            group=group,
            lowest=0,
            highest=(1 << n_bits) - 1,
            codes=codes,
            scales=scales,
            offsets=biases,
            reference=reference,
        )
    else:
        obstacle = f"no type has {n_bits}-bit codes with a scale and an offset per {group}"
        rows = FloatRows(
            n_rows=n_rows,
            row_length=row_length,
            group=group,
            obstacle=obstacle,
            reference=reference,
        )
    return Weight(stored_as=f"MLX {n_bits}-bit", rows=rows, leaves=LEAVES)

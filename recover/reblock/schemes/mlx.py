"""MLX's affine quantization, 4 bits.

``weight`` uint32 (N, K / 8): codes along K, the lowest bits first; ``scales`` and ``biases``
(N, G). A weight is code * scale + bias.
"""

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.modules import FLOATS, Module, as_float32, values
from recover.inputs.originals.packing import I8Array, nibbles_along_rows
from recover.quants import F32Array
from recover.reblock.floats import F64Array
from recover.reblock.integers import IntegerRows
from recover.reblock.schemes.base import FloatRows, Weight, unpacked

_LEAVES = frozenset({"weight", "scales", "biases"})


def read(module: Module) -> Weight | None:
    """The weight of a module that MLX quantized."""
    if not _LEAVES.issubset(module.tensors) or module.tensors["weight"].dtype != "U32":
        return None
    weight = module.take("weight", ("U32",), 2)
    scale = module.take("scales", FLOATS, 2)
    bias = module.take("biases", FLOATS, 2)
    n_rows, n_groups = scale.shape
    module.expect("biases", (n_rows, n_groups))
    n_words = weight.shape[1]
    # bits * group = bits of a row / groups
    bits_per_group = 32 * n_words // n_groups
    group = module.integer("group_size")
    if group is None or group < 1 or bits_per_group % group:
        raise module.error("the configuration does not give MLX's group_size")
    n_bits = bits_per_group // group
    row_length = group * n_groups
    if n_bits not in (2, 4, 8) or weight.shape != (n_rows, row_length * n_bits // 32):
        raise module.error(f"MLX with {n_bits} bits is not supported")
    words = values(weight)
    all_scales, all_biases = values(scale), values(bias)

    def codes(first: int, last: int, out: I8Array) -> None:
        nibbles_along_rows(np.array(words[first:last], np.uint32), 0, out)

    def scales(first: int, last: int) -> F32Array:
        return as_float32(scale, all_scales[first:last])

    def biases(first: int, last: int) -> F32Array:
        return as_float32(bias, all_biases[first:last])

    def reference(first: int, last: int) -> F64Array:
        shape = (last - first, n_groups, group)
        numbers: NDArray[np.int32] = unpacked(words[first:last], n_bits).reshape(shape)
        scaled = numbers * scales(first, last).astype(np.float64)[:, :, None]
        return (scaled + biases(first, last)[:, :, None]).reshape(last - first, row_length)

    rows: IntegerRows | FloatRows
    if n_bits == 4:
        rows = IntegerRows(
            n_rows=n_rows,
            row_length=row_length,
            group=group,
            lowest=0,
            highest=15,
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
    return Weight(stored_as=f"MLX {n_bits}-bit", rows=rows, leaves=_LEAVES)

"""GPTQ, as AutoGPTQ and GPTQModel store it.

``qweight`` int32 (K * bits / 32, N): codes of one column, the lowest bits first. ``qzeros`` int32
(G, N * bits / 32): zero points along N, one less than they are (``checkpoint_format`` gptq_v2: as
they are). ``scales`` (G, N). ``g_idx`` int32 (K): the group of each column. A weight is
(code - zero) * scale.
"""

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.modules import FLOATS, Module, as_float32, values
from recover.inputs.originals.packing import I8Array, bytes_along_columns, nibbles_along_columns
from recover.quants import F32Array
from recover.reblock.floats import F64Array
from recover.reblock.integers import IntegerRows
from recover.reblock.schemes.base import Weight, check_order, unpacked, zero_range

_WORDS = ("I32", "U32")
_LEAVES = frozenset({"qweight", "qzeros", "scales", "g_idx"})


def read(module: Module) -> Weight | None:
    """The weight of a module that GPTQ quantized."""
    if "qweight" not in module.tensors:
        return None
    method = module.config.get("quant_method")
    qweight = module.take("qweight", _WORDS, 2)
    scales = module.take("scales", FLOATS, 2)
    qzeros = module.take("qzeros", _WORDS, 2)
    n_groups, n_rows = scales.shape
    if method not in ("gptq", None) or (method is None and qweight.shape[1] != n_rows):
        return None
    n_bits = 32 * qzeros.shape[1] // n_rows
    if n_bits not in (4, 8) or module.integer("bits") not in (None, n_bits):
        raise module.error(f"GPTQ of {module.integer('bits') or n_bits} bits is not supported")
    row_length = qweight.shape[0] * 32 // n_bits
    module.expect("qweight", (row_length * n_bits // 32, n_rows))
    module.expect("qzeros", (n_groups, n_rows * n_bits // 32))
    group = -(-row_length // n_groups)
    if group * n_groups != row_length:
        raise module.error(f"{n_groups} scales for {row_length} columns")
    check_order(module, "g_idx", row_length, group)
    is_v2 = module.config.get("checkpoint_format") == "gptq_v2"
    words, zero_words, all_scales = values(qweight), values(qzeros), values(scales)

    def zeros(first: int, last: int) -> NDArray[np.int32]:
        """Zero points (G, last - first)."""
        per_word = 32 // n_bits
        begin, end = first // per_word, -(-last // per_word)
        fields = unpacked(zero_words[:, begin:end], n_bits).reshape(n_groups, -1)
        skipped = first - begin * per_word
        return fields[:, skipped : skipped + last - first] + (0 if is_v2 else 1)

    low, high = zero_range(n_rows, n_groups, zeros)

    def codes(first: int, last: int, out: I8Array) -> None:
        strip = np.array(words[:, first:last], np.uint32)
        if n_bits == 4:
            nibbles_along_columns(strip, zeros(first, last).astype(np.int8), group, out)
        else:
            bytes_along_columns(strip, low, out)

    def scale_rows(first: int, last: int) -> F32Array:
        return as_float32(scales, all_scales[:, first:last].T)

    def reference(first: int, last: int) -> F64Array:
        fields = unpacked(words[:, first:last], n_bits)
        numbers = fields.transpose(1, 0, 2).reshape(last - first, n_groups, group)
        shifted = numbers - zeros(first, last).T[:, :, None]
        scaled = shifted * scale_rows(first, last).astype(np.float64)[:, :, None]
        return scaled.reshape(last - first, row_length)

    is_symmetric = low == high == 1 << (n_bits - 1)
    meaning = "zero points as stored (gptq_v2)" if is_v2 else "zero points are one more than stored"
    return Weight(
        stored_as=f"GPTQ {n_bits}-bit {'symmetric' if is_symmetric else 'asymmetric'}",
        rows=IntegerRows(
            n_rows=n_rows,
            row_length=row_length,
            group=group,
            lowest=-high,
            highest=(1 << n_bits) - 1 - low,
            codes=codes,
            scales=scale_rows,
            reference=reference,
        ),
        leaves=_LEAVES,
        note=meaning,
    )

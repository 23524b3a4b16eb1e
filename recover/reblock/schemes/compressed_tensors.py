"""compressed-tensors: ``pack-quantized`` (4 and 8 bit) and ``int-quantized``.

pack-quantized: ``weight_packed`` int32 (N, K * bits / 32), codes along K plus half their range, the
lowest bits first; ``weight_scale`` (N, G); ``weight_shape`` (2), N and K; perhaps
``weight_zero_point`` int32 (N * bits / 32, G), packed along N. int-quantized: ``weight`` int8
(N, K), ``weight_scale`` (N, G) or one number. A weight is (code - zero) * scale.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.modules import FLOATS, Module, as_float32, values
from recover.inputs.originals.packing import I8Array, nibbles_along_rows
from recover.quants import F32Array
from recover.reblock.floats import F64Array
from recover.reblock.integers import IntegerRows
from recover.reblock.schemes.base import Weight, check_order, unpacked, zero_range

# Scales of activations belong to no weight, and GGUF has no place for them.
_LEAVES = frozenset(
    {
        "weight_packed",
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
        "input_scale",
        "input_zero_point",
        "output_scale",
        "output_zero_point",
    }
)
_Numbers = Callable[[int, int], NDArray[np.int32]]


def read(module: Module) -> Weight | None:
    """The weight of a module that compressed-tensors stores."""
    if "weight_packed" in module.tensors:
        return _packed(module) if "weight_shape" in module.tensors else None
    weight = module.tensors.get("weight")
    if weight is None or weight.dtype != "I8" or "weight_scale" not in module.tensors:
        return None
    return _plain(module)


def _packed(module: Module) -> Weight:
    packed = module.take("weight_packed", ("I32", "U32"), 2)
    shape = module.take("weight_shape", ("I32", "I64", "U32"), 1)
    module.expect("weight_shape", (2,))
    n_rows, row_length = (int(size) for size in values(shape))
    n_bits = next((n for n in (4, 8) if packed.shape == (n_rows, -(-row_length * n // 32))), None)
    if n_bits is None or row_length < 1 or row_length % (32 // n_bits):
        raise module.error(
            f"weight_packed has the shape {list(packed.shape)}, which is no matrix of {n_rows} x"
            f" {row_length} with 4 or 8 bits"
        )
    words, half = values(packed), 1 << (n_bits - 1)

    def numbers(first: int, last: int) -> NDArray[np.int32]:
        return unpacked(words[first:last], n_bits).reshape(last - first, row_length) - half

    def codes(first: int, last: int, out: I8Array) -> None:
        part = np.array(words[first:last], np.uint32)
        if n_bits == 4:
            nibbles_along_rows(part, 8, out)
        else:
            np.bitwise_xor(part.view(np.uint8), np.uint8(128), out=out.view(np.uint8))

    return _weight(module, f"int{n_bits}", n_rows, row_length, n_bits, codes, numbers)


def _plain(module: Module) -> Weight:
    weight = module.take("weight", ("I8",), 2)
    (n_rows, row_length), stored = weight.shape, values(weight)

    def numbers(first: int, last: int) -> NDArray[np.int32]:
        return stored[first:last].astype(np.int32)

    def codes(first: int, last: int, out: I8Array) -> None:
        out[:] = stored[first:last]

    return _weight(module, "int8", n_rows, row_length, 8, codes, numbers)


def _weight(
    module: Module,
    kind: str,
    n_rows: int,
    row_length: int,
    n_bits: int,
    stored_codes: Callable[[int, int, I8Array], None],
    numbers: _Numbers,
) -> Weight:
    """Put codes, scales and zero points together."""
    scale = module.tensors.get("weight_scale")
    if scale is None or scale.dtype not in FLOATS or scale.n_weights < 1:
        raise module.error("there is no weight_scale of floats")
    # one number for all rows, or one or more per row
    n_groups = scale.n_weights // n_rows if scale.n_weights > 1 else 1
    if scale.n_weights not in (1, n_rows * n_groups) or row_length % max(n_groups, 1):
        raise module.error(
            f"weight_scale has the shape {list(scale.shape)} for {n_rows} x {row_length} weights"
        )
    group = row_length // n_groups
    check_order(module, "weight_g_idx", row_length, group)
    all_scales = values(scale).reshape(-1, n_groups)

    def scales(first: int, last: int) -> F32Array:
        rows = slice(first, last) if scale.n_weights > 1 else slice(None)
        found = as_float32(scale, all_scales[rows])
        return np.broadcast_to(found, (last - first, n_groups))

    zeros = _zeros(module, n_rows, n_groups, n_bits)
    half = 1 << (n_bits - 1)
    low, high = (0, 0) if zeros is None else zero_range(n_rows, n_groups, zeros)

    def codes(first: int, last: int, out: I8Array) -> None:
        stored_codes(first, last, out)
        if zeros is not None and (low, high) != (0, 0):
            grouped = out.reshape(last - first, n_groups, group)
            grouped -= zeros(first, last).astype(np.int8)[:, :, None]

    def reference(first: int, last: int) -> F64Array:
        found = numbers(first, last).reshape(last - first, n_groups, group)
        if zeros is not None:
            found = found - zeros(first, last)[:, :, None]
        scaled = found * scales(first, last).astype(np.float64)[:, :, None]
        return scaled.reshape(last - first, row_length)

    return Weight(
        stored_as=f"{kind} x {scale.dtype}" + (", asymmetric" if (low, high) != (0, 0) else ""),
        rows=IntegerRows(
            n_rows=n_rows,
            row_length=row_length,
            group=group,
            lowest=-half - high,
            highest=half - 1 - low,
            codes=codes,
            scales=scales,
            reference=reference,
        ),
        leaves=_LEAVES
        | ({"weight"} if kind == "int8" and "weight_packed" not in module.tensors else set()),
    )


def _zeros(module: Module, n_rows: int, n_groups: int, n_bits: int) -> _Numbers | None:
    """Zero points (last - first, G); None if there are none."""
    if "weight_zero_point" not in module.tensors:
        return None
    tensor = module.tensors["weight_zero_point"]
    if tensor.dtype == "I8" and tensor.n_weights == n_rows * n_groups:
        stored = values(tensor).reshape(n_rows, n_groups)
        return lambda first, last: stored[first:last].astype(np.int32)
    tensor = module.take("weight_zero_point", ("I32", "U32"), 2)
    per_word, half = 32 // n_bits, 1 << (n_bits - 1)
    module.expect("weight_zero_point", (-(-n_rows // per_word), n_groups))
    words = values(tensor)

    def unpacked_zeros(first: int, last: int) -> NDArray[np.int32]:
        begin, end = first // per_word, -(-last // per_word)
        fields = unpacked(words[begin:end], n_bits).transpose(0, 2, 1).reshape(-1, n_groups)
        return fields[first - begin * per_word : last - begin * per_word] - half

    return unpacked_zeros

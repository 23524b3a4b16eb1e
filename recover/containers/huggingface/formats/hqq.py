"""HQQ, as hqq and transformers store it in safetensors: 1, 2, 3, 4, 5, 6 and 8 bits.

The matrix is cut into G groups of `group_size` weights: rows of a (G, group_size) matrix (axis 1),
or columns of a (group_size, G) one (axis 0). ``W_q`` has the codes of that matrix, of which the
first part of the rows is in the highest bits of the words, the second in the next ones:

| bits | word | parts |
|---|---|---|
| 8, 6, 5 | uint8 | 1 |
| 4, 2, 1 | uint8 | 2, 4, 8 |
| 3 | int32 | 10, three bits each, rows of zeros added |

``scale`` and ``zero`` (G, 1) or (1, G); ``axis``, ``nbits``, ``group_size``, ``shape``, ``packing``
and others are small arrays. A weight is (code - zero) * scale, with a zero that is no whole number.

Codes are ``round(x / scale + zero)`` in float32 (hqq:hqq/core/optimize.py), on a GPU with one over
the scale and zero in float16. All three are stored in the floats that the model computes in.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from recover.containers.huggingface.formats._codes import unpack_fields
from recover.containers.huggingface.formats._grid import (
    ANYWHERE,
    F64,
    Cells,
    Grid,
    Groups,
    Steps,
    cells_of,
    floats,
    rounding_interval,
    widened,
)
from recover.containers.huggingface.modules import FLOATS, Module, values
from recover.containers.safetensors.reader import Tensor
from recover.quants import F32Array, IntervalType, U8Array

LEAVES = frozenset(
    {
        *("W_q", "nbits", "group_size", "shape", "scale", "zero", "axis", "packing"),
        *("unpack_view_dtype", "view_as_float", "quant_scale", "quant_zero", "compute_dtype"),
        *("offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise"),
        *("optimize", "round_zero"),
    }
)
# By bits, with groups of 64, over the matrices of a trained block: mean square error relative to
# that of the weights; in squared steps, of codes with two neighbours and of the end codes. The
# search for the zero draws weights to the middle of cells.
_MEASURED = {
    1: (1.11, 0.0518, 0.0518),
    2: (0.187, 0.0740, 0.0794),
    3: (0.0343, 0.0760, 0.0518),
    4: (7.63e-3, 0.0762, 0.0770),
    5: (1.75e-3, 0.0764, 0.0266),
    6: (4.26e-4, 0.0769, 0.0207),
    8: (2.73e-5, 0.0810, 0.0081),
}
_PARTS = {1: 8, 2: 4, 3: 10, 4: 2, 5: 1, 6: 1, 8: 1}
_SMALL = "U8", "I32", "I64", "F32"


@cache
def _type(n_bits: int, axis: int) -> IntervalType:
    error, inner, _ = _MEASURED[n_bits]
    return IntervalType(name=f"HQQ{n_bits}", relative_mse=error, noise=inner, is_strided=axis == 0)


@dataclass(frozen=True)
class _Packed:
    """What is stored of a matrix; `span` codes are a part."""

    words: Tensor
    scale: Tensor
    zero: Tensor
    n_rows: int
    row_length: int
    group: int
    n_groups: int
    axis: int
    n_bits: int
    span: int


def read(module: Module) -> Grid | None:
    """The weight of a module that HQQ quantized."""
    if "W_q" not in module.tensors:
        return None
    found = _packed(module)
    word = 4 if found.n_bits == 3 else 1
    raw = values(found.words).view(np.uint8).reshape(-1, word)
    width = 8 // _PARTS[found.n_bits] if word == 1 else 3
    highest = width * (_PARTS[found.n_bits] - 1)

    def codes(start: int, out: U8Array) -> None:
        unpack_fields(raw, width, highest, found.span, start, out)

    strided = ", strided" if found.axis == 0 else ""
    return Grid(
        n_rows=found.n_rows,
        row_length=found.row_length,
        type=_type(found.n_bits, found.axis),
        has_cells=True,
        seen_as=found.scale.dtype,
        leaves=LEAVES,
        label=f"HQQ {found.n_bits}-bit, groups of {found.group}{strided}",
        run=found.group if found.axis == 1 else 1,
        n_codes=1 << width,
        codes=codes,
        steps=lambda first, last: _steps(found, first, last),
        groups=lambda first, last, codes: _groups(found, first, last),
        cells=_cells(found.n_bits, 1 << width),
        period=found.n_groups if found.axis == 0 else 0,
    )


def _packed(module: Module) -> _Packed:
    """What is stored of a matrix.

    Raises
    ------
    SafetensorsError
        If the arrays do not fit each other, or something is not supported.
    """
    for leaf in ("quant_scale", "quant_zero", "view_as_float"):
        if leaf in module.tensors and _number(module, leaf, 0):
            raise module.error(f"HQQ with {leaf} is not supported; save it without")
    n_bits, axis = _number(module, "nbits", None), _number(module, "axis", None)
    if n_bits not in _PARTS or axis not in (0, 1):
        raise module.error(f"HQQ with {n_bits} bits along axis {axis} is not supported")
    words = module.take("W_q", ("I32", "U32") if n_bits == 3 else ("U8",), 2)
    shape = module.take("shape", ("I64", "I32"), 1)
    module.expect("shape", (2,))
    n_rows, row_length = (int(size) for size in values(shape))
    n_parts, (n_words, n_columns) = _PARTS[n_bits], words.shape
    n_weights = n_rows * row_length
    group = _number(module, "group_size", n_columns if axis == 1 else None)
    if min(n_rows, row_length, group) < 1 or n_weights % group:
        raise module.error(f"groups of {group} weights do not divide {n_rows} x {row_length}")
    n_groups = n_weights // group
    high, wide = (n_groups, group) if axis == 1 else (group, n_groups)
    if n_columns != wide or n_words != -(-high // n_parts) or (n_bits != 3 and high % n_parts):
        raise module.error(
            f"W_q has the shape {list(words.shape)}, which is not that of {n_groups} groups of"
            f" {group} weights with {n_bits} bits"
        )
    numbers = [module.tensors.get(leaf) for leaf in ("scale", "zero")]
    if any(each is None or each.dtype not in FLOATS for each in numbers):
        raise module.error("there are no floats as scale and zero")
    scale, zero = (each for each in numbers if each is not None)
    if scale.n_weights != n_groups or zero.n_weights != n_groups:
        raise module.error(f"there is not one scale and one zero for each of {n_groups} groups")
    span = n_words * n_columns
    return _Packed(words, scale, zero, n_rows, row_length, group, n_groups, axis, n_bits, span)


def _number(module: Module, leaf: str, default: int | None) -> int:
    """A whole number that is stored as a small array, or else in the configuration."""
    if leaf not in module.tensors:
        found = _setting(module.config, leaf)
        found = default if found is None else found
    else:
        tensor = module.tensors[leaf]
        if tensor.dtype not in _SMALL or tensor.n_weights != 1:
            raise module.error(f"{leaf} is {tensor.dtype} of shape {list(tensor.shape)}")
        found = values(tensor).reshape(-1)[0].item()
    if not isinstance(found, int):
        raise module.error(f"{leaf} is {found}, which is no whole number that HQQ files can have")
    return found


def _setting(config: Any, name: str) -> int | None:
    """What the configuration says of all modules."""
    for key in ("quant_config", "weight_quant_params"):
        config = config.get(key, config) if hasattr(config, "get") else None
    found = config.get(name) if hasattr(config, "get") else None
    return found if type(found) is int else None


@cache
def _cells(n_bits: int, n_codes: int) -> Cells:
    code = np.arange(float(n_codes))[None]
    lower, upper = code - 0.5, code + 0.5
    lower[:, 0], upper[:, (1 << n_bits) - 1 :] = -np.inf, np.inf
    _, inner, end = _MEASURED[n_bits]
    return cells_of(lower, upper, code, slack=(1e-6 * n_codes, 1e-6), inner=inner, end=end)


def _steps(found: _Packed, first: int, last: int) -> Steps:
    """Runs `first` to `last`, which are groups or, if those are strided, weights."""
    return Steps(*(_around(each, first, last) for each in (found.scale, found.zero)))


def _groups(found: _Packed, first: int, last: int) -> Groups:
    """See `_steps`."""
    step, zero, _ = _steps(found, first, last)
    assert zero is not None
    small, large = widened(*_scale_interval(found.scale, step))
    loose = np.zeros_like(zero)
    if found.zero.dtype != "F32":
        size = np.abs(zero.astype(np.float64))
        loose = (rounding_interval(found.zero.dtype, size)[1] - size).astype(np.float32)
    nothing = np.zeros_like(step)
    table = np.zeros(len(step), np.int32)
    ends = nothing + np.inf, loose, table, nothing + ANYWHERE
    return Groups(step, nothing, zero, zero, small, large, *ends)


def _around(tensor: Tensor, first: int, last: int) -> F32Array:
    """Numbers `first` to `last` of an array that begins again where it ends."""
    parts, n = [], tensor.n_weights
    while first < last:
        begin = first % n
        m = min(n - begin, last - first)
        parts.append(floats(tensor, begin, begin + m))
        first += m
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _scale_interval(scale: Tensor, step: F32Array) -> tuple[F64, F64]:
    """Sizes of the scales that were used: one over a float16 or, on a CPU, float32 number."""
    size = step.astype(np.float64)
    if scale.dtype != "F32":
        small, large = rounding_interval(scale.dtype, size)
        # one over a float16 was rounded to float16 first
        unit = 0.0 if scale.dtype == "F16" else 2.0**-11
        return small * (1 - unit), large * (1 + unit)
    small, large = rounding_interval("F16", size)
    with np.errstate(over="ignore"):
        is_half = step.astype(np.float16).astype(np.float32) == step
    return np.where(is_half, small, size), np.where(is_half, large, size)

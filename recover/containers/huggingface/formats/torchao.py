"""torchao, as its safetensors support flattens it: ``Int8Tensor``, ``IntxUnpackedToInt8Tensor``.

``_weight_qdata`` int8 (N, K); ``_weight_scale`` (N, G), float32 of the former, the model's floats
of the latter; perhaps ``_weight_zero_point`` int8 (N, G). A weight is (code - zero) * scale.
``Float8Tensor`` has float8 codes and float32 scales by rows, matrices or tiles.

Codes are ``clamp(round(x * (1 / scale)) + zero)``; product and quotient have the type of the scale
(torchao/quantization/quant_primitives.py). How many bits a code has stands in the metadata of the
file, which is not needed: the end codes of every group occur.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from recover.containers.huggingface.formats import fp8
from recover.containers.huggingface.formats._arithmetic import edges, rounded_to
from recover.containers.huggingface.formats._grid import (
    ANYWHERE,
    N_CODES,
    Cells,
    Grid,
    Groups,
    Steps,
    cells_of,
    floats,
    widened,
)
from recover.containers.huggingface.formats.base import Matrix
from recover.containers.huggingface.modules import FLOATS, Module, values
from recover.containers.huggingface.scaled import ScaledMatrix
from recover.containers.safetensors.reader import Tensor
from recover.quants import IntervalType, U8Array

LEAVES = frozenset(
    {
        *("_weight_qdata", "_weight_scale", "_weight_zero_point"),
        *("_weight_act_quant_scale", "_weight_act_quant_zero_point", "_weight_act_pre_scale"),
    }
)
_SAMPLE = 1 << 18
_HALF = 128
_END = 0.18
"""Mean square error, in steps, of end codes: the largest weight of a group is half a step off."""
_RELATIVE_MSE = {2: 0.26, 3: 0.06, 4: 0.0125, 5: 3e-3, 6: 7e-4, 7: 1.7e-4, 8: 6.7e-5}


@cache
def _type(n_bits: int) -> IntervalType:
    return IntervalType(name=f"INT{n_bits} (torchao)", relative_mse=_RELATIVE_MSE[n_bits])


@dataclass(frozen=True)
class _Stored:
    """The arrays of a matrix; `run` consecutive weights share a scale."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    run: int


def read(module: Module) -> Matrix | None:
    """The weight of a module that torchao stored as integers or as FP8."""
    codes = module.tensors.get("_weight_qdata")
    if codes is None:
        return None
    if codes.dtype.startswith("F8"):
        return _read_floats(module)
    stored = _stored(module)
    raw, (n_rows, row_length) = stored.codes.raw, stored.codes.shape
    n_bits = _n_bits(stored)
    is_scaled = "_weight_act_pre_scale" in module.tensors

    def codes_of(start: int, out: U8Array) -> None:
        np.bitwise_xor(raw[start : start + out.size], np.uint8(_HALF), out=out)

    has_zeros = stored.zero is not None
    note = ", columns scaled" if is_scaled else ""
    grid = Grid(
        n_rows=n_rows,
        row_length=row_length,
        type=_type(n_bits),
        has_cells=True,
        seen_as="BF16" if stored.scale.dtype == "F32" else stored.scale.dtype,
        may_be_f16=stored.scale.dtype == "F32",
        leaves=LEAVES,
        label=f"torchao int{n_bits}, {_extent(stored)}{note}",
        run=stored.run,
        n_codes=N_CODES,
        codes=codes_of,
        steps=lambda first, last: _steps(stored, first, last),
        groups=lambda first, last, codes: _groups(stored, first, last),
        cells=_cells(n_bits, stored.scale.dtype, has_zeros),
    )
    return ScaledMatrix(grid) if is_scaled else grid


def _read_floats(module: Module) -> Matrix:
    """``Float8Tensor``: what other formats of FP8 have, under other names.

    Quotients are those of float32, also where the weights are bfloat16
    (`torchao/quantization/quant_primitives.py`, ``_quantize_affine_float8``).
    """
    codes = module.take("_weight_qdata", ("F8_E4M3", "F8_E5M2"), 2)
    scale = module.take("_weight_scale", FLOATS, 2)
    if scale.n_weights == 1:
        scale = replace(scale, shape=(1,))
    found = fp8.read(replace(module, tensors={"weight": codes, "weight_scale": scale}))
    assert found is not None
    return replace(found, leaves=LEAVES, label=f"torchao {found.label}")


def _stored(module: Module) -> _Stored:
    """The arrays of a matrix.

    Raises
    ------
    SafetensorsError
        If they do not fit each other, or are packed for a device.
    """
    zero = module.tensors.get("_weight_zero_point")
    scale = module.tensors.get("_weight_scale")
    codes = module.tensors["_weight_qdata"]
    if codes.dtype != "I8" or (zero is not None and zero.dtype != "I8") or scale is None:
        raise module.error(
            "torchao's packed layouts (Int4Tensor and those for one device) are not supported; save"
            " the weights as Int8Tensor or IntxUnpackedToInt8Tensor"
        )
    codes = module.take("_weight_qdata", ("I8",), 2)
    scale = module.take("_weight_scale", FLOATS, 2)
    (n_rows, row_length), n_groups = codes.shape, scale.n_weights
    by_rows = scale.shape[0] == n_rows and row_length % scale.shape[1] == 0
    if not by_rows and n_groups != 1:
        raise module.error(
            f"_weight_scale has the shape {list(scale.shape)} for {n_rows} x {row_length} weights"
        )
    if zero is not None and zero.n_weights != n_groups:
        raise module.error(f"{zero.n_weights} zero points for {n_groups} scales")
    return _Stored(codes, scale, zero, n_rows * row_length // n_groups)


def _n_bits(stored: _Stored) -> int:
    """How many bits hold all codes of a sample."""
    numbers = stored.codes.raw.view(np.int8)
    n_each = min(numbers.size, _SAMPLE // 16)
    starts = np.linspace(0, numbers.size - n_each, 16).astype(np.int64).tolist()
    parts = [numbers[start : start + n_each] for start in starts]
    least, most = min(int(p.min()) for p in parts), max(int(p.max()) for p in parts)
    return max(2, (max(most, -1 - least)).bit_length() + 1)


def _extent(stored: _Stored) -> str:
    if stored.scale.n_weights == 1:
        return "one scale"
    by_row = stored.run == stored.codes.shape[1]
    return "scales by row" if by_row else f"groups of {stored.run}"


def _zero_points(stored: _Stored, first: int, last: int) -> NDArray[np.int32]:
    if stored.zero is None:
        return np.zeros(last - first, np.int32)
    zeros: NDArray[np.int32] = values(stored.zero).reshape(-1)[first:last].astype(np.int32)
    return zeros


def _steps(stored: _Stored, first: int, last: int) -> Steps:
    zeros = _zero_points(stored, first, last) + _HALF
    return Steps(floats(stored.scale, first, last), zeros.astype(np.float32))


def _groups(stored: _Stored, first: int, last: int) -> Groups:
    step, shift, _ = _steps(stored, first, last)
    assert shift is not None
    size = step.astype(np.float64)
    # the encoder multiplies by the reciprocal, as it is rounded
    used = 1 / rounded_to(stored.scale.dtype, 1 / size)
    known = size >= (2.0**-14 if stored.scale.dtype == "F16" else 2.0**-120)
    small, large = widened(np.where(known, used, np.inf), used)
    nothing = np.zeros_like(step)
    zeros = _zero_points(stored, first, last)
    row = zeros if stored.zero is None else (zeros + _HALF) * N_CODES
    ends = nothing + np.inf, nothing, row, nothing + ANYWHERE
    return Groups(step, nothing, shift, nothing, small, large, *ends)


def _zeros(has_zeros: bool) -> NDArray[np.int64]:
    return np.arange(-_HALF, _HALF) if has_zeros else np.zeros(1, np.int64)


def _nominal(has_zeros: bool) -> NDArray[np.float64]:
    zeros = _zeros(has_zeros).astype(np.float64)
    return np.arange(-_HALF, _HALF, dtype=np.float64) - zeros[:, None]


@cache
def _cells(n_bits: int, kind: str, has_zeros: bool) -> Cells:
    """Tables by zero point and code."""
    between = edges(kind, -2 * _HALF, 4 * _HALF, np.zeros(1, np.int64))[0]
    nominal = _nominal(has_zeros)
    place = (nominal + 2 * _HALF).astype(np.int64)
    padded = np.concatenate([[-np.inf], between, [np.inf]])
    lower, upper = padded[place], padded[place + 1]
    half = 1 << (n_bits - 1)
    lower[:, : _HALF - half + 1], upper[:, _HALF + half - 1 :] = -np.inf, np.inf
    return cells_of(lower, upper, nominal, slack=(1e-6, 2e-6), end=_END)

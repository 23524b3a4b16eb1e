"""AutoRound: the layouts of GPTQ and AWQ (see `gptq` and `awq` beside this), other codes.

Codes are ``clamp(round(x / scale + v) + zero)`` in float32, with a `v` of each weight that signed
gradient descent has found (auto-round:auto_round/data_type/int.py, algorithms/quantization/
sign_round). Every step moves `v` by the learning rate, which falls linearly to 0: its size is no
more than the sum of the steps, half a unit with the usual rate of 1 / iterations. So codes confine
weights, to intervals about twice as wide as those of rounding. Without iterations `v` is 0.

The scale is float16 when codes are chosen, and may be negative. Its size and sign are tuned, so
that weights may be clipped. Zero points are stored less one where ``packing_format`` names GPTQ's
packing, or activations are quantized, too.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from recover.containers.huggingface.formats import awq, gptq
from recover.containers.huggingface.formats._grid import (
    ANYWHERE,
    Cells,
    Grid,
    Groups,
    Steps,
    cells_of,
    rounding_interval,
    widened,
)
from recover.containers.huggingface.formats.gptq import LEAVES
from recover.containers.huggingface.modules import Module, values
from recover.quants import IntervalType, U8Array

# In files that are named after the layout.
_KEYS = "autoround_version", "iters", "enable_minmax_tuning"
_METHODS = "auto-round", "auto_round", "intel/auto-round"
_ITERATIONS = 200
_NOISE = 1.4 / 12
_END = 0.25
# With groups of 128: of rounding, and the same with the codes moved.
_RELATIVE_MSE = {2: 0.26, 3: 0.06, 4: 0.0125, 8: 5e-5}

_Layout = gptq.Layout | awq.Layout


@cache
def _type(n_bits: int, *, is_tuned: bool) -> IntervalType:
    error = _RELATIVE_MSE[n_bits]
    if not is_tuned:
        return IntervalType(name=f"AutoRound{n_bits} untuned", relative_mse=error)
    return IntervalType(name=f"AutoRound{n_bits}", relative_mse=12 * _NOISE * error, noise=_NOISE)


def read(module: Module) -> Grid | None:
    """The weight of a module that AutoRound quantized."""
    config = module.config
    is_own = config.get("quant_method") in _METHODS
    is_exported = config.get("provider") == "auto-round" or any(key in config for key in _KEYS)
    if "qweight" not in module.tensors or not (is_own or is_exported):
        return None
    rotations = sorted(key for key in config if "rotation" in key or "hadamard" in key)
    if any(config[key] for key in rotations):
        raise module.error(f"the weights were rotated ({rotations[0]}); take a file without it")
    found = _layout(module, is_own=is_own)
    if found is None:
        return None
    if found.row_length % found.n_groups:
        raise module.error(f"{found.n_groups} scales for {found.row_length} columns")
    group = found.row_length // found.n_groups
    n_bits = _n_bits(found)
    _check_order(module, found.row_length, group)
    moved = _largest_move(config, n_bits)
    # the encoder's own scale, if it is stored in the type that it had there
    used = str(config.get("scale_dtype", "torch.float16")).rpartition(".")[2]
    is_exact = used == "float16" and found.scales.dtype != "BF16"
    return Grid(
        n_rows=found.n_rows,
        row_length=found.row_length,
        type=_type(n_bits, is_tuned=moved > 0),
        has_cells=bool(np.isfinite(moved)),
        seen_as="BF16",
        may_be_f16=True,
        leaves=LEAVES,
        label=f"AutoRound {n_bits}-bit, groups of {group}" + ("" if moved else ", rounded plainly"),
        run=group,
        n_codes=1 << n_bits,
        codes=lambda start, out: _codes(found, start, out),
        steps=lambda first, last: _steps(found, first, last),
        groups=lambda first, last, codes: _groups(found, first, last, is_exact=is_exact),
        cells=_cells(n_bits, moved),
    )


def _layout(module: Module, *, is_own: bool) -> _Layout | None:
    """The arrays, which are those of GPTQ or AWQ."""
    known = as_known(module)
    if not is_own or known is None:
        return awq.layout(module) if _is_awq(module) else gptq.layout(module)
    return awq.layout(known) if _is_awq(known) else gptq.layout(known)


def _is_awq(module: Module) -> bool:
    return module.config.get("quant_method") == "awq"


def as_known(module: Module) -> Module | None:
    """A module that AutoRound stored by its own name as one of the program whose layout it has.

    None if it is none of those.

    Raises
    ------
    SafetensorsError
        If the weights were rotated.
    """
    config, packing = module.config, str(module.config.get("packing_format"))
    if config.get("quant_method") not in _METHODS or "qweight" not in module.tensors:
        return None
    rotations = sorted(key for key in config if "rotation" in key or "hadamard" in key)
    if any(config[key] for key in rotations):
        raise module.error(f"the weights were rotated ({rotations[0]}); take a file without it")
    if "awq" in packing:
        return replace(module, config={"quant_method": "awq"})
    is_named = "gptq" in packing and "gptqmodel" not in packing
    is_less = is_named or (module.integer("act_bits") or 16) <= 8
    known_as = {"quant_method": "gptq", "checkpoint_format": "gptq" if is_less else "gptq_v2"}
    return replace(module, config=known_as)


def _n_bits(found: _Layout) -> int:
    return found.n_bits if isinstance(found, gptq.Layout) else 4


def _check_order(module: Module, row_length: int, group: int) -> None:
    """Refuse groups that are scattered over the rows, which AutoRound does not make."""
    if "g_idx" not in module.tensors:
        return
    tensor = module.take("g_idx", ("I32", "U32", "I64"), 1)
    module.expect("g_idx", (row_length,))
    numbers = values(tensor)
    if numbers.any() and not np.array_equal(numbers, np.arange(row_length) // group):
        raise module.error("g_idx is not in order, as AutoRound never makes it")


def _largest_move(config: Mapping[str, Any], n_bits: int) -> float:
    """How far the tuning may have moved a weight, in steps, before it was rounded."""
    steps = config.get("iters", _ITERATIONS)
    if type(steps) is not int or steps < 0:
        return np.inf
    if not steps:
        return 0.0
    rate = config.get("lr", 1 / steps)
    if not isinstance(rate, int | float) or not 0 <= rate < np.inf:
        return np.inf
    if n_bits <= 3 and steps >= 1000:
        rate = max(rate, 2 / steps)
    return float(rate) * (steps + 1) / 2


@cache
def _cells(n_bits: int, moved: float) -> Cells:
    code = np.arange(float(1 << n_bits))[None]
    lower, upper = code - 0.5 - moved, code + 0.5 + moved
    lower[:, 0], upper[:, -1] = -np.inf, np.inf
    inner = _NOISE / (1 + 2 * moved) ** 2 if moved else 1 / 12
    end = max(_NOISE, _END) if moved else _END
    return cells_of(lower, upper, code, slack=(1e-5, 2e-6), inner=inner, end=end)


def _codes(found: _Layout, start: int, out: U8Array) -> None:
    """Codes of the flattened matrix."""
    first, last = start // found.row_length, -(-(start + out.size) // found.row_length)
    rows = np.empty((last - first, found.row_length), np.uint8)
    found.codes(first, last, rows)
    begin = start - first * found.row_length
    out[:] = rows.reshape(-1)[begin : begin + out.size]


def _steps(found: _Layout, first: int, last: int) -> Steps:
    rows = first // found.n_groups, -(-last // found.n_groups)
    part = slice(first - rows[0] * found.n_groups, last - rows[0] * found.n_groups)
    step = found.scale_rows(*rows).reshape(-1)[part]
    # one less than 0 is stored as the largest number
    zeros = found.zeros(*rows) & np.int32((1 << _n_bits(found)) - 1)
    return Steps(step, np.ascontiguousarray(zeros.T).reshape(-1)[part].astype(np.float32))


def _groups(found: _Layout, first: int, last: int, *, is_exact: bool) -> Groups:
    step, zero, _ = _steps(found, first, last)
    assert zero is not None
    size = np.abs(step).astype(np.float64)
    small, large = (size, size) if is_exact else rounding_interval(found.scales.dtype, size)
    limits = widened(np.where(size > 0, small, np.inf), large)
    nothing, row = np.zeros_like(step), np.zeros(len(step), np.int32)
    # what is stored less one, and 0 or more, may have been 0 or 1
    is_less = isinstance(found, gptq.Layout) and found.zero_shift == 1
    loose = np.where((zero == 1) & is_less, np.float32(0.5), np.float32(0))
    top, doubt = nothing + np.inf, nothing + ANYWHERE
    return Groups(step, nothing, zero, zero - loose, *limits, top, loose, row, doubt)

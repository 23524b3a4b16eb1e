"""4 bits as bitsandbytes stores them: NF4 and FP4.

``weight`` (N K / 2, 1), two weights a byte, the first one in the upper half. Blocks run over the
flattened matrix, also across rows: ``weight.absmax`` holds the largest magnitude of each, as F32,
or as U8 ("double quantization", nested): then it is an entry of ``weight.nested_quant_map`` times
``weight.nested_absmax`` (of 256 blocks each), plus an offset. ``weight.quant_map`` holds the 16
levels. ``weight.quant_state.bitsandbytes__nf4`` (or ``__fp4``) is JSON that holds the rest.

The nearest level to weight / absmax is stored (`dQuantizeNF4`, `dQuantizeFP4` in csrc/kernels.cu).
Of a block's weights one at least is as large as absmax, so if a single one has one of the outermost
codes, it is plus or minus absmax. That holds of the levels of the two types; codes of others, by
programs that are not known, confine nothing.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from recover._json import JSONError, parse_object
from recover.containers.huggingface.formats._coded import Coded, Runs
from recover.containers.huggingface.formats._levels import (
    TINY,
    LevelMatrix,
    Scales,
    deviation_of,
    in_units,
    nearest_cells,
    normal,
    split_pairs,
    state,
    state_largest,
    table_of,
)
from recover.containers.huggingface.modules import Module, values
from recover.quants import F32Array, IntervalType, Stated

NF4 = IntervalType(name="NF4", relative_mse=8.49e-3, is_uniform=True)
NF4_NESTED = IntervalType(name="NF4", relative_mse=8.5e-3, is_uniform=True)
"""With bounds that are wider, by what the scales of scales leave open."""
FP4 = IntervalType(name="FP4", relative_mse=1.5e-2, is_uniform=True)

_STATE = "weight.quant_state.bitsandbytes__"
_SEEN_AS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_STORAGE = ("U8", "I8", "BF16", "F16", "F32")
_LEAVES = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_MOST_STATE = 1 << 16
_MOST_BLOCK = 1 << 16

_NF4_POSITIVE = (
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_NF4_NEGATIVE = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
)
_FP4_POSITIVE = tuple(each / 12 for each in (0, 0.0625, 8, 12, 4, 6, 2, 3))
_LEVELS = {
    "nf4": (*_NF4_NEGATIVE, 0.0, *_NF4_POSITIVE),
    "fp4": (*_FP4_POSITIVE, *(-each for each in _FP4_POSITIVE)),
}

# The encoder multiplies by an approximate reciprocal (fast arithmetic of CUDA).
_SLACK = 2e-6
# On a CPU it looks nested codes up by 16 bits.
_NESTED_SLACK = np.float32(1.7e-5)
_ROUNDING = np.float32(2.0**-21)


class _State(NamedTuple):
    """What the JSON beside a weight says."""

    quant_type: str
    n_rows: int
    row_length: int
    block: int
    """Weights that share a largest magnitude."""
    seen_as: str
    nested_block: object
    nested_offset: object


@dataclass(frozen=True)
class _Nested:
    """How the largest magnitudes of blocks are quantized themselves."""

    levels: F32Array
    """float32 (256,): in units of the scale."""
    edges: F32Array
    """float32 (257,): half-way between the levels, which rise."""
    scales: F32Array
    """float32 (n,): perhaps not aligned."""
    block: int
    """How many blocks share one."""
    offset: np.float32
    """Added."""


@lru_cache(64)
def _table(of_codes: tuple[float, ...], block: int) -> F32Array:
    levels = np.full(256, np.nan)
    levels[:16] = np.array(of_codes, np.float32)
    cells = nearest_cells(levels, 1.0)
    return table_of(levels, cells, _SLACK, weights=normal(deviation_of(block)))[None]


def read(module: Module) -> LevelMatrix | None:
    """The weight of a module that bitsandbytes quantized to 4 bits."""
    leaf = next((each for each in module.tensors if each.startswith(_STATE)), None)
    if leaf is None:
        return None
    told = _state_of(module, leaf)
    quant_type, n_rows, row_length, block = told[:4]
    packed = module.take("weight", _STORAGE, 2).raw
    n = n_rows * row_length
    if packed.size != -(-n // 2):
        raise module.error(f"weight has {packed.size} bytes for {n_rows} x {row_length} weights")
    levels = _levels_of(module, quant_type)
    has_cells = levels == _LEVELS[quant_type]
    magnitudes = module.take("weight.absmax", ("F32", "U8"), 1)
    module.expect("weight.absmax", (-(-n // block),))
    nested = _nested_of(module, told) if magnitudes.dtype == "U8" else None
    stored, table = values(magnitudes), _table(levels, block)
    numbers = in_units(values(module.tensors["weight.quant_map"]))
    ends = int(np.argmin(table[0, 0, :16])), int(np.argmax(table[0, 0, :16]))

    def tell(start: int, end: int, stated: Stated) -> None:
        first, last = start // block, -(-end // block)
        begin, stop = first * block, min(last * block, n)
        codes = np.empty(2 * -(-(stop - begin) // 2), np.uint8)
        split_pairs(packed[begin // 2 : -(-stop // 2)], True, codes)
        scales = _scales(stored, nested, first, last)
        place = start - begin, end - begin
        state(codes[slice(*place)], scales, Runs(block, block, place[0]), table, stated)
        if has_cells:
            largest = scales.low * (1 - _ROUNDING) - TINY, scales.high * (1 + _ROUNDING) + TINY
            state_largest(codes[: stop - begin], block, place, ends, largest, stated)

    def decode(start: int, end: int) -> Coded:
        first, last = start // block, -(-end // block)
        begin = first * block
        codes = np.empty(2 * -(-(end - begin) // 2), np.uint8)
        split_pairs(packed[begin // 2 : -(-end // 2)], True, codes)
        runs = Runs(block, block, start - begin)
        scales = _exact_scales(stored, nested, first, last)
        return Coded(codes[start - begin : end - begin], numbers, runs, scales)

    return LevelMatrix(
        n_rows=n_rows,
        row_length=row_length,
        type=_type(quant_type, is_nested=nested is not None),
        has_cells=has_cells,
        seen_as=told.seen_as,
        leaves=frozenset({"weight", leaf, *(f"weight.{each}" for each in _LEAVES)}),
        label=f"{quant_type.upper()}, blocks of {block}{', nested' if nested else ''}"
        f"{'' if has_cells else ', levels of its own'}",
        tell=tell,
        decode=decode,
    )


def _state_of(module: Module, leaf: str) -> _State:
    """The state, checked."""
    raw = module.take(leaf, ("U8",), 1).raw
    if raw.size > _MOST_STATE:
        raise module.error(f"{leaf} has {raw.size} bytes; at most {_MOST_STATE} are read")
    try:
        told = parse_object(raw.tobytes())
    except JSONError as error:
        raise module.error(f"{leaf}: {error}") from None
    quant_type = leaf.removeprefix(_STATE)
    if told.get("quant_type") != quant_type or quant_type not in _LEVELS:
        raise module.error(f"{leaf} is no state of nf4 or fp4")
    shape, block = told.get("shape"), told.get("blocksize")
    if not isinstance(shape, list) or len(shape) != 2 or not all(map(_is_size, shape)):
        raise module.error(f"{leaf} has no shape of a matrix")
    if not _is_size(block) or block % 2 or block > _MOST_BLOCK:
        raise module.error(f"{leaf} has no block size that is even and at most {_MOST_BLOCK}")
    seen_as = _SEEN_AS.get(str(told.get("dtype")))
    if seen_as is None:
        raise module.error(f"{leaf} does not say which of {', '.join(_SEEN_AS)} was quantized")
    nested = told.get("nested_blocksize"), told.get("nested_offset")
    return _State(quant_type, shape[0], shape[1], block, seen_as, *nested)


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 1 << 48


def _levels_of(module: Module, quant_type: str) -> tuple[float, ...]:
    """The levels of the codes: the type's, or those of another program that are stored."""
    module.take("weight.quant_map", ("F32",), 1)
    module.expect("weight.quant_map", (16,))
    found = values(module.tensors["weight.quant_map"]).astype(np.float64)
    known = _LEVELS[quant_type]
    if np.all(np.abs(found - known) < 1e-6):
        return known
    if not np.all(np.abs(found) <= 1):
        raise module.error("weight.quant_map has levels that are not from -1 to 1")
    return tuple(map(float, found))


def _type(quant_type: str, *, is_nested: bool) -> IntervalType:
    if quant_type == "fp4":
        return FP4
    return NF4_NESTED if is_nested else NF4


def _nested_of(module: Module, told: _State) -> _Nested:
    """How absmax is quantized."""
    block, offset = told.nested_block, told.nested_offset
    if not (_is_size(block) and isinstance(offset, float | int) and abs(offset) < 1e30):
        raise module.error("its state has no nested_blocksize or no nested_offset")
    scales = module.take("weight.nested_absmax", ("F32",), 1)
    n_blocks = module.tensors["weight.absmax"].n_weights
    module.expect("weight.nested_absmax", (-(-n_blocks // block),))
    module.take("weight.nested_quant_map", ("F32",), 1)
    module.expect("weight.nested_quant_map", (256,))
    levels = np.array(values(module.tensors["weight.nested_quant_map"]), np.float32)
    if not (np.all(np.diff(levels) > 0) and levels[0] >= -1 and levels[-1] <= 1):
        raise module.error("weight.nested_quant_map does not rise from -1 to 1")
    middle = (levels[1:] + levels[:-1]) / 2
    edges = np.concatenate(([-1], middle, [1])).astype(np.float32)
    return _Nested(levels, edges, values(scales), block, np.float32(offset))


def _exact_scales(
    stored: NDArray[Any], nested: _Nested | None, first: int, last: int
) -> NDArray[np.float64]:
    """The largest magnitudes of blocks `first` to `last`, in float64."""
    if nested is None:
        return np.array(stored[first:last], np.float64)
    begin, end = first // nested.block, -(-last // nested.block)
    group = np.arange(first, last) // nested.block - begin
    scale = np.array(nested.scales[begin:end], np.float64)[group]
    return nested.levels.astype(np.float64)[stored[first:last]] * scale + float(nested.offset)


def _scales(stored: NDArray[Any], nested: _Nested | None, first: int, last: int) -> Scales:
    """The largest magnitudes of blocks `first` to `last`."""
    table = np.zeros(last - first, np.uint8)
    if nested is None:
        exact = np.array(stored[first:last], np.float32)
        # Blocks of zeros are such, and confined.
        return Scales(exact, exact, np.maximum(exact, TINY), table)
    codes = stored[first:last]
    begin, end = first // nested.block, -(-last // nested.block)
    group = np.arange(first, last) // nested.block - begin
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.array(nested.scales[begin:end], np.float32)[group]
        off = np.abs(scale) * _NESTED_SLACK + _ROUNDING * (abs(nested.offset) + np.abs(scale))
        value = nested.levels[codes] * scale + nested.offset
        low = np.maximum(nested.edges[codes] * scale + nested.offset - off, np.float32(0))
        high = nested.edges[codes.astype(np.int64) + 1] * scale + nested.offset + off
    return Scales(value, low, high, table)

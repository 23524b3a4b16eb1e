"""LLM.int8 of bitsandbytes: 8 bits with a scale per row.

``weight`` I8 (N, K); ``SCB`` F32 (N), the largest magnitude of each row; ``weight_format`` U8, 0
for rows. The weights are cast to float16; a code is 127 times the weight over SCB, rounded
(`int8_vectorwise_quant`). Other formats of the weight are orders of tiles for old GPUs.
"""

import numpy as np

from recover.containers.huggingface.formats._coded import Coded, Runs
from recover.containers.huggingface.formats._levels import (
    LevelMatrix,
    Scales,
    nearest_cells,
    state,
    state_largest,
    table_of,
)
from recover.containers.huggingface.modules import Module, values
from recover.quants import F32Array, IntervalType, Stated

LLM_INT8 = IntervalType(name="LLM.int8", relative_mse=5.9e-5)

_LEAVES = frozenset({"weight", "SCB", "weight_format"})
# `int8_vectorwise_dequant` multiplies by it; 1 / 127.
_PER_CODE = np.float32(7.874015718698502e-3)
_SLACK = 1e-6
_ENDS = 129, 127  # -127 and 127 as bytes


def _table() -> F32Array:
    """By code as a byte, in units of SCB / 127."""
    levels = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float64)
    levels[128] = np.nan  # never given
    return table_of(levels, nearest_cells(levels, 127.0), _SLACK)[None]


_TABLES = _table()
_LEVELS = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)


def read(module: Module) -> LevelMatrix | None:
    """The weight of a module that LLM.int8 quantized."""
    if "SCB" not in module.tensors:
        return None
    weight = module.take("weight", ("I8",), 2)
    (n_rows, row_length), codes = weight.shape, weight.raw
    largest = module.take("SCB", ("F32",), 1)
    module.expect("SCB", (n_rows,))
    order = module.tensors.get("weight_format")
    if order is not None and bytes(order.raw) != b"\0":
        raise module.error(
            "weight_format is not 0: the weights are in an order of tiles for old GPUs; save the"
            " model again with bitsandbytes 0.45 or newer"
        )
    stored = values(largest)

    def tell(start: int, end: int, stated: Stated) -> None:
        first, last = start // row_length, -(-end // row_length)
        begin, stop = first * row_length, last * row_length
        rows = np.array(stored[first:last], np.float32)
        steps = rows * _PER_CODE
        scales = Scales(rows, steps, steps, np.zeros(rows.size, np.uint8))
        runs = Runs(row_length, row_length, start - begin)
        state(codes[start:end], scales, runs, _TABLES, stated, factor=_PER_CODE)
        largest = np.where(rows > 0, rows, np.inf)
        sides = largest * np.float32(1 - _SLACK), largest * np.float32(1 + _SLACK)
        place = start - begin, end - begin
        state_largest(codes[begin:stop], row_length, place, _ENDS, sides, stated)

    def decode(start: int, end: int) -> Coded:
        first, last = start // row_length, -(-end // row_length)
        steps = np.array(stored[first:last], np.float64) / 127
        runs = Runs(row_length, row_length, start - first * row_length)
        return Coded(codes[start:end], _LEVELS, runs, steps)

    return LevelMatrix(
        n_rows=n_rows,
        row_length=row_length,
        type=LLM_INT8,
        has_cells=True,
        seen_as="F16",
        leaves=_LEAVES,
        label="LLM.int8",
        tell=tell,
        decode=decode,
    )

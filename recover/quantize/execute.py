"""Carrying out a plan: threads take whole rows, encode them and write their bytes."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from recover._compiled.float16 import all_finite
from recover._text import printable, quoted
from recover.containers.rows import blocks_of, rows_of_blocks
from recover.errors import PlanError, QuantError
from recover.execution.output import OutputFile
from recover.execution.tiles import Progress, Tile, available_cores, for_each_tile
from recover.quantize.plan import QuantizePlan
from recover.quants import (
    DEFAULT_QUANTIZER,
    F32Array,
    U8Array,
    dequantize,
    has_encoder,
    quantize,
    type_by_name,
)


@dataclass(frozen=True)
class QuantizeResult:
    """What a quantization did.

    Attributes
    ----------
    plan : QuantizePlan
        What was carried out.
    seconds : float
        Wall time of the execution.
    """

    plan: QuantizePlan
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The document that ``recover quantize --json`` prints."""
        plan, n_weights = self.plan, self.plan.n_weights
        return {
            "output": str(plan.output),
            "type": plan.outtype,
            "input": str(plan.model.path),
            "imatrix": None if plan.imatrix_path is None else str(plan.imatrix_path),
            "n_weights": n_weights,
            "n_bytes": plan.n_bytes,
            "bits_per_weight": plan.bits_per_weight,
            "seconds": self.seconds,
            "weights_per_second": n_weights / self.seconds,
            "warnings": list(plan.warnings),
            "tensors": [
                {
                    "name": tensor.name,
                    "shape": list(tensor.dims),
                    "action": tensor.action,
                    "from": tensor.type,
                    "to": tensor.outtype,
                    "uses_imatrix": tensor.uses_imatrix,
                }
                for tensor in plan.tensors
            ],
        }


def execute_quantize(
    plan: QuantizePlan, *, n_threads: int | None = None, progress: Progress | None = None
) -> QuantizeResult:
    """Carry out a plan.

    Parameters
    ----------
    plan : QuantizePlan
        From `plan_quantize`.
    n_threads, progress : optional
        See `recover.execution.tiles`.

    Returns
    -------
    QuantizeResult

    Raises
    ------
    OutputError
        If the output cannot be written.
    PlanError
        If a weight is not finite, or too large for its type.
    """
    start = time.perf_counter()
    with OutputFile(plan.output, plan.n_bytes, plan.inputs) as output:
        output.write_at(0, plan.header)
        workers = [_Worker(plan, output) for _ in range(n_threads or available_cores())]
        for_each_tile(
            [tensor.n_weights for tensor in plan.tensors],
            [worker.work for worker in workers],
            progress,
            [tensor.tile_size for tensor in plan.tensors],
        )
    return QuantizeResult(plan, time.perf_counter() - start)


class _Worker:
    """One thread's part: scratch memory, and what it needs to know of the tensor at hand."""

    def __init__(self, plan: QuantizePlan, output: OutputFile) -> None:
        self._plan = plan
        self._output = output
        most = max(tensor.tile_size for tensor in plan.tensors)
        self._weights = np.empty(most, np.float32)
        self._encoded = np.empty(most * 4, np.uint8)
        self._index = -1

    def work(self, tile: Tile) -> None:
        """Write the bytes of one tile."""
        if tile.tensor != self._index:
            self._begin(tile.tensor)
        try:
            if self._tensor.action == "quantize":
                weights = self._weights[: tile.end - tile.start]
                encoded = self._encode(tile, self._source.read(tile.start, tile.end, weights))
            else:
                encoded = self._stored(tile)
            self._check(encoded, tile)
        except QuantError:
            raise self._unfit(tile) from None
        position = self._tensor.position + self._outtype.position(tile.start, self._row_length)
        self._output.write_at(position, encoded.data)

    def _begin(self, index: int) -> None:
        self._index = index
        self._means_of = (-1, 0)
        self._tensor = self._plan.tensors[index]
        self._row_length = self._tensor.dims[0]
        self._outtype = type_by_name(self._tensor.outtype)
        self._source = self._plan.model.stored[self._tensor.name]
        self._importance = self._plan.importance(self._tensor)

    def _encode(self, tile: Tile, weights: F32Array) -> U8Array:
        """The bytes of whole rows, or of a part of long ones."""
        row_length, kind = self._row_length, self._outtype
        encoded = self._encoded[: kind.position(weights.size, row_length)]
        if self._importance is None:
            special = self._tensor.outtype == self._plan.base
            quantizer = self._plan.quantizer if special else DEFAULT_QUANTIZER
            length = min(row_length, weights.size)
            rows = weights.reshape(-1, length)
            return quantize(rows, kind, out=encoded, quantizer=quantizer)
        for start, end, length in self._pieces(tile):
            out = encoded[kind.position(start, row_length) : kind.position(end, row_length)]
            means = self._means(tile.start + start, length)
            quantize(weights[start:end].reshape(-1, length), kind, means, out)
        return encoded

    def _pieces(self, tile: Tile) -> Iterator[tuple[int, int, int]]:
        """Parts of a tile with the same importances, and how long their rows are.

        Parts are whole rows of one matrix of a stack, or lie in one row.
        """
        row_length, n_rows, *_ = self._tensor.dims
        at = tile.start
        while at < tile.end:
            rest, end = at % row_length, tile.end
            if rest or end - at < row_length:
                end = min(end, at - rest + row_length)
            else:
                matrix_end = (at // (row_length * n_rows) + 1) * row_length * n_rows
                end = min(end - (end - at) % row_length, matrix_end)
            yield at - tile.start, end - tile.start, min(end - at, row_length)
            at = end

    def _means(self, first: int, n_columns: int) -> F32Array:
        """The importances of so many columns, from that of weight `first` on."""
        importance = self._importance
        assert importance is not None
        row_length, n_rows, *_ = self._tensor.dims
        matrix, column = first // (row_length * n_rows), first % row_length
        start = (matrix * row_length + column) % importance.n_values
        if self._means_of != (start, n_columns):
            self._means_of = start, n_columns
            self._last_means = importance.means(start, start + n_columns)
        return self._last_means

    def _stored(self, tile: Tile) -> U8Array:
        """The bytes of a tile as the input has them."""
        blocks = self._source.part(tile.start, tile.end)
        return rows_of_blocks(blocks, self._outtype, self._row_length)

    def _check(self, encoded: U8Array, tile: Tile) -> None:
        """Refuse what does not decode to finite numbers, as `ggml_validate_row_data` does."""
        kind, n_weights = self._outtype, tile.end - tile.start
        if has_encoder(kind):
            blocks = blocks_of(encoded, kind, self._row_length, 0, n_weights)
            if not all_finite(dequantize(blocks, kind, self._weights[:n_weights])):
                raise QuantError(f"there are infinite or undefined {kind.name} numbers")

    def _unfit(self, tile: Tile) -> PlanError:
        """Say why a tile cannot be stored."""
        weights = self._source.read(tile.start, tile.end)
        what = f"tensor {quoted(self._tensor.name)}"
        if not np.isfinite(weights).all():
            path = printable(self._plan.model.path)
            return PlanError(f"{path}: {what} holds NaN or infinite weights")
        return PlanError(
            f"{what}: a weight of {np.abs(weights).max():.6g} is beyond the range of"
            f" {self._outtype.name}, whose numbers or scales are F16 (at most 65504); give it"
            " another type with --tensor-type, for instance BF16"
        )

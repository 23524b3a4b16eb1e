"""Doing the tasks of a quantization: whole rows are encoded, and their bytes written."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from recover._compiled.float16 import all_finite
from recover._text import printable, quoted
from recover.containers.places import FilePlan, Writer, whole_place
from recover.containers.rows import blocks_of, rows_of_blocks
from recover.errors import PlanError, QuantError
from recover.execution.planned import PlannedWork, Replanning
from recover.execution.tasks import Record, Task
from recover.execution.tiles import Tile
from recover.execution.work import Nothing, Stretch, Unit
from recover.quantize.plan import QuantizePlan, plan_quantize
from recover.quants import (
    DEFAULT_QUANTIZER,
    F32Array,
    U8Array,
    dequantize,
    has_encoder,
    quantize,
    type_by_name,
)


class Quantizing(PlannedWork):
    """The work of a quantization, as its plan says."""

    command = "quantize"
    sums = Nothing

    def __init__(self, plan: QuantizePlan) -> None:
        self.plan = plan
        self.asked = plan.asked
        self.output = plan.output
        self.inputs = plan.inputs
        self.files = [FilePlan(plan.output, plan.header, plan.n_bytes)]
        self.units = [
            Unit(
                tensor.name,
                tensor.n_weights,
                (
                    Stretch(
                        whole_place(0, tensor.position, tensor.n_weights),
                        type_by_name(tensor.outtype),
                        tensor.dims[0],
                    ),
                ),
                tensor.tile_size,
            )
            for tensor in plan.tensors
        ]

    def details(self) -> Any:
        """See `PlannedWork.details`."""
        return [self.plan.base, self.plan.quantizer, [asdict(each) for each in self.plan.tensors]]

    def worker(self) -> "Worker":
        """See `PlannedWork.worker`."""
        return Worker(self.plan)


_LARGEST_F16 = 65504

carry_out = Replanning(lambda asked: Quantizing(plan_quantize(**asked))).carry_out
"""Does a task in a process that has nothing else."""


class Worker:
    """One thread's part: scratch memory, and what it needs to know of the tensor at hand."""

    def __init__(self, plan: QuantizePlan) -> None:
        self._plan = plan
        self._tensors = {tensor.name: tensor for tensor in plan.tensors}
        most = max(tensor.tile_size for tensor in plan.tensors)
        self._weights = np.empty(most, np.float32)
        self._encoded = np.empty(most * 4, np.uint8)
        self._name = ""

    def work(self, task: Task, files: Mapping[Path, Writer]) -> Record:
        """Write the bytes of a tile."""
        (name,) = task.tensors
        if name != self._name:
            self._begin(name)
        tile = Tile(0, task.start, task.end)
        try:
            if self._tensor.action == "quantize":
                weights = self._weights[: tile.end - tile.start]
                self._source.read(tile.start, tile.end, weights)
                largest = max(weights.max(), -weights.min())
                encoded = self._encode(tile, weights)
            else:
                encoded, largest = self._stored(tile), np.float32(0)
            self._check(encoded, tile, largest)
        except QuantError:
            raise self._unfit(tile) from None
        (target,) = task.outputs
        position = target.place.position + self._outtype.position(tile.start, self._row_length)
        files[target.path].write_at(position, encoded.data)
        return {"sums": [Nothing()]}

    def _begin(self, name: str) -> None:
        self._name = name
        self._means_of = (-1, 0)
        self._tensor = self._tensors[name]
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

    def _check(self, encoded: U8Array, tile: Tile, largest: np.float32) -> None:
        """Refuse what does not decode to finite numbers, as `ggml_validate_row_data` does.

        Encoders that look for a scale may find none for the largest weight, if its square is beyond
        float32, and give zeros instead of it and of all beside it.
        """
        kind, n_weights = self._outtype, tile.end - tile.start
        if not has_encoder(kind):
            return
        blocks = blocks_of(encoded, kind, self._row_length, 0, n_weights)
        decoded = dequantize(blocks, kind, self._weights[:n_weights])
        if not all_finite(decoded):
            raise QuantError(f"there are infinite or undefined {kind.name} numbers")
        if largest > _LARGEST_F16 and np.abs(decoded).max() < largest / 2:
            raise QuantError(f"{kind.name} does not hold {largest}")

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

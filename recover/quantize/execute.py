"""Carrying out a plan: threads take whole rows, encode them and write their bytes."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from recover.errors import PlanError, QuantError
from recover.gguf.text import printable, quoted
from recover.gguf.writer import OutputFile
from recover.quantize.plan import QuantizePlan
from recover.quants import (
    DEFAULT_QUANTIZER,
    F32Array,
    FloatType,
    ScalarType,
    U8Array,
    dequantize,
    quantize,
    type_by_name,
)
from recover.quants._float16 import all_finite
from recover.tiles import Progress, Tile, available_cores, for_each_tile


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
    n_threads : int, optional
        Default: the cores that this process may use.
    progress : callable, optional
        ``progress(n_weights_done, n_weights)``, called from this thread.

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
            self._turn_to(tile.tensor)
        try:
            if self._tensor.action == "quantize":
                weights = self._weights[: tile.end - tile.start]
                encoded = self._encode(tile, self._source.read(tile.start, tile.end, weights))
            else:
                encoded = self._source.part(tile.start, tile.end)
            self._check(encoded)
        except QuantError:
            raise self._unfit(tile) from None
        position = self._tensor.position + self._outtype.n_bytes(tile.start)
        self._output.write_at(position, encoded.data)

    def _turn_to(self, index: int) -> None:
        self._index = index
        self._tensor = self._plan.tensors[index]
        self._outtype = type_by_name(self._tensor.outtype)
        self._source = self._plan.model.stored[self._tensor.name]
        importance = self._plan.importance(self._tensor)
        self._importance = None if importance is None else importance.means()

    def _encode(self, tile: Tile, weights: F32Array) -> U8Array:
        """The bytes of whole rows; every matrix of a stack has importances of its own."""
        row_length, n_rows, *_ = self._tensor.dims
        rows = weights.reshape(-1, row_length)
        encoded = self._encoded[: self._outtype.n_bytes(weights.size)]
        if self._importance is None:
            special = self._tensor.outtype == self._plan.outtype
            quantizer = self._plan.quantizer if special else DEFAULT_QUANTIZER
            return quantize(rows, self._outtype, out=encoded, quantizer=quantizer)
        importance = self._importance.reshape(-1, row_length)
        row_bytes = self._outtype.n_bytes(row_length)
        first, start = tile.start // row_length, 0
        while start < len(rows):
            matrix, row = divmod(first + start, n_rows)
            end = min(len(rows), start + n_rows - row)
            out = encoded[start * row_bytes : end * row_bytes]
            quantize(rows[start:end], self._outtype, importance[matrix % len(importance)], out)
            start = end
        return encoded

    def _check(self, encoded: U8Array) -> None:
        """Refuse what does not decode to finite numbers, as `ggml_validate_row_data` does."""
        if isinstance(self._outtype, FloatType | ScalarType):
            n_weights = encoded.size // self._outtype.type_size * self._outtype.block_size
            if not all_finite(dequantize(encoded, self._outtype, self._weights[:n_weights])):
                raise QuantError(f"there are infinite or undefined {self._outtype.name} numbers")

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

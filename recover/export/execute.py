"""Carrying out an export: threads decode tiles, and put their weights at their places."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recover._text import printable, quoted
from recover.containers.places import pieces_of, put, within
from recover.errors import PlanError
from recover.execution.folder import OutputFolder
from recover.execution.output import OutputFile
from recover.execution.tiles import Progress, Tile, available_cores, for_each_tile
from recover.export.plan import ExportedTensor, ExportPlan
from recover.quants import TILE, U8Array
from recover.quants.rounding import Rounding


@dataclass(frozen=True)
class ExportResult:
    """What an export did.

    Attributes
    ----------
    plan : ExportPlan
        What was carried out.
    seconds : float
        Wall time of the execution.
    roundings : tuple of Rounding
        Of each tensor, what was rounded.
    """

    plan: ExportPlan
    seconds: float
    roundings: tuple[Rounding, ...]

    @property
    def n_exact(self) -> int:
        """Tensors of which every weight is what the model says."""
        return sum(not each.n_rounded for each in self.roundings)

    def to_json(self) -> dict[str, Any]:
        """The document that ``recover export --json`` prints."""
        plan = self.plan
        return {
            "source": str(plan.path),
            "output": str(plan.output),
            "architecture": plan.architecture,
            "outtype": plan.outtype,
            "n_weights": plan.n_weights,
            "n_bytes": plan.n_bytes,
            "seconds": self.seconds,
            "weights_per_second": plan.n_weights / self.seconds,
            "exact": self.n_exact == len(plan.tensors),
            "files": [file.path.name for file in plan.layout.files],
            "left_out": list(plan.left_out),
            "warnings": list(plan.warnings),
            "tensors": [
                {
                    "name": tensor.name,
                    "arrays": list(tensor.arrays),
                    "shape": list(tensor.source.dims),
                    "from": label_of(tensor),
                    "to": tensor.kind.name,
                    "exact": not rounding.n_rounded,
                    "n_rounded": rounding.n_rounded,
                    "relative_rms_rounding": rounding.relative_rms,
                }
                for tensor, rounding in zip(plan.tensors, self.roundings, strict=True)
            ],
        }


def label_of(tensor: ExportedTensor) -> str:
    """How a tensor is stored in the model, for people."""
    label: str = getattr(tensor.source, "label", tensor.source.type.name)
    return label


def execute_export(
    plan: ExportPlan, *, n_threads: int | None = None, progress: Progress | None = None
) -> ExportResult:
    """Carry out a plan.

    Parameters
    ----------
    plan : ExportPlan
        From `recover.export.plan.plan_export`.
    n_threads, progress : optional
        See `recover.execution.tiles`.

    Returns
    -------
    ExportResult

    Raises
    ------
    OutputError
        If the folder cannot be written.
    PlanError
        If a weight is not finite, or too large for its type.
    """
    start = time.perf_counter()
    files = plan.layout.files
    with OutputFolder(plan.output, files, plan.parts, replaces=plan.replaces) as outputs:
        for file, output in zip(files, outputs.files, strict=True):
            output.write_at(0, file.header)
        workers = [_Worker(plan, outputs.files) for _ in range(n_threads or available_cores())]
        for_each_tile(
            [tensor.n_weights for tensor in plan.tensors],
            [worker.work for worker in workers],
            progress,
        )
    seconds = time.perf_counter() - start
    roundings = [
        sum((worker.roundings[i] for worker in workers), Rounding())
        for i in range(len(plan.tensors))
    ]
    return ExportResult(plan, seconds, tuple(roundings))


class _Worker:
    """One thread's part: scratch memory, and its sums."""

    def __init__(self, plan: ExportPlan, outputs: Sequence[OutputFile]) -> None:
        self._plan = plan
        self._outputs = outputs
        self._encoded = np.empty(TILE * 4, np.uint8)
        self.roundings = [Rounding() for _ in plan.tensors]

    def work(self, tile: Tile) -> None:
        """Write the weights of one tile."""
        tensor = self._plan.tensors[tile.tensor]
        if tensor.is_copied:
            data = tensor.source.part(tile.start, tile.end)
        else:
            data = self._encode(tensor, tile)
        size = tensor.kind.type_size
        for place, start, end in within(
            self._plan.layout.places[tensor.name], tile.start, tile.end
        ):
            own = data[(start - tile.start) * size : (end - tile.start) * size]
            pieces = pieces_of(place, tensor.kind, start, end)
            put(pieces, own, tensor.kind, self._outputs[place.file])

    def _encode(self, tensor: ExportedTensor, tile: Tile) -> U8Array:
        encoded = self._encoded[: tensor.kind.n_bytes(tile.n_weights)]
        place = tile.start, tile.end
        rounding = tensor.source.round_to(tensor.kind, *place, encoded, tensor.shift)
        if not rounding.fits:
            raise self._unfit(tensor, tile)
        self.roundings[tile.tensor] += rounding
        return encoded

    def _unfit(self, tensor: ExportedTensor, tile: Tile) -> PlanError:
        """Say why a tile cannot be stored."""
        weights = tensor.source.read(tile.start, tile.end)
        what = f"{printable(self._plan.path)}: tensor {quoted(tensor.name)}"
        if not np.isfinite(weights).all():
            return PlanError(f"{what} holds NaN or infinite weights")
        largest = float(np.abs(weights).max())
        assert math.isfinite(largest)
        return PlanError(
            f"{what}: a weight of {largest:.6g} is beyond the range of {tensor.kind.name} (65504"
            " for F16); use --outtype bf16 or --outtype f32"
        )

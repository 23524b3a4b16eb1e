"""What was found of folders' matrices that they do not say themselves, and tensors with it.

`recover.inputs.completion` finds it.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np

from recover.containers.huggingface.formats._grid import Grid
from recover.containers.huggingface.formats._levels import LevelMatrix
from recover.containers.huggingface.formats.base import is_soft
from recover.containers.huggingface.scaled import (
    ScaledMatrix,
    Scales,
    UnscaledMatrix,
)
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.containers.model import Model, StoredTensor


class Found(NamedTuple):
    """What was found of one stored matrix; plain data but for the arrays."""

    noise: float | None = None
    """Of a `recover.containers.huggingface.formats.base.SoftMatrix`."""
    columns: Scales | None = None
    """Of a `ScaledMatrix`; both are None if nothing was scaled."""
    rows: Scales | None = None
    is_plain: bool = False
    """Of a `Grid` of which nobody says it: codes are plainly rounded weights."""
    beyond: float | None = None
    """Of a `LevelMatrix` that may be clipped."""


Completions = Mapping[str, Sequence[Found]]
"""By name of a tensor, what was found of each matrix that it is made of."""


def completed(model: Model, completions: Completions) -> Model:
    """The model with what was found of its tensors."""
    changed: dict[str, StoredTensor] = {
        name: completed_tensor(cast(QuantizedTensor, model.tensors[name]), of_runs)
        for name, of_runs in completions.items()
    }
    return model.with_tensors(changed) if changed else model


def completed_tensor(tensor: QuantizedTensor, of_runs: Sequence[Found]) -> QuantizedTensor:
    """A tensor with what was found of each matrix that it is made of."""
    runs = tuple(
        replace(run, matrix=_with(run.matrix, found))
        for run, found in zip(tensor.runs, of_runs, strict=True)
    )
    return replace(tensor, runs=runs)


def found_of(tensor: QuantizedTensor) -> tuple[Found, ...]:
    """What was found of each matrix of a tensor."""
    return tuple(_found_of(run.matrix) for run in tensor.runs)


def is_scaled(tensor: StoredTensor) -> bool:
    """Whether columns of a tensor were scaled, and it is not known by what."""
    runs = tensor.runs if isinstance(tensor, QuantizedTensor) else ()
    return bool(runs) and all(isinstance(run.matrix, ScaledMatrix) for run in runs)


def is_measured(tensor: StoredTensor) -> bool:
    """Whether bounds of a tensor rest on scales that were measured, so that they are no proof."""
    found = found_of(tensor) if isinstance(tensor, QuantizedTensor) else ()
    sides = [side for each in found for side in (each.columns, each.rows) if side is not None]
    return any(side.is_measured for side in sides)


def is_tried(tensor: StoredTensor) -> bool:
    """Whether its bounds are cells that others do not contradict, so that they are no proof."""
    return isinstance(tensor, QuantizedTensor) and any(each.is_plain for each in found_of(tensor))


def found_record(found: Found) -> dict[str, Any]:
    """As plain data that JSON can hold; empty if nothing was found."""
    record = {
        "noise": found.noise,
        "columns": _scales_record(found.columns),
        "rows": _scales_record(found.rows),
        "is_plain": found.is_plain or None,
        "beyond": found.beyond or None,
    }
    return {name: each for name, each in record.items() if each is not None}


def read_found(record: Mapping[str, Any]) -> Found:
    """The opposite of `found_record`."""
    columns, rows = (_read_scales(record.get(name)) for name in ("columns", "rows"))
    is_plain, beyond = record.get("is_plain", False), record.get("beyond")
    return Found(record.get("noise"), columns, rows, is_plain, beyond)


def _scales_record(scales: Scales | None) -> list[Any] | None:
    if scales is None:
        return None
    both = np.stack([scales.values, scales.deviations]).astype("<f4")
    return [base64.b64encode(both.tobytes()).decode(), scales.is_measured]


def _read_scales(record: Sequence[Any] | None) -> Scales | None:
    if record is None:
        return None
    text, is_measured = record
    both = np.frombuffer(base64.b64decode(text, validate=True), "<f4").reshape(2, -1)
    return Scales(both[0].copy(), both[1].copy(), is_measured)


def _with(matrix: Any, found: Found) -> Any:
    if isinstance(matrix, Grid) and found.is_plain:
        return matrix.with_cells()
    if isinstance(matrix, ScaledMatrix) and found.columns is not None:
        matrix = matrix.with_scales(found.columns, found.rows)
    if is_soft(matrix) and found.noise is not None:
        return matrix.with_noise(found.noise)
    if isinstance(matrix, LevelMatrix) and found.beyond is not None:
        return matrix.with_beyond(found.beyond)
    return matrix


def _found_of(matrix: Any) -> Found:
    noise = matrix.noise if is_soft(matrix) else None
    if isinstance(matrix, UnscaledMatrix):
        return Found(noise, matrix.columns, matrix.rows)
    beyond = matrix.beyond if isinstance(matrix, LevelMatrix) else None
    return Found(noise, is_plain=isinstance(matrix, Grid) and matrix.is_tried, beyond=beyond)

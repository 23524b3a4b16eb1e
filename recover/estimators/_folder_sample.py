"""What the shipped sample holds of the formats of Hugging Face folders.

``recover/data/sample_folders.safetensors`` has the random weights of `sample.npz` in several
settings of each format, as the arrays of two modules: ``SETTING.0`` of the weights with light
tails, ``SETTING.1`` of those with heavy ones. They are read as those of any folder. The file is
made by ``python -m tests.golden.make_sample_folders``.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import as_file, files
from typing import Any

import numpy as np

from recover.containers.huggingface.formats import Matrix, read_matrix
from recover.containers.huggingface.formats.base import is_soft
from recover.containers.huggingface.modules import Module, as_float32, values
from recover.containers.huggingface.rows import Rows
from recover.containers.huggingface.scaled import ScaledMatrix, Scales
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.containers.model import StoredTensor
from recover.containers.safetensors.reader import Model, open_safetensors
from recover.quants import F32Array, IntervalType, Stated

SETTINGS = "settings"
"""Entry of the file's metadata: JSON with a `Setting` by name."""
COLUMNS = "columns"
"""Array of a module whose columns were scaled: their scales as a merge finds them, and the
deviations of these, float32 (2, row_length)."""

_NAME = "sample_folders.safetensors"
_ONE_BIT = np.log(5)  # of mean square errors; a little more than four times


def settings_like(kind: IntervalType) -> list[str]:
    """Settings of a type in the sample, those first whose errors are the most alike.

    Of its name, with scales in the same direction. If there are none, those of names that differ in
    the number of bits, by one at most; if there are none either, with scales in the other one.
    """

    def unlikeness(name: str) -> float:
        return abs(float(np.log(types[name].relative_mse / kind.relative_mse)))

    def in_direction(names: list[str]) -> list[str]:
        return [name for name in names if types[name].is_strided == kind.is_strided]

    types = {name: stored_half(name, 0).type for name in _settings()}
    family, own = _family(kind.name), [name for name in types if types[name].name == kind.name]
    near = [
        name
        for name in types
        if _family(types[name].name) == family and unlikeness(name) <= _ONE_BIT
    ]
    choices = in_direction(own), in_direction(near), own, near
    return sorted(next(filter(None, choices), []), key=unlikeness)


def _family(type_name: str) -> str:
    """The name without the number of bits at its end."""
    return re.sub(r"-?[0-9.]+$", "", type_name)


@cache
def stored_half(setting: str, half: int) -> QuantizedTensor:
    """What the sample has of a setting, light tails (0) or heavy ones (1)."""
    known, stem = _settings()[setting], f"{setting}.{half}."
    tensors = {
        name.removeprefix(stem): tensor
        for name, tensor in _model().tensors.items()
        if name.startswith(stem)
    }
    columns = tensors.pop(COLUMNS, None)
    matrix: Matrix | None = read_matrix(
        Module(stem[:-1], tensors, known["config"], known["recipe"])
    )
    assert matrix is not None
    if isinstance(matrix, ScaledMatrix) and columns is not None:
        matrix = matrix.with_scales(Scales(*as_float32(columns, values(columns))))
    return QuantizedTensor(setting, (matrix.row_length, matrix.n_rows), (Rows(matrix),), 0)


def with_errors(tensors: Sequence[StoredTensor], x: F32Array) -> list[StoredTensor]:
    """Inputs of which compensated codes are as far off as they really are from the weights (n,).

    In a merge another input tells that, as well as it can.
    """
    return [_with_errors(tensor, x) for tensor in tensors]


def _with_errors(tensor: StoredTensor, x: F32Array) -> StoredTensor:
    if not isinstance(tensor, QuantizedTensor) or not is_soft(tensor.runs[0].matrix):
        return tensor
    stated, matrix = Stated.of(x.size), tensor.runs[0].matrix
    tensor.intervals(0, x.size, stated)
    off = stated.value.astype(np.float64) - x
    known = np.isfinite(off) & np.isfinite(stated.variance)
    ratio = float(np.sum(np.square(off[known])) / np.sum(stated.variance[known], dtype=np.float64))
    return replace(tensor, runs=(Rows(matrix.with_noise(matrix.noise * ratio)),))


@cache
def _model() -> Model:
    with as_file(files("recover") / "data" / _NAME) as path:
        return open_safetensors(path)


@cache
def _settings() -> dict[str, dict[str, Any]]:
    settings: dict[str, dict[str, Any]] = json.loads(_model().metadata[SETTINGS])
    return settings

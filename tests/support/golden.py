"""Matrices that other packages wrote: see the scripts in tests/golden."""

import json
from pathlib import Path
from typing import NamedTuple

from recover.containers.huggingface.modules import Module, as_float32, values
from recover.containers.safetensors.reader import Tensor, open_safetensors
from recover.quants import F32Array

_FOLDER = Path(__file__).parents[1] / "golden" / "huggingface"


class Golden(NamedTuple):
    """A module as a package wrote it; the original (N, K), and what the package decodes (N, K)."""

    module: Module
    original: F32Array
    decoded: F32Array


def golden(name: str) -> Golden:
    """One file of `tests/golden/huggingface`."""
    model = open_safetensors(_FOLDER / f"{name}.safetensors")
    tensors = dict(model.tensors)

    def floats(tensor: Tensor) -> F32Array:
        return as_float32(tensor, values(tensor))

    original, decoded = floats(tensors.pop("original")), floats(tensors.pop("decoded"))
    config = json.loads(model.metadata.get("config", "{}"))
    module = Module("layer", tensors, config, model.metadata.get("recipe", ""))
    return Golden(module, original, decoded)

"""Folders with random weights, made from names and shapes alone: the same everywhere."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, Sequence[Any]]
"""By name: the type (``BF16`` or ``F32``) and the shape."""


def random_bytes(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """Numbers about as large as weights, those of an array of that name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    numbers = np.random.default_rng(seed).standard_normal(prod(shape)).astype(np.float32) / 8
    words = numbers.view(np.uint32) & np.uint32(0xFFFF0000)  # BF16 numbers
    if dtype == "F32":
        return words.tobytes()
    assert dtype == "BF16", dtype
    return (words >> np.uint32(16)).astype("<u2").tobytes()


def write_safetensors(path: Path, arrays: Arrays) -> None:
    """A safetensors file with random numbers."""
    parts = {name: random_bytes(name, dtype, shape) for name, (dtype, shape) in arrays.items()}
    header, at = {}, 0
    for name, part in parts.items():
        dtype, shape = arrays[name]
        offsets = [at, at + len(part)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        at += len(part)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts.values()))


GOLDEN = Path(__file__).parents[1] / "golden" / "huggingface"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))
"""Architectures of which it is known what llama.cpp's converter makes of random weights."""


def golden(name: str) -> dict[str, Any]:
    """The configuration, the arrays and the tensors of a GGUF file (shape, type, digest)."""
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


def folder_of(known: Mapping[str, Any], path: Path) -> Path:
    """A folder with these arrays and this configuration."""
    path.mkdir()
    write_safetensors(path / "model.safetensors", known["arrays"])
    (path / "config.json").write_text(json.dumps(known["config"]))
    return path

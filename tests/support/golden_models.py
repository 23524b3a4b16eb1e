"""Small models of every architecture, as transformers saves them and as llama.cpp converts them.

`tests/golden/make_folders.py` asked both. The numbers follow from the names of the arrays, so that
a folder, and a GGUF file with what llama.cpp's converter wrote, are made here.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from recover.containers.huggingface.reader import open_folder
from tests.support.gguf_files import Stored, write_gguf, write_out
from tests.support.random_folders import folder_of


def write_golden_gguf(
    known: Mapping[str, Any], path: Path, more: Mapping[str, Any] | None = None
) -> Path:
    """The GGUF file, all of it F32; its tensors are those whose digests were found.

    `more` are metadata by key: the name of the type, and the value.
    """
    folder = folder_of(known, path.with_suffix(".folder"))
    model = open_folder(folder).fitted(known["tensors"])
    writer = GGUFWriter(path, known["metadata"]["general.architecture"][1])
    add_metadata(known, writer)
    for key, (kind, value) in (more or {}).items():
        writer.add_key_value(key, value, GGUFValueType[kind])
    for name, (shape, _, _) in known["tensors"].items():
        if name in model.tensors:
            tensor = model.tensors[name]
            weights = tensor.read(0, tensor.n_weights).reshape(shape[::-1])
            writer.add_tensor(name, weights, raw_dtype=GGMLQuantizationType.F32)
    write_out(writer)
    return path


def add_metadata(known: Mapping[str, Any], writer: GGUFWriter) -> None:
    """What the GGUF file says of the model's architecture."""
    for key, (kinds, value) in known["metadata"].items():
        if key != "general.architecture":
            writer.add_key_value(key, value, GGUFValueType[kinds[-1]])


def rewrite(
    known: Mapping[str, Any], path: Path, tensors: Mapping[str, Stored], **options: Any
) -> Path:
    """The GGUF file with these tensors."""
    architecture = known["metadata"]["general.architecture"][1]
    add = partial(add_metadata, known)
    return write_gguf(path, tensors, architecture=architecture, add=add, **options)


def read_arrays(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The arrays of a folder: type, shape and bytes."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        stored = path.read_bytes()
        start = 8 + int.from_bytes(stored[:8], "little")
        header = json.loads(stored[8:start])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            data = stored[start + first : start + last]
            assert name not in found
            found[name] = (entry["dtype"], tuple(entry["shape"]), data)
    return found


def as_float32(dtype: str, data: bytes) -> np.ndarray:
    """The numbers of an array."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)

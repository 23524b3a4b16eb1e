"""Files that gguf-py writes."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from recover.containers.gguf.reader import GGUFModel, Tensor
from tests.support.gguf_files import write_out

DATA = bytes(range(32))


def write_with_gguf_py(
    path: Path,
    entries: Iterable[tuple[str, Any, GGUFValueType, GGUFValueType | None]],
    tensors: Mapping[str, tuple[np.ndarray, GGMLQuantizationType | None]],
    alignment: int | None = None,
    **options: Any,
) -> None:
    writer = GGUFWriter(path, "test", **options)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, value, kind, element in entries:
        writer.add_key_value(key, value, kind, element)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=kind)
    write_out(writer)


def some_tensors() -> dict[str, tuple[np.ndarray, GGMLQuantizationType | None]]:
    random = np.random.default_rng(1)
    return {
        "token_embd.weight": (random.normal(size=(5, 64)).astype(np.float16), None),
        "output_norm.weight": (random.normal(size=37).astype(np.float32), None),
        "blk.0.q8": (
            random.integers(0, 256, (3, 2 * 34), np.uint8),
            GGMLQuantizationType.Q8_0,
        ),
        "blk.0.q4": (random.integers(0, 256, (2, 144), np.uint8), GGMLQuantizationType.Q4_K),
        "blk.0.bf16": (random.integers(0, 256, (2, 10), np.uint8), GGMLQuantizationType.BF16),
        "blk.0.ids": (random.integers(-99, 99, (2, 3, 2), np.int32), None),
        "blk.0.double": (random.normal(size=(1, 2, 1, 2)), None),
        "blk.0.bytes": (random.integers(-9, 9, 7, np.int8), None),
    }


def contents(model: GGUFModel[Tensor]) -> dict[str, bytes]:
    return {name: entry.raw.tobytes() for name, entry in model.tensors.items()}

"""What the real packages make of some weights, in one small file per package.

A file is a NumPy archive. Its entries are the arrays of modules, ``case/leaf/dtype``, and what
belongs to them: ``case/=original/F32`` and ``case/=decoded/F32``, what the package itself makes of
the arrays. The entry ``about`` is a JSON object: by case its configuration and recipe.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent / "foreign"
Array = NDArray[Any]
# what an archive cannot hold
_AS = {
    "BF16": (ml_dtypes.bfloat16, np.uint16),
    "F8_E4M3": (ml_dtypes.float8_e4m3fn, np.uint8),
    "F8_E5M2": (ml_dtypes.float8_e5m2, np.uint8),
}


class Case(NamedTuple):
    arrays: dict[str, Array]
    original: Array
    decoded: Array
    config: dict[str, Any]
    recipe: str = ""


def save(name: str, cases: Mapping[str, Case]) -> None:
    """Write a file."""
    entries: dict[str, Array] = {}
    about = {}
    for label, case in cases.items():
        about[label] = {"config": case.config, "recipe": case.recipe}
        everything = {**case.arrays, "=original": case.original, "=decoded": case.decoded}
        for leaf, array in everything.items():
            dtype, plain = next(
                ((key, plain) for key, (kind, plain) in _AS.items() if array.dtype == kind),
                ("", array.dtype),
            )
            entries[f"{label}/{leaf}/{dtype}"] = np.asarray(array, order="C").view(plain)
    entries["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / f"{name}.npz", allow_pickle=False, **entries)
    print(f"{name}.npz: {len(cases)} cases, {(FOLDER / f'{name}.npz').stat().st_size} bytes")


def load(name: str) -> dict[str, Case]:
    """Read a file."""
    with np.load(FOLDER / f"{name}.npz") as archive:
        about = json.loads(archive["about"].tobytes())
        found: dict[str, dict[str, Array]] = {label: {} for label in about}
        for key in archive.files:
            if key != "about":
                label, leaf, dtype = key.rsplit("/", 2)
                array = archive[key]
                found[label][leaf] = array.view(_AS[dtype][0]) if dtype else array
    return {
        label: Case(
            original=arrays.pop("=original"),
            decoded=arrays.pop("=decoded"),
            arrays=arrays,
            config=about[label]["config"],
            recipe=about[label]["recipe"],
        )
        for label, arrays in found.items()
    }


def some_weights(model: Path, n_rows: int, row_length: int) -> Array:
    """A part of a trained matrix, float32; of an unquantized GGUF file, whose path is given."""
    import gguf

    tensors = {each.name: each for each in gguf.GGUFReader(model).tensors}
    tensor = tensors["blk.3.ffn_up.weight"]
    return gguf.dequantize(tensor.data, tensor.tensor_type)[:n_rows, :row_length].copy()

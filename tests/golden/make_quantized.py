"""Quantize a model with llama.cpp's own quantizer, as users do.

    python tests/golden/make_quantized.py MODEL.gguf FOLDER Q5_K_M Q4_K_M Q2_K [IMATRIX.npz]

writes FOLDER/STEM-Q5_K_M.gguf and so on, where STEM is the model's name without ``-bf16``. It made
the files in recover/data; the tests run it as a process of its own, because llama.cpp cannot be
unloaded. IMATRIX.npz holds an importance matrix, an array for each tensor.
"""

import ctypes
import struct
import sys
from pathlib import Path
from typing import Any

import cyllama.llama.llama_cpp as llama
import numpy as np

FTYPES = {
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "Q2_K_S": 21,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "MXFP4_MOE": 38,
}
"""`enum llama_ftype`."""


class _Entry(ctypes.Structure):
    """`llama_model_imatrix_data`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
    )


class Imatrix:
    """An importance matrix in memory, as llama.cpp takes it."""

    def __init__(self, path: str) -> None:
        self._values = {name: each.astype(np.float32) for name, each in np.load(path).items()}
        entries = [
            _Entry(name.encode(), each.ctypes.data, each.size)
            for name, each in self._values.items()
        ]
        self._entries = (_Entry * (len(entries) + 1))(*entries, _Entry(None, None, 0))

    def put_into(self, parameters: Any) -> None:
        """Set the pointer, which the package does not let one set.

        The object holds the structure: four int32, six bool, the pointer.
        """
        before = parameters.nthread, parameters.ftype
        parameters.nthread, parameters.ftype = marks = 0x1234567, 0x7654321
        place = ctypes.string_at(id(parameters), 256).index(struct.pack("<ii", *marks))
        parameters.nthread, parameters.ftype = before
        pointer = ctypes.c_void_p.from_address(id(parameters) + place + 24)
        if pointer.value is not None:
            raise SystemExit("cyllama has other parameters than those of version 0.2.18")
        pointer.value = ctypes.addressof(self._entries)


def output_path(model: Path, folder: Path, name: str) -> Path:
    """Where the quantization called `name` of a model goes."""
    return folder / f"{model.stem.removesuffix('-bf16')}-{name}.gguf"


def main(model: str, folder: str, *names: str) -> None:
    """Write the files."""
    llama.ggml_backend_load_all()
    llama.llama_backend_init()
    imatrix = None
    if names[-1].endswith(".npz"):
        imatrix, names = Imatrix(names[-1]), names[:-1]
    for name in names:
        parameters = llama.LlamaModelQuantizeParams()
        parameters.ftype = FTYPES[name]
        parameters.allow_requantize = True
        parameters.nthread = 2
        if imatrix is not None:
            imatrix.put_into(parameters)
        output = output_path(Path(model), Path(folder), name)
        llama.model_quantize(model, str(output), parameters)
        if not output.exists():
            raise SystemExit(f"llama.cpp did not write {output}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Quantize a model with llama.cpp's own quantizer, as users do.

    python tests/golden/make_quantized.py MODEL.gguf FOLDER Q5_K_M Q4_K_M Q2_K

writes FOLDER/STEM-Q5_K_M.gguf and so on, where STEM is the model's name without ``-bf16``. It made
the files in recover/data; the tests run it as a process of its own, because llama.cpp cannot be
unloaded.
"""

import sys
from pathlib import Path

import cyllama.llama.llama_cpp as llama

FTYPES = {
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_M": 12,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
}
"""`enum llama_ftype`."""


def output_path(model: Path, folder: Path, name: str) -> Path:
    """Where the quantization called `name` of a model goes."""
    return folder / f"{model.stem.removesuffix('-bf16')}-{name}.gguf"


def main(model: str, folder: str, *names: str) -> None:
    llama.ggml_backend_load_all()
    llama.llama_backend_init()
    for name in names:
        parameters = llama.LlamaModelQuantizeParams()
        parameters.ftype = FTYPES[name]
        parameters.allow_requantize = True
        parameters.nthread = 2
        output = output_path(Path(model), Path(folder), name)
        llama.model_quantize(model, str(output), parameters)
        if not output.exists():
            raise SystemExit(f"llama.cpp did not write {output}")


if __name__ == "__main__":
    main(*sys.argv[1:])

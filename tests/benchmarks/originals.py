"""What originals in few bits lose on the usual way to GGUF, and what reblock keeps.

    python -m tests.benchmarks.originals MODEL.gguf --text FILE [--chunks 24] [KIND...]

makes "originals" of a Llama: its linear layers as MXFP4, NVFP4, int4 and int8 with BF16 scales (as
folders), or as Q4_0 rounded to BF16. The truth is what these decode to, in F32. The usual way
multiplies them out to BF16 and quantizes that as llama.cpp does; the other one is `recover
reblock`. Each is compared with the truth: relative error of the weights, and through llama.cpp the
divergence on the text.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from recover import evaluate_models
from recover.containers.gguf.header import DEFAULT_ALIGNMENT, lay_out
from recover.containers.gguf.metadata import derived_metadata
from recover.containers.gguf.reader import open_gguf
from recover.containers.huggingface.reader import open_folder
from recover.evaluate.divergence import measure_divergence
from recover.quants import quantize, type_by_name
from tests.oracle import libggml
from tests.support.encoders import compressed_tensors, fp4
from tests.support.foreign_modules import Array
from tests.support.hf_folders import folder_parts, write_parts

_Q4_0 = 2
_USUAL = ("BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q4_0")
_KEEP = ("embed_tokens", "lm_head", "norm")


def q4_0_in_bf16(w: Array) -> dict[str, Array]:
    """Weights that were trained to be Q4_0."""
    raw = libggml.quantize(_Q4_0, w)
    return {"weight": libggml.dequantize(_Q4_0, raw).reshape(w.shape).astype(ml_dtypes.bfloat16)}


KINDS: dict[str, tuple[Callable[[Array], dict[str, Array]], str]] = {
    "MXFP4": (fp4.encode_mxfp4, "compressed-tensors"),
    "NVFP4": (fp4.encode_nvfp4, "modelopt"),
    "int4-g32": (lambda w: compressed_tensors.encode(w, 4, 32), "compressed-tensors"),
    "int8-rows": (lambda w: compressed_tensors.encode(w, 8, "channel"), "compressed-tensors"),
    "qat-q4_0": (q4_0_in_bf16, ""),
}
"""By name: what makes the arrays of a module, and ``quant_method``."""


def write_original(kind: str, model: Path, folder: Path) -> Path:
    """A folder with the linear layers of a model in a format."""
    arrays, config = folder_parts(model, None)
    encode, method = KINDS[kind]
    made: dict[str, Array] = {}
    for name, array in arrays.items():
        if array.ndim < 2 or any(part in name for part in _KEEP):
            made[name] = array
            continue
        stem, weights = name.removesuffix(".weight"), array.astype(np.float32)
        made |= {f"{stem}.{leaf}": np.asarray(each) for leaf, each in encode(weights).items()}
    if method:
        config["quantization_config"] = {"quant_method": method}
    return write_parts(folder, made, config)


def write_decoded(folder: Path, like: Path, out: Path, kind: str) -> Path:
    """What a folder decodes to, as a file of floats with the metadata of another one.

    Vectors are F32, as llama.cpp wants them.
    """
    model, known = open_folder(folder), open_gguf(like)
    tensors = [
        (name, each.dims, type_by_name(kind if len(each.dims) > 1 else "F32"))
        for name, each in model.tensors.items()
    ]
    metadata = derived_metadata(known.metadata, ("general.file_type",), ())
    layout = lay_out(metadata, tensors, DEFAULT_ALIGNMENT)
    data = bytearray(layout.n_bytes)
    data[: len(layout.header)] = layout.header
    for (name, _, outtype), at in zip(tensors, layout.positions, strict=True):
        each = model.tensors[name]
        raw = quantize(each.read(0, each.n_weights).reshape(1, -1), outtype)
        data[at : at + raw.size] = raw.tobytes()
    out.write_bytes(data)
    return out


def recover(*words: object) -> None:
    """Run a command."""
    command = [sys.executable, "-m", "recover", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def rows_of(kind: str, model: Path, text: Path, n_chunks: int, work: Path) -> None:
    """Print the lines of one kind."""
    folder = write_original(kind, model, work / kind)
    truth = write_decoded(folder, model, work / "truth.gguf", "F32")
    plain = write_decoded(folder, model, work / "usual-BF16.gguf", "BF16")
    files = {"usual, BF16": plain}
    for name in _USUAL[1:]:
        out = files[f"usual, {name}"] = work / f"usual-{name}.gguf"
        recover("quantize", plain, name, "-o", out, "-q")
    kept = files["reblock"] = work / "kept.gguf"
    recover("reblock", folder, "-o", kept, "--arch", "llama", "--like", model, "-q")
    paths = list(files.values())
    errors = evaluate_models(paths, truth)
    divergences = measure_divergence(paths, truth, text, n_chunks=n_chunks)
    for name, path, each, divergence in zip(files, paths, errors, divergences, strict=True):
        error = each.total
        relative = 10 ** (-error.sqnr_db / 20) if error.mse else 0.0
        print(
            f"{kind:10}{name:16}{path.stat().st_size / 1e6:8.1f}{relative:11.2e}"
            f"{error.exact_fraction:9.1%}{divergence.rms_delta_p:11.3%}"
            f"{divergence.same_top:10.2%}{divergence.mean_kld:12.2e}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=24)
    args = parser.parse_args()
    print(
        f"{'original':10}{'way':16}{'MB':>8}{'rel. rms':>11}{'equal':>9}{'rms dp':>11}"
        f"{'same top':>10}{'mean KLD':>12}"
    )
    for kind in args.kinds or KINDS:
        with tempfile.TemporaryDirectory() as work:
            rows_of(kind, args.model, args.text, args.chunks, Path(work))


if __name__ == "__main__":
    main()

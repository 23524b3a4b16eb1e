"""Encode weights of any kind as ik_llama.cpp does, for measurements (nothing of it is kept here).

    python -m tests.golden.make_ik_folders LIBRARY OUT [FILE ...]

`LIBRARY` has that program's ``quantize_*`` functions: ``ggml/src/iqk/iqk_quantize.cpp`` of the
commit 8337e4cd, compiled with ``-O2 -mavx2 -mfma -mf16c -ffp-contract=off -fPIC``, linked with
``-shared`` to a file that defines the table ``ggml_table_f32_f16``, functions that abort in the
place of those of other files, and ``set_size(type, bytes, header)`` with what ``ggml_row_size`` is
to return. The golden rows come out bit for bit.

`OUT` gets a folder for each kind of weights, in the form of the golden one (`ik-truth.gguf`,
``ik-TYPE.gguf``; see `tests.benchmarks.fork_types`), and one more of random importances, whose
metadata say so: rows of each FILE (GGUF in BF16; safetensors, ONNX or npz in float32), of normal
numbers, of Laplace's distribution, and of Student's t with 4 degrees of freedom.
"""

import argparse
import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recover.quants import F32Array, U8Array, quantize, type_by_name
from tests.hostile.builder import kv, string
from tests.hostile.kinds import STRING
from tests.support.float_files import matrices_in
from tests.support.fork_files import Part, file_of

TYPES = (
    *("IQ2_K", "IQ3_K", "IQ4_K", "IQ5_K", "IQ6_K", "IQ2_KS", "IQ3_KS", "IQ4_KS", "IQ5_KS"),
    *("IQ4_KSS", "IQ2_KL"),
)
TRELLIS = "IQ2_KT", "IQ3_KT", "IQ4_KT"
MAINLINE = "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"
N_ROWS, LENGTH = 96, 1024
FEW = 32  # rows that the trellis types have: they take long


def kinds_of_weights(files: list[Path]) -> Iterator[tuple[str, F32Array]]:
    """Names, and rows rounded to BF16."""
    rng = np.random.default_rng(5)
    size = N_ROWS, LENGTH
    yield "normal", _rounded(rng.normal(0, 0.02, size))
    yield "laplace", _rounded(rng.laplace(0, 0.02, size))
    yield "student", _rounded(0.02 * rng.standard_t(4, size) * rng.lognormal(0, 0.3, (N_ROWS, 1)))
    for path in files:
        x = np.concatenate([each.reshape(-1) for each in matrices_in(path)])
        rows = x[: x.size // LENGTH * LENGTH].reshape(-1, LENGTH)
        yield path.stem, _rounded(rows[np.linspace(0, len(rows) - 1, N_ROWS).astype(int)])


def _rounded(x: NDArray[np.floating]) -> F32Array:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).view(np.float32)


def encode(library: ctypes.CDLL, name: str, x: F32Array, importance: F32Array | None) -> U8Array:
    """Rows as that program stores them."""
    kind = type_by_name(name)
    n_rows, length = x.shape
    library.set_size(kind.type_id, kind.type_size, kind.row_header)
    raw = np.zeros((n_rows, kind.row_header + length // 256 * kind.type_size), np.uint8)
    function = getattr(library, f"quantize_{name.lower()}")
    sizes = ctypes.c_int64(n_rows), ctypes.c_int64(length)
    pointer = None if importance is None else ctypes.c_void_p(importance.ctypes.data)
    function(
        ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(raw.ctypes.data), *sizes, pointer, None
    )
    return raw


def write(path: Path, name: str, raw: U8Array, *, weighted: bool = False) -> None:
    """A file of one matrix."""
    entries = [kv("general.architecture", STRING, string("llama"))]
    if weighted:
        entries.append(kv("quantize.imatrix.file", STRING, string("random")))
    number = 0 if name == "F32" else type_by_name(name).type_id
    assert number is not None
    part = Part("blk.0.ffn_up.weight", (LENGTH, len(raw)), number, raw.tobytes())
    path.write_bytes(file_of([part], entries))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("library", type=ctypes.CDLL)
    parser.add_argument("out", type=Path)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--trellis", action="store_true", help="of few rows, the trellis types too")
    args = parser.parse_args()
    importance = np.random.default_rng(3).lognormal(0, 0.7, LENGTH).astype(np.float32)
    for label, weights in kinds_of_weights(args.files):
        x = np.ascontiguousarray(weights[:FEW] if args.trellis else weights)
        for weighted in (False, True):
            folder = args.out / (f"{label}-weighted" if weighted else label)
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / "ik-truth.gguf", "F32", x.view(np.uint8))
            for name in (*TYPES, *(TRELLIS if args.trellis else ())):
                raw = encode(args.library, name, x, importance if weighted else None)
                write(folder / f"ik-{name}.gguf", name, raw, weighted=weighted)
            for name in MAINLINE:
                raw = np.asarray(quantize(x, type_by_name(name))).reshape(len(x), -1)
                write(folder / f"ik-{name}.gguf", name, raw)
            print(folder, flush=True)


if __name__ == "__main__":
    main()

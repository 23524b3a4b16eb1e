"""Error and speed of the encoder of trellis types, beside the encodings of ik_llama.cpp.

``python -m tests.benchmarks.trellis ../shared/golden-ik`` prints for each type:

- golden: the mean square error of the golden rows over that of that program's encodings;
- relative: the same of the relative errors of rows, which differ in size;
- trained: the same of 64 rows of four trained matrices;
- weighted: with random importances, the error weighted by them over that without them;
- weights per second of processor time, of one thread.
"""

import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recover.containers.gguf.reader import open_gguf
from recover.containers.rows import blocks_of
from recover.quants import F32Array, TensorType, U8Array, dequantize, quantize, type_by_name

TYPES = ("IQ2_KT", "IQ3_KT", "IQ4_KT")
N_ROWS = 64


def squares(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sums of squares of rows."""
    total: NDArray[np.float64] = np.square(x, dtype=np.float64).sum(axis=1)
    return total


def decoded(raw: U8Array, kind: TensorType, x: F32Array) -> F32Array:
    """Rows like those of `x`."""
    return dequantize(blocks_of(raw, kind, x.shape[1], 0, x.size), kind).reshape(x.shape)


def of_golden_rows(folder: Path, kind: TensorType) -> tuple[float, float, float]:
    """Both ratios of errors, and weights per second."""
    with np.load(folder / f"{kind.name}.npz") as golden:
        x, theirs = golden["original"], golden["decoded"]
    quantize(x[:1], kind)  # compiles
    start = time.thread_time()
    raw = quantize(x, kind)
    seconds = time.thread_time() - start
    ours, lost = squares(decoded(raw, kind, x) - x), squares(theirs - x)
    size = squares(x)
    used = size > 0
    relative = (ours[used] / size[used]).sum() / (lost[used] / size[used]).sum()
    return ours.sum() / lost.sum(), relative, x.size / seconds


def of_matrices(folder: Path, kind: TensorType) -> tuple[float, float]:
    """The ratio of errors on trained weights, and the weighted one with importances to without."""
    rng = np.random.default_rng(1)
    truth = open_gguf(folder / "ik-truth.gguf")
    encoded = open_gguf(folder / f"ik-{kind.name}.gguf")
    errors, weighted = np.zeros(2), np.zeros(2)
    for name, tensor in truth.tensors.items():
        n = tensor.dims[0]
        x = tensor.read(0, N_ROWS * n).reshape(N_ROWS, n)
        theirs = encoded.tensors[name].read(0, N_ROWS * n).reshape(N_ROWS, n)
        importance = rng.lognormal(0, 0.7, n).astype(np.float32)
        plain = decoded(quantize(x, kind), kind, x)
        other = decoded(quantize(x, kind, importance), kind, x)
        errors += [squares(each - x).sum() for each in (plain, theirs)]
        root = np.sqrt(importance)
        weighted += [squares(root * (each - x)).sum() for each in (other, plain)]
    return errors[0] / errors[1], weighted[0] / weighted[1]


def main(folder: Path) -> None:
    """Print a line for each type."""
    print("type     golden  relative  trained  weighted  weights/s")
    for name in TYPES:
        kind = type_by_name(name)
        golden, relative, speed = of_golden_rows(folder, kind)
        trained, weighted = of_matrices(folder / "llama-29m", kind)
        line = f"{name:8} {golden:6.3f}  {relative:8.3f}  {trained:7.3f}  {weighted:8.3f}"
        print(f"{line}  {speed / 1e6:8.2f}M")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

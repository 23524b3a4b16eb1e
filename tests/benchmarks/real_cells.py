"""Whether weights lie in the cells of what real packages make of them, in many weights of any kind.

    RECOVER_TEST_PYTHONS=... python -m tests.benchmarks.real_cells [--rows N] [PACKAGE...]
        [--weights FILE.npy]

quantizes a matrix of N rows of 1024 (`weights`, and rows of FILE, float32, where one is given) by
each package of `tests.golden.quantize_matrix`, in each of its ways, given BF16, F16 and F32, and
prints how many of the originals lie outside of what the codes prove: F32 originals, and those that
the package was given. There must be none. Rows that hold weights beyond the range of F16 are left
out of it.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from recover.containers.huggingface.formats import Matrix, read_matrix
from recover.containers.huggingface.rows import Rows
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.quants import TILE, F32Array, Stated
from tests.golden.quantize_matrix import PACKAGES
from tests.support.foreign_modules import Array, heavy_tailed, module_of, rounded
from tests.support.interpreters import interpreter_with, run_script
from tests.support.models import ROOT

WIDTH = 1024
_KINDS = {"bfloat16": ml_dtypes.bfloat16, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}
_SHORT = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def weights(rng: np.random.Generator, n_rows: int) -> F32Array:
    """Heavy tails, and rows of what encoders do not expect, in turn."""
    w = heavy_tailed(rng, n_rows, WIDTH)
    groups = w.reshape(n_rows, -1, 64)
    groups[1::16, ::3] = 0
    groups[2::16, ::2] = groups[2::16, ::2, :1]  # of one value
    groups[3::16] = np.abs(groups[3::16])
    groups[4::16] = -np.abs(groups[4::16]) - np.float32(0.05)
    groups[5::16] *= np.float32(2.0**-130)  # some are subnormal
    groups[6::16] *= rng.choice([1e-4, 1, 30], (groups[6::16].shape[0], 1, 64)).astype(np.float32)
    groups[7::16, :, 5] = 2  # outliers
    groups[8::16] = np.round(groups[8::16] * 128) / 128  # few values
    groups[9::16, :, 1:] = 0
    groups[10::16] = rng.standard_t(2, groups[10::16].shape) * 0.01
    groups[11::16] *= np.float32(2.0**-18)  # subnormal in F16
    return w


def _arrays(path: Path) -> tuple[dict[str, Array], dict[str, object]]:
    with np.load(path) as archive:
        config = json.loads(str(archive["config"]))
        found = {}
        for key in archive.files:
            leaf, _, kind = key.rpartition("/")
            if leaf:
                found[leaf] = archive[key].view(_KINDS.get(kind, archive[key].dtype))
    return found, config


def _read(path: Path) -> Matrix:
    arrays, config = _arrays(path)
    recipe = str(config.pop("recipe.yaml", ""))
    matrix = read_matrix(module_of(arrays, config, recipe))
    assert matrix is not None
    return matrix


def numbers_outside(matrix: Matrix, originals: Sequence[F32Array]) -> list[int]:
    """Of originals (N, K), those outside of what a folder with this matrix proves."""
    assert matrix.has_cells
    shape = originals[0].shape[::-1]
    tensor = QuantizedTensor("weight", shape, (Rows(matrix),), 0)
    counts = np.zeros(len(originals), np.int64)
    n = originals[0].size
    for start in range(0, n, TILE):
        stated = Stated.of(min(TILE, n - start))
        tensor.intervals(start, start + stated.value.size, stated)
        for i, each in enumerate(originals):
            x = each.reshape(-1)[start : start + TILE]
            counts[i] += np.count_nonzero(~((stated.lower <= x) & (x <= stated.upper)))
    return [int(each) for each in counts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("packages", nargs="*", help="all if left out")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    w = weights(np.random.default_rng(args.seed), args.rows)
    if args.weights:
        w = np.load(args.weights).astype(np.float32).reshape(-1)[: w.size // WIDTH * WIDTH]
        w = w[: w.size // WIDTH * WIDTH].reshape(-1, WIDTH)
    script = ROOT / "tests" / "golden" / "quantize_matrix.py"
    for package in args.packages or PACKAGES:
        python = interpreter_with(PACKAGES[package][1])
        with tempfile.TemporaryDirectory() as scratch:
            np.save(Path(scratch, "w.npy"), w)
            run_script(python, script, package, Path(scratch, "w.npy"), scratch)
            for path in sorted(Path(scratch).glob("*@*.npz")):
                way, _, given = path.stem.partition("@")
                originals = [w, rounded(w, _SHORT[given])]
                of_f32, of_given = numbers_outside(_read(path), originals)
                print(
                    f"{way:26} given {_SHORT[given]:4} {w.size:,} weights, outside: {of_f32} of F32"
                    f" originals, {of_given} of those given",
                    flush=True,
                )


if __name__ == "__main__":
    main()

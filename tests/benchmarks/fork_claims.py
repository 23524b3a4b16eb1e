"""What is claimed of the error of sets with types of ik_llama.cpp, on weights of any kind.

    python -m tests.benchmarks.fork_claims [--golden ../shared/golden-ik] [FILE ...]

The golden rows are random and encoded by that program itself; beside them are K-quants of the same
rows. Weights of files (GGUF in BF16; safetensors, ONNX or npz in float32) are encoded by the
encoders in `tests.support.encoders.ik`, whose search for scales is another one, and by ours of the
trellis types. Prints the posterior's square error over that of the best input, and the expected
over the measured error.
"""

import argparse
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from recover.containers.model import ArrayTensor
from recover.estimators.tile import TileEstimator
from recover.evidence.buffer import Source
from recover.quants import BlockIntervals, F32Array, quantize, type_by_name
from tests.benchmarks.fork_types import SETS
from tests.support.encoders.ik import FORMATS, encode
from tests.support.float_files import matrices_in

N_ROWS = 128  # of 1024 weights, of each file
GOLDEN = "IQ2_K", "IQ3_K", "IQ4_K", "IQ5_K", "IQ6_K", "IQ4_KS", "IQ5_KS", "IQ3_KT", "IQ4_KT"
BESIDE = "Q3_K", "Q4_K", "Q5_K"
OURS = [
    names
    for names in SETS
    if all(x in FORMATS or not x.startswith("IQ") or "_KT" in x for x in names)
]


def merge(tensors: Sequence[ArrayTensor], x: F32Array) -> tuple[float, float]:
    """The error over that of the best input, and the claim over the error."""
    kinds = [each.type for each in tensors]
    sources = [
        Source(kind, has_cells=not isinstance(kind, BlockIntervals) or kind.has_cells)
        for kind in kinds
    ]
    out = np.empty(x.size, np.float32)
    tally = TileEstimator(sources, "posterior").estimate(
        tensors, 0, x.size, out, np.empty_like(out)
    )
    error = _square(out, x)
    return error / min(_square(each.read(0, x.size), x) for each in tensors), tally.variance / error


def _square(values: F32Array, x: F32Array) -> float:
    return float(np.sum(np.square(values - x.reshape(-1), dtype=np.float64)))


def stored(name: str, x: F32Array) -> ArrayTensor:
    """Rows as a type."""
    kind = type_by_name(name)
    raw = encode(name, x) if name in FORMATS else quantize(x, kind)
    return ArrayTensor(name, (x.shape[1], len(x)), kind, np.asarray(raw).reshape(-1))


def usual_rows(x: F32Array) -> list[int]:
    """Golden rows of ordinary weights: neither tiny, huge, of one sign, with zeros nor uneven."""
    deviation = x.std(axis=1)
    groups = np.square(x.reshape(len(x), -1, 16)).mean(axis=2)
    even = groups.max(axis=1) < 12 * np.median(groups, axis=1)
    usual = (deviation > 1e-3) & (deviation < 1) & (groups > 0).all(axis=1) & even
    return np.flatnonzero(usual & (np.abs(x.mean(axis=1)) < 0.3 * deviation)).tolist()


def show(label: str, names: Sequence[str], found: tuple[float, float]) -> None:
    print(f"| {label} | {' + '.join(names)} | {found[0]:.4f}, {found[1]:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--golden", type=Path)
    args = parser.parse_args()
    for name in GOLDEN if args.golden else ():
        with np.load(args.golden / f"{name}.npz") as golden:
            original, raw = golden["original"].astype(np.float32), golden["raw"]
        rows = usual_rows(original)
        x, kind = np.ascontiguousarray(original[rows]), type_by_name(name)
        own = ArrayTensor(name, (x.shape[1], len(x)), kind, raw[rows].reshape(-1))
        for other in BESIDE:
            show("golden rows", (name, other), merge([own, stored(other, x)], x))
    for path in args.files:
        x = np.concatenate([each.reshape(-1) for each in matrices_in(path)])
        x = x[: x.size // 1024 * 1024].reshape(-1, 1024)
        x = np.ascontiguousarray(x[np.linspace(0, len(x) - 1, min(N_ROWS, len(x))).astype(int)])
        of = cache(partial(stored, x=x))
        for names in OURS:
            show(path.stem, names, merge([of(name) for name in names], x))


if __name__ == "__main__":
    main()

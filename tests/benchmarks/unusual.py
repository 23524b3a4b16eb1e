"""What `posterior` and `joint` make of weights that few models have.

    python -m tests.benchmarks.unusual [--sets LABEL ...] [FILE ...]

takes normal weights and smooth filters (and the matrices of a GGUF file in BF16, or of safetensors,
ONNX or npz in float32), of which all but a few are 0 or a few far larger than the others. For each
set and way it prints the square errors of posterior, joint and `linear` over that of the finest
input. A row is marked where one is worse than it should be, `*` where that is more than two
standard errors (of the sum over superblocks): in such weights a few superblocks have most of the
error. At the end it counts them.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.cells import intersect_cells
from recover.quants import F32Array, U8Array
from tests.benchmarks.pruned import SETS, of_file
from tests.support.joint_inputs import encode, sources_of
from tests.support.unusual_weights import WAYS, filters

N_ROWS = 512  # superblocks
MOST = 1.002  # of the error of what it is compared with
BESIDE = ("posterior", "best"), ("posterior", "linear"), ("joint", "posterior"), ("joint", "best")


def errors_of(name: str, x: F32Array) -> dict[str, NDArray[np.float64]]:
    """Square errors of each superblock, by method; estimates outside of the cells."""
    sources = sources_of(name)
    raws = encode(sources, x)
    found = {"best": _errors(UncorrectedTileEstimator(sources[:1], "best"), raws[:1], x)[0]}
    outside = np.zeros(1)
    for method in ("posterior", "joint", "linear"):
        tile = UncorrectedTileEstimator(sources, method)
        found[method], out = _errors(tile, raws, x)
        if method != "linear":
            lower, upper = np.empty((2, x.size), np.float32)
            intersect_cells(tile.evidence, lower, upper)
            outside += np.count_nonzero((out < lower) | (out > upper))
    return found | {"outside": outside}


def _errors(
    tile: UncorrectedTileEstimator, raws: list[U8Array], x: F32Array
) -> tuple[NDArray[np.float64], F32Array]:
    out = np.empty(x.size, np.float32)
    tile.estimate(raws, 0, x.size, out)
    return np.square(out.astype(np.float64) - x.reshape(-1)).reshape(-1, 256).sum(1), out


def worse(found: dict[str, NDArray[np.float64]]) -> dict[str, bool]:
    """What is worse than what; whether by more than two standard errors."""
    marks = {}
    for one, other in BESIDE:
        off = found[one] - MOST * found[other]
        if off.sum() > 0:
            marks[f"{one} > {other}"] = bool(off.sum() > 2 * np.sqrt(off.size) * off.std())
    return marks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--sets", nargs="+", default=(*SETS, "Q5_K*+Q4_K*+Q2_K*"))
    args = parser.parse_args()
    normal = 0.05 * np.random.default_rng(3).standard_normal((N_ROWS, 256))
    kinds = {"normal": [normal.astype(np.float32)], "filters": [filters(N_ROWS, 3)]}
    kinds |= {path.stem: list(of_file(path, N_ROWS)) for path in args.files}
    n, n_outside, counts = 0, 0, dict[str, list[int]]()
    for name in args.sets:
        for kind, matrices in kinds.items():
            for way, change in WAYS.items():
                each = [errors_of(name, change(x)) for x in matrices]
                found = {key: np.concatenate([one[key] for one in each]) for key in each[0]}
                n, n_outside = n + 1, n_outside + int(found["outside"].sum())
                marks = worse(found)
                for mark, is_sure in marks.items():
                    counts[mark] = [
                        a + b for a, b in zip(counts.get(mark, [0, 0]), [1, is_sure], strict=True)
                    ]
                first = max(found["best"].sum(), 1e-300)
                ratios = [
                    f"{method} {found[method].sum() / first:.4f}"
                    for method in ("posterior", "joint", "linear")
                ]
                flags = [f"{mark}{' *' * is_sure}" for mark, is_sure in marks.items()]
                print(", ".join([f"{name}, {kind}, {way}: {' '.join(ratios)}", *flags]), flush=True)
    told = [f"{mark} {all_} ({sure} *)" for mark, (all_, sure) in counts.items()]
    print(f"{n} rows, {n_outside} estimates outside; worse by more than 0.2%: {', '.join(told)}")


if __name__ == "__main__":
    main()

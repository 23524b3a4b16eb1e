"""What the method `joint` gains over the posterior.

    python -m tests.benchmarks.joint [--sets LABEL ...] [--hard] [FILE ...]

prints for each set and file (GGUF in BF16; safetensors, ONNX or npz in float32) the square errors
of both over that of the finest input, what both claim over what is measured, with what chance
changes that of joint by (its standard error: superblocks are off by what they are off from their
expected errors), and the matrix that gains least; with --hard also those of weights that are hard
to estimate. Without --sets: sets that have a network of their own.

    python -m tests.benchmarks.joint --speed [--sets LABEL ...] [--rounds 5]

prints weights per second instead, of one thread, from stored bytes to estimates; with
`tests.benchmarks.in_turns OTHER_TREE --benchmark joint --speed` beside those of another tree.
"""

import argparse
from pathlib import Path

import numpy as np

from recover.estimators._joint_files import labels
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.quants import TILE, F32Array
from tests.benchmarks.bounds_speed import print_speeds
from tests.support.float_files import matrices_in
from tests.support.joint_inputs import encode, hard_weights, run, sources_of

N_ROWS = 1024  # superblocks that are looked at, of each matrix
N_OWN = 15  # sets that have a network of their own


def compare(name: str, x: F32Array) -> tuple[float, ...]:
    """Square errors of the finest input, posterior and joint; what posterior and joint claim.

    Last comes what chance changes the error of joint by, squared.
    """
    sources = sources_of(name)
    raws, truth = encode(sources, x), x.reshape(-1).astype(np.float64)
    done = [run(method, sources, raws, x.size) for method in ("posterior", "joint")]
    first = run("best", sources[:1], raws[:1], x.size)[0]
    errors = [float(np.sum((out - truth) ** 2)) for out in (first, done[0][0], done[1][0])]
    out, deviation = (each.astype(np.float64) for each in done[1][:2])
    beyond = ((out - truth) ** 2 - deviation**2).reshape(-1, 256).sum(1)
    return (*errors, *(each[2].variance for each in done), float(np.sum(beyond**2)))


def line(label: str, sums: tuple[float, ...], least: float) -> str:
    first, before, after, *claimed, chance = sums
    return (
        f"{label}: {before / first:.4f} -> {after / first:.4f} ({after / before - 1:+.2%}), "
        f"claims {claimed[0] / before:.3f} -> {claimed[1] / after:.3f} "
        f"({chance**0.5 / after:.3f}), least {least:+.2%}"
    )


def print_speeds_of(name: str, args: argparse.Namespace) -> None:
    """Weights per second of a set."""
    sources, out = sources_of(name), np.empty(TILE, np.float32)
    x = (0.02 * np.random.default_rng(0).standard_t(8, (TILE // 256, 256))).astype(np.float32)
    raws, tile = encode(sources, x), UncorrectedTileEstimator(sources, "joint")
    tile.estimate(raws, 0, TILE, out)  # compile
    print(name)
    print_speeds(lambda: tile.estimate(raws, 0, TILE, out), TILE, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--sets", nargs="+", default=labels()[:N_OWN])
    parser.add_argument("--hard", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for name in args.sets:
        if args.speed:
            print_speeds_of(name, args)
            continue
        for path in args.files:
            each = [compare(name, x[:N_ROWS]) for x in matrices_in(path)]
            if not each:
                parser.error(f"{path} has no arrays that are large enough")
            sums = tuple(map(sum, zip(*each, strict=True)))
            least = max(after / before - 1 for _, before, after, *_ in each if before > 0)
            print(line(f"{path.stem} {name}", sums, least), flush=True)
        for kind, x in (hard_weights(N_ROWS) if args.hard else {}).items():
            found = compare(name, x)
            if found[1] > 0:
                print(line(f"{kind} {name}", found, found[2] / found[1] - 1), flush=True)


if __name__ == "__main__":
    main()

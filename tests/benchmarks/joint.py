"""What the method `joint` gains over the posterior.

    python -m tests.benchmarks.joint [MODEL-bf16.gguf ...]

prints for each network and model the square errors of both over that of the finest input, what
`joint` claims over what is measured, and the matrix that gains least; then those of hard weights.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recover.estimators._joint_files import labels
from recover.quants import F32Array
from tests.oracle.weights import gguf_weights
from tests.support.joint_inputs import encode, hard_weights, run, sources_of

N_ROWS = 1024  # superblocks that are looked at, of each matrix


def matrices(path: Path) -> Iterator[F32Array]:
    """Some superblocks of each matrix of a model."""
    for x in gguf_weights(path):
        if x.shape[1] % 256 == 0:
            yield np.ascontiguousarray(x.reshape(-1, 256)[:N_ROWS])


def compare(name: str, x: F32Array) -> tuple[float, float, float, float]:
    """Square errors of the finest input, posterior and joint; what joint claims."""
    sources = sources_of(name)
    raws, truth = encode(sources, x), x.reshape(-1).astype(np.float64)
    done = [run(method, sources, raws, x.size) for method in ("posterior", "joint")]
    first = run("best", sources[:1], raws[:1], x.size)[0]
    errors = [float(np.sum((out - truth) ** 2)) for out in (first, done[0][0], done[1][0])]
    return errors[0], errors[1], errors[2], done[1][2].variance


def line(label: str, sums: tuple[float, ...], least: float) -> str:
    first, before, after, claimed = sums
    return (
        f"{label}: {before / first:.4f} -> {after / first:.4f} ({after / before - 1:+.2%}), "
        f"claims {claimed / after:.3f}, least {least:+.2%}"
    )


def main() -> None:
    for name in labels():
        for path in map(Path, sys.argv[1:]):
            each = [compare(name, x) for x in matrices(path)]
            sums = tuple(map(sum, zip(*each, strict=True)))
            print(line(f"{path.stem} {name}", sums, max(a / b - 1 for _, b, a, _ in each)))
        for kind, x in hard_weights(N_ROWS).items():
            found = compare(name, x)
            if found[1] > 0:
                print(line(f"{kind} {name}", found, found[2] / found[1] - 1))


if __name__ == "__main__":
    main()

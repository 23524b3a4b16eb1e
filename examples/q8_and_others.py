"""Q8_0 is there, and coarser files as well.

    python examples/q8_and_others.py [MODEL]

merges Q8_0 with more and more coarser files and prints the mean square error relative to Q8_0.
"""

from pathlib import Path

import _study

METHODS = ("linear", "midpoint", "posterior")
KINDS = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q2_K")


def study(models: list[Path], folder: Path) -> None:
    """Print the table."""
    (truth,) = models
    inputs = [_study.quantize(truth, folder / f"{kind}.gguf", kind) for kind in KINDS]
    merged = {}
    for n in range(2, len(KINDS) + 1):
        for method in METHODS:
            path, _ = _study.merge(inputs[:n], folder / f"{n}-{method}.gguf", method)
            merged[n, method] = path
    mse = _study.errors([inputs[0], *merged.values()], truth)
    print(f"{truth.stem}: mean square error relative to Q8_0")
    rows = [
        (
            " + ".join(KINDS[:n]),
            *(f"{mse[merged[n, method]] / mse[inputs[0]]:.4f}" for method in METHODS),
        )
        for n in range(2, len(KINDS) + 1)
    ]
    _study.print_table(("files", *METHODS), rows)


if __name__ == "__main__":
    _study.run(__doc__, study)

"""Many uploads of one type, each made with another importance matrix.

    python examples/many_uploads.py [MODEL]

makes six Q5_K files with random importance matrices (lognormal per column) and merges more and more
of them. Averaging n files gains at most a factor of n; the intersection of the cells gains more,
as the theory of consistent reconstruction says.
"""

from pathlib import Path

import _study

METHODS = ("linear", "midpoint", "posterior")
N_UPLOADS = 6


def study(models: list[Path], folder: Path) -> None:
    """Print the table."""
    (truth,) = models
    inputs = []
    for i in range(N_UPLOADS):
        imatrix = _study.write_imatrix(truth, folder / f"imatrix-{i}.gguf", seed=i)
        output = folder / f"upload-{i}.gguf"
        inputs.append(_study.quantize(truth, output, "Q5_K", imatrix=imatrix))
    merged = {}
    for n in (2, 4, N_UPLOADS):
        for method in METHODS:
            path, _ = _study.merge(inputs[:n], folder / f"{n}-{method}.gguf", method)
            merged[n, method] = path
    mse = _study.errors([*inputs, *merged.values()], truth)
    best = min(mse[path] for path in inputs)
    print(f"{truth.stem}: mean square error relative to the best of the Q5_K files")
    rows = [
        (str(n), *(f"{mse[merged[n, method]] / best:.4f}" for method in METHODS))
        for n in sorted({n for n, _ in merged})
    ]
    _study.print_table(("files", *METHODS), rows)


if __name__ == "__main__":
    _study.run(__doc__, study)

"""The largest anonymous memory of merges, by the number of weights and of inputs.

    python -m tests.benchmarks.memory [--weights 0.2e9 1e9 4e9] [--inputs 12] [--folder DIR]
        [--method posterior] [--threads 2]

makes Q4_K and Q2_K files of so many weights (the rows of the package's small model, again and
again), and of 0.2 billion weights as many files of other types as are asked for; merges them in
processes of their own, and prints seconds, processor seconds and MiB. Mapped pages of inputs do not
count. 4 billion weights need 12 GB on the disk.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.merge_speed import DATA, grow, measure
from tests.benchmarks.undo_speed import processor_seconds

TRUTH = DATA.parents[1].parent / "shared" / "models" / "tiny-llama-3m-bf16.gguf"
MANY = (
    *("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS"),
    *("Q3_K", "Q2_K"),
)
FEWEST = 0.2e9


def make(kinds: tuple[str, ...], n_weights: float, folder: Path) -> tuple[int, list[Path]]:
    """Files of these types; how many weights they have."""
    paths, sizes = [], set()
    for kind in kinds:
        small, path = folder / f"small-{kind}.gguf", folder / f"{kind}.gguf"
        command = [sys.executable, "-m", "recover", "quantize", str(TRUTH), kind, "-o", str(small)]
        subprocess.run([*command, "--quiet"], check=True)
        sizes.add(grow(small, path, n_weights))
        paths.append(path)
    return sizes.pop(), paths


def run(kinds: tuple[str, ...], n_weights: float, options: argparse.Namespace) -> None:
    """Print one line."""
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        n, paths = make(kinds, n_weights, Path(scratch))
        command = [sys.executable, "-m", "recover", "merge", *map(str, paths)]
        command += ["-o", f"{scratch}/out.gguf", "--method", options.method, "--force", "--quiet"]
        before = processor_seconds()
        seconds, memory = measure([*command, "--threads", str(options.threads)])
        busy = processor_seconds() - before
        print(
            f"{len(paths)} inputs of {n / 1e9:.2f} billion weights: {seconds:.1f} s, processors"
            f" busy for {busy:.1f} s; {memory:.0f} MiB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=float, nargs="*", default=[0.2e9, 1e9, 4e9])
    parser.add_argument("--inputs", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--method", default="posterior")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for n_weights in options.weights:
        run(("Q4_K", "Q2_K"), n_weights, options)
    if options.inputs:
        run(MANY[: options.inputs], FEWEST, options)


if __name__ == "__main__":
    main()

"""Speed of ``recover bounds --summary``, end to end, per core.

    python -m tests.benchmarks.bounds_speed [--weights 100e6] [--folder DIR] [--rounds 3]

makes three K-quant files of that many weights (the rows of the package's small model, again and
again), bounds them on one thread, and prints weights per second of wall time and of processor time.
On a machine that does other work besides, the latter is nearer to what a core can do. The files are
in the page cache.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from recover.bounds.execute import execute_bounds
from recover.bounds.plan import plan_bounds
from tests.benchmarks.merge_speed import DATA, NAMES, grow


def print_speeds(
    run: Callable[[], object], n_weights: int, args: argparse.Namespace
) -> list[dict[str, float]]:
    """Seconds of something that runs ``args.rounds`` times; prints its weights per second."""
    figures = []
    for _ in range(args.rounds):
        wall, processor = time.perf_counter(), time.process_time()
        run()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        n = n_weights / 1e6
        print(f"{n:.3g}M weights: {n / wall:.4g}M/s of wall time,", end=" ")
        print(f"{n / processor:.4g}M/s of processor time")
        figures.append({"n_weights": n_weights, "wall_s": wall, "processor_s": processor})
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=float, default=100e6)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        inputs = [Path(scratch) / f"{name}.gguf" for name in NAMES]
        for name, path in zip(NAMES, inputs, strict=True):
            grow(DATA / f"tiny-llama-3m-{name}.gguf", path, args.weights)
        execute_bounds(plan_bounds(inputs), n_threads=1)  # compile, and fill the page cache
        n_weights = plan_bounds(inputs).n_weights
        print_speeds(lambda: execute_bounds(plan_bounds(inputs), n_threads=1), n_weights, args)


if __name__ == "__main__":
    main()

"""`recover inspect` of three files next to their merge.

    python -m tests.benchmarks.inspect_speed [--weights 200e6] [--rounds 3] [--folder DIR]

makes three K-quant files as `tests.benchmarks.merge_speed` does, and runs both commands on one
thread in turns; prints the best time of a processor, the start of the process included, the best
time of the wall clock, and what share of the merge's `inspect` took.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

from tests.benchmarks.many_tensors import run, seconds
from tests.benchmarks.merge_speed import DATA, NAMES, grow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=float, default=200e6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        inputs = [str(Path(scratch) / f"{name}.gguf") for name in NAMES]
        for name, path in zip(NAMES, inputs, strict=True):
            n = grow(DATA / f"tiny-llama-3m-{name}.gguf", Path(path), args.weights)
        commands = {
            "merge": ["merge", *inputs, "-o", str(Path(scratch) / "out.gguf"), "--threads", "1"],
            "inspect": ["inspect", *inputs, "--threads", "1"],
        }
        best = dict.fromkeys(commands, (float("inf"), float("inf")))
        for number in range(args.rounds + 1):  # the first one compiles, and fills the page cache
            for name, command in commands.items():
                cpu, wall = seconds(partial(run, command))
                if number:
                    best[name] = min(best[name][0], cpu), min(best[name][1], wall)
    for name, (cpu, wall) in best.items():
        print(f"{name} of {n / 1e6:.0f}M weights: {cpu:.2f} s of a processor, {wall:.2f} s")
    shares = [a / b for a, b in zip(best["inspect"], best["merge"], strict=True)]
    print(f"inspect over merge: {shares[0]:.2f} of processor time, {shares[1]:.2f}")


if __name__ == "__main__":
    main()

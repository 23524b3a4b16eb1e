"""What a command takes before and after its work: a merge of tiny files, in two trees in turns.

    python -m tests.benchmarks.start_speed [OTHER_TREE] [--rounds 15] [--method linear]...
        [--json FILE]

merges the three files of `recover demo` (3 million weights, which take about 0.02 s) in processes
of their own, with machine code from the cache and files in memory, and starts `--help`. The trees
take turns, so that whatever else the machine does meets both alike. Prints medians and minima of
wall seconds and of processor seconds since a process was made; for two trees also the median of the
ratios of neighbouring rounds.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.benchmarks.merge_speed import DATA, NAMES
from tests.benchmarks.record import write_record

THIS = Path(__file__).parents[2]


def run(tree: Path, arguments: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a command, with this Python and the code of a tree."""
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # imports are of what was compiled
    before, start = os.times(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "recover", *arguments],
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    wall, after = time.perf_counter() - start, os.times()
    return wall, after[2] + after[3] - before[2] - before[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--method", action="append")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    trees = {"this": THIS} if args.other is None else {"other": args.other, "this": THIS}
    inputs = [str(DATA / f"tiny-llama-3m-{name}.gguf") for name in NAMES]
    memory = Path("/dev/shm")
    figures = []
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        output = ["-o", str(Path(scratch) / "out.gguf"), "--json"]
        commands = {"--help": ["--help"]}
        for method in args.method or ["linear", "posterior"]:
            commands[f"merge, {method}"] = ["merge", *inputs, *output, "--method", method]
        for name, command in commands.items():
            found: dict[str, list[tuple[float, float]]] = {tree: [] for tree in trees}
            for i in range(-1, args.rounds):  # the first one compiles, perhaps
                for tree in sorted(trees, reverse=i % 2 == 1):
                    taken = run(trees[tree], command)
                    if i >= 0:
                        found[tree].append(taken)
            print(f"{name}, {args.rounds} rounds, load {os.getloadavg()[0]:.1f}:")
            for tree, each in found.items():
                (wall, processor), least = np.median(each, axis=0), np.min(each, axis=0)
                print(
                    f"  {tree}: {wall:.3f} s ({least[0]:.3f} at least),"
                    f" {processor:.3f} s of processors ({least[1]:.3f} at least)"
                )
            if args.other is not None:
                ratios = np.array(found["this"]) / np.array(found["other"])
                wall, processor = np.median(ratios, axis=0)
                print(f"  ratio {wall:.3f}, of processors {processor:.3f}", flush=True)
            figures.append({"command": name, "seconds": found})
    if args.json:
        write_record(args.json, "start_speed", figures)


if __name__ == "__main__":
    main()

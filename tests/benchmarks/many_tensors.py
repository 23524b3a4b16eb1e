"""What small tensors cost: times of commands on many of them, and the rate next to large ones.

    python -m tests.benchmarks.many_tensors [--tensors 2100] [--weights 65536] [--rounds 3]
        [--threads 1] [--json FILE]

prints, of each command on two files of 30,000 keys and 30,000 tensors of 256 weights, the best time
of a processor (user and system, the start of the process included) and of the wall clock. Then
weights per second of processor time and of wall time of a merge (without planning) of so many
tensors of so many weights, and of as many weights in one tensor, in turns; and the ratios.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from recover.estimators import DEFAULT_METHOD, method_names
from recover.merge.execute import execute_merge
from recover.merge.plan import plan_merge
from tests.benchmarks.record import write_record
from tests.support.gguf_files import Stored, stored, write_gguf
from tests.support.many import many

_ROW, _REPEATED = 256, 1024
_KINDS = "Q5_K", "Q4_K"
Q8_0, Q4_0 = 8, 2  # numbers in GGUF files


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Of processors, those of child processes included, and of the wall clock."""
    before, start = os.times(), time.perf_counter()
    work()
    wall, after = time.perf_counter() - start, os.times()
    return sum(after[:4]) - sum(before[:4]), wall


def commands(folder: Path) -> list[list[str]]:
    """Command lines on two files of many tensors."""
    one, two = (str(folder / name) for name in ("a.gguf", "b.gguf"))
    many(Path(one), Q8_0)
    many(Path(two), Q4_0)
    output = ["-o", str(folder / "out.gguf")]
    return [
        ["merge", one, *output],
        ["merge", one, two, *output, "--force"],  # random bytes contradict each other
        ["merge", one, two, *output, "--dry-run", "--json"],
        ["bounds", one, two, "--summary"],
        ["inspect", one, two],
    ]


def run(arguments: list[str]) -> None:
    """Run a command; what it prints is of no interest."""
    command = [sys.executable, "-m", "recover", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def files(folder: Path, n_tensors: int, n_weights: int) -> list[Path]:
    """A file of each type with so many tensors; random weights, the same again and again."""
    x = np.random.default_rng(0).standard_normal((_REPEATED, _ROW)).astype(np.float32)
    paths = []
    for kind in _KINDS:
        rows = stored(kind, x).rows
        n_rows = n_weights // _ROW
        tensor = Stored(kind, np.resize(rows, (n_rows, rows.shape[1])))
        names = [f"blk.{i}.ffn_up.weight" for i in range(n_tensors)]
        path = folder / f"{kind}-{n_tensors}.gguf"
        paths.append(write_gguf(path, dict.fromkeys(names, tensor)))
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tensors", type=int, default=2100)
    parser.add_argument("--weights", type=int, default=1 << 16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--method", choices=method_names(), default=DEFAULT_METHOD)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    record: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for command in commands(folder):
            times = [seconds(partial(run, command)) for _ in range(args.rounds)]
            cpu, wall = (min(each) for each in zip(*times, strict=True))
            shown = " ".join(each if each[0] != "/" else Path(each).name for each in command)
            print(f"{shown}: {cpu:.2f} s of a processor, {wall:.2f} s")
            record[shown] = {"cpu": cpu, "wall": wall}
        n_weights = args.tensors * args.weights
        sizes = {"small": (args.tensors, args.weights), "large": (1, n_weights)}
        plans = {
            name: plan_merge(files(folder, *size), folder / f"{name}.gguf", method=args.method)
            for name, size in sizes.items()
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in plans}
        execute_merge(plans["small"])  # machine code is loaded
        for _ in range(args.rounds):
            for name, plan in plans.items():
                # To free what an output that is there already takes counts for neither.
                (folder / f"{name}.gguf").unlink(missing_ok=True)
                work = partial(execute_merge, plan, n_threads=args.threads)
                found[name].append(seconds(work))
        rates = {
            name: [n_weights / min(each) for each in zip(*times, strict=True)]
            for name, times in found.items()
        }
        for name, (cpu, wall) in rates.items():
            n_tensors, size = sizes[name]
            print(
                f"{n_tensors} tensors of {size:,} weights: {cpu / 1e6:.1f}M weights/s of a"
                f" processor, {wall / 1e6:.1f}M/s"
            )
        ratios = [a / b for a, b in zip(rates["small"], rates["large"], strict=True)]
        print(f"small over large: {ratios[0]:.2f} of processor time, {ratios[1]:.2f}")
        record |= {"rates": rates, "ratios": ratios}
    if args.json:
        write_record(args.json, "many_tensors", record)


if __name__ == "__main__":
    main()

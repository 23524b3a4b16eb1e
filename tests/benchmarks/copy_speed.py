"""Time of a merge next to a plain copy in large blocks that reads and writes as many bytes.

    python -m tests.benchmarks.copy_speed [--weights 400e6] [--folder DIR]... [--threads 2]
        [--method linear]... [--inputs 3] [--rounds 5] [--without-fsync] [--json FILE]

makes K-quant files of that many weights, as `tests.benchmarks.merge_speed` does. The copy reads all
bytes of the inputs and writes as many bytes as the output has, in blocks of 8 MiB, with as many
threads; both end when all is on the disk, or with ``--without-fsync`` when all is in the page
cache. They run in turns in processes of their own. Prints, of each method, the medians of wall
seconds with and without the start (what is before the first and behind the last byte: Python,
imports, the plan), of processor seconds, the ratios of medians with the least and the largest ratio
of neighbouring runs, and the largest anonymous memory. The inputs are in the page cache; in a
folder in memory, as /dev/shm, the output is there, too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.merge_speed import DATA, NAMES, grow, watch_memory
from tests.benchmarks.record import write_record

COPY = """
import json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
syncs, n_threads, n_bytes, output, *inputs = sys.argv[1:]
n_threads, n_bytes, block = int(n_threads), int(n_bytes), 8 << 20
start = time.perf_counter()
sources = [(os.open(path, os.O_RDONLY), os.stat(path).st_size) for path in inputs]
target = os.open(output, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
n_blocks = -(-n_bytes // block)

def copy(first):
    memory = memoryview(bytearray(block))
    for i in range(first, n_blocks, n_threads):
        for source, size in sources:
            begin, end = size * i // n_blocks, size * (i + 1) // n_blocks
            while begin < end:
                begin += os.preadv(source, [memory[: end - begin]], begin)
        at, end = i * block, min((i + 1) * block, n_bytes)
        while at < end:
            at += os.pwrite(target, memory[: end - at], at)

with ThreadPoolExecutor(n_threads) as pool:
    list(pool.map(copy, range(n_threads)))
if syncs == "True":
    os.fsync(target)
print(json.dumps({"seconds": time.perf_counter() - start}))
"""

MERGE = """
import os, runpy, sys
if sys.argv.pop(1) != "True":
    os.fsync = os.fdatasync = lambda _: None
runpy.run_module("recover", run_name="__main__", alter_sys=True)
"""


class Run(NamedTuple):
    """What a process took."""

    whole: float
    """Wall seconds of all of it."""
    without_start: float
    processor: float
    """Seconds, user and system."""
    memory: float
    """Largest anonymous memory, MiB."""


def run(command: Sequence[str]) -> Run:
    """Run a command that prints a JSON document with its ``seconds``."""
    before, start = os.times(), time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        watcher = watch_memory(process)
        assert process.stdout is not None
        told = process.stdout.read()
        status = process.wait()
    whole, after = time.perf_counter() - start, os.times()
    if status:
        raise SystemExit(f"{command} failed")
    processor = after[2] + after[3] - before[2] - before[3]
    return Run(whole, json.loads(told)["seconds"], processor, watcher.largest())


def make_inputs(folder: Path, n_inputs: int, n_weights: float) -> list[Path]:
    """So many files: the three types again and again."""
    paths = []
    for i in range(n_inputs):
        name, path = NAMES[i % len(NAMES)], folder / f"{i}-{NAMES[i % len(NAMES)]}.gguf"
        grow(DATA / f"tiny-llama-3m-{name}.gguf", path, n_weights)
        paths.append(path)
    return paths


def compare(folder: Path, method: str, inputs: Sequence[Path], args: Any) -> dict[str, Any]:
    """Both in turns; the medians."""
    output, copied = folder / "out.gguf", folder / "copy"
    paths = [str(path) for path in inputs]
    syncs = str(not args.without_fsync)
    ours = [sys.executable, "-c", MERGE, syncs, "merge", *paths, "-o", str(output), "--json"]
    ours += ["--method", method, "--threads", str(args.threads), "--force"]
    run(ours)  # compile, and fill the page cache
    n_bytes = output.stat().st_size
    theirs = [sys.executable, "-c", COPY, syncs, str(args.threads), str(n_bytes), str(copied)]
    theirs += paths
    found: dict[str, list[Run]] = {"merge": [], "copy": []}
    for _ in range(args.rounds):
        for name, command in (("merge", ours), ("copy", theirs)):
            output.unlink(missing_ok=True)
            copied.unlink(missing_ok=True)
            found[name].append(run(command))
    merge, copy = (Run(*np.median(each, axis=0).tolist()) for each in found.values())
    for name, each in (("merge", merge), ("copy", copy)):
        print(
            f"  {method}, {name}: {each.whole:.2f} s with the start, {each.without_start:.2f} s"
            f" without, {each.processor:.2f} s of processors; {each.memory:.0f} MiB"
        )
    each = np.array(found["merge"]) / np.array(found["copy"])
    ratios = [
        f"{one / other:.2f} ({least:.2f} to {most:.2f})"
        for one, other, least, most in zip(
            merge, copy, each.min(axis=0), each.max(axis=0), strict=True
        )
    ]
    print(
        f"  {method}: {ratios[0]} times a copy with the start, {ratios[1]} without,"
        f" {ratios[2]} of processors",
        flush=True,
    )
    return {"method": method, "merge": found["merge"], "copy": found["copy"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=float, default=400e6)
    parser.add_argument("--folder", type=Path, action="append")
    parser.add_argument("--method", action="append")
    parser.add_argument("--inputs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-fsync", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    figures = []
    for folder in args.folder or [Path(tempfile.gettempdir())]:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            inputs = make_inputs(Path(scratch), args.inputs, args.weights)
            load = os.getloadavg()[0]
            print(f"{folder}, {args.inputs} inputs of {args.weights / 1e6:.0f}M weights,", end=" ")
            end = "in the page cache" if args.without_fsync else "on the disk (fsync)"
            print(f"{args.threads} threads, until all is {end}; load {load:.1f}", flush=True)
            methods = args.method or ["linear", "posterior"]
            figures += [compare(Path(scratch), method, inputs, args) for method in methods]
    if args.json:
        write_record(args.json, "copy_speed", figures)


if __name__ == "__main__":
    main()

"""Which part of the time of a plain copy a merge takes without Python, and its arithmetic alone.

    python -m tests.benchmarks.floor [--weights 200e6] [--folder DIR] [--threads 2] [--rounds 9]
        [--json FILE]

makes three files of that many weights in blocks of Q5_K, Q4_K and Q2_K, and copies all of their
bytes and as many as an F16 file has, as `tests.benchmarks.copy_speed` does without fsync. In turns
with that:

- The kernels of a merge read these files and write F16, called by a compiled loop on each thread,
  without Python (see `tests.benchmarks.without_python`). Prints how many times as long as the copy
  that takes: the least time of all rounds over the copy's, as other work on the machine makes both
  only slower, and the median of neighbouring runs with the least and the largest. No merge can take
  less with these kernels.
- On one core, the steps of a merge are done to weights that lie in the processor's caches:
  unpacking, estimating, counting conflicts where the method does not, encoding as F16. Each step is
  called for so many weights and for twice as many; what the second half takes is the time of the
  arithmetic, without that of a call, of reading and of writing. Prints nanoseconds per weight,
  times the number of threads: of the copy the least wall time, of the steps the median of processor
  time; and what of the copy each step takes.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Source
from recover.merge.compare import count_conflicts, step_for
from recover.quants import TILE, F32Array, U8Array, quantize, type_by_name
from tests.benchmarks.copy_speed import COPY, run
from tests.benchmarks.core_speed import KINDS, first_tiles
from tests.benchmarks.merge_speed import DATA, NAMES, grow
from tests.benchmarks.record import write_record
from tests.benchmarks.without_python import merge

_N = 65_536
"""Weights of the smaller call: of both as many errors are looked at as of a whole tile."""
_SECONDS = 0.05  # of a step in one round
_OF_MODELS = 100e6  # weights: enough for tensors of a tile
_METHODS = "linear", "posterior"
_WHOLE = "whole", "processors"

Step = Callable[[], object]


def steps_of(method: str, raws: list[U8Array], n: int) -> dict[str, Step]:
    """The steps of a merge of `n` weights, each on what the one before left."""
    types = [type_by_name(name) for name in KINDS]
    parts = [raw[: kind.n_bytes(n)] for raw, kind in zip(raws, types, strict=True)]
    estimator = UncorrectedTileEstimator([Source(kind) for kind in types], method)
    evidence = estimator.read(parts, 0, n)
    out: F32Array = np.empty(n, np.float32)
    encoded: U8Array = np.empty(2 * n, np.uint8)
    steps: dict[str, Step] = {
        "unpack": lambda: estimator.read(parts, 0, n),
        "estimate": lambda: estimator.estimate_from(evidence, out),
        "encode": lambda: quantize(out.reshape(1, -1), type_by_name("F16"), out=encoded),
    }
    if not estimator.estimator.sees_conflicts:
        steps["count conflicts"] = lambda: count_conflicts(evidence, step_for(1 << 30))
    for step in steps.values():
        step()
    return steps


def seconds_of(step: Step) -> float:
    """Processor seconds of one call."""
    n, start = 0, time.process_time()
    while time.process_time() - start < _SECONDS or n < 3:
        step()
        n += 1
    return (time.process_time() - start) / n


def make_inputs(folder: Path, n_weights: float) -> tuple[list[U8Array], list[Path]]:
    """The blocks of a tile, and files that have them again and again: about so many weights."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        models = [Path(scratch) / f"{name}.gguf" for name in NAMES]
        for name, path in zip(NAMES, models, strict=True):
            grow(DATA / f"tiny-llama-3m-{name}.gguf", path, _OF_MODELS)
        raws = [raw.copy() for raw in first_tiles(models)[1]]
    paths = [folder / name for name in KINDS]
    for path, raw in zip(paths, raws, strict=True):
        with path.open("wb") as file:
            for _ in range(-(-int(n_weights) // TILE)):
                file.write(raw.data)
    return raws, paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=float, default=200e6)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        raws, inputs = make_inputs(Path(scratch), args.weights)
        n_weights = inputs[0].stat().st_size // raws[0].size * TILE
        copied = Path(scratch) / "copy"
        command = [sys.executable, "-c", COPY, "False", str(args.threads)]
        copy = [*command, *map(str, (2 * n_weights, copied, *inputs))]
        steps = {each: [steps_of(each, raws, n) for n in (_N, 2 * _N)] for each in _METHODS}
        for method in _METHODS:
            merge(method, inputs, copied, args.threads)  # compile, and fill the page cache
        for _ in range(args.rounds):
            copied.unlink()
            ran = run(copy)
            one_core = ran.without_start * args.threads
            found.setdefault("copy", []).append(one_core / n_weights * 1e9)
            found.setdefault("processors", []).append(ran.processor / n_weights * 1e9)
            for method, (less, more) in steps.items():
                copied.unlink()
                wall, processor = merge(method, inputs, copied, args.threads)
                whole = wall * args.threads / n_weights * 1e9
                found.setdefault(f"{method}: whole", []).append(whole)
                processors = processor / n_weights * 1e9
                found.setdefault(f"{method}: processors", []).append(processors)
                for name in less:
                    seconds = seconds_of(more[name]) - seconds_of(less[name])
                    found.setdefault(f"{method}, {name}", []).append(seconds / _N * 1e9)
    report(found, args.threads)
    if args.json:
        write_record(args.json, "floor", found)


def report(found: dict[str, list[float]], n_threads: int) -> None:
    """Print the figures of `main`."""
    least, copying = min(found["copy"]), float(np.median(found["processors"]))
    load = os.getloadavg()[0]
    print(f"a plain copy on {n_threads} threads: {least:.2f} ns", end="; ")
    print(f"{copying:.2f} ns of processors with the start of Python; load {load:.1f}")
    for method in _METHODS:
        whole, processors = (np.array(found[f"{method}: {each}"]) for each in _WHOLE)
        ratios = whole / found["copy"]
        print(f"{method}, without Python: {whole.min() / least:.2f} times the copy", end=" ")
        print(f"({np.median(ratios):.2f}, {ratios.min():.2f} to {ratios.max():.2f})", end="; ")
        print(f"{np.median(processors):.2f} ns of processors")
        names = [name for name in found if name.startswith(f"{method}, ")]
        own = {name: float(np.median(found[name])) for name in names}
        for name, ns in (*own.items(), (f"{method}, all arithmetic", sum(own.values()))):
            print(f"{name}: {ns:.2f} ns, {ns / least:.2f} of a copy")


if __name__ == "__main__":
    main()

"""Speed of merges next to llama.cpp's own requantizing of one file to F16.

    python -m tests.benchmarks.requantize_speed [--weights 400e6] [--folder DIR] [--threads 2]
        [--rounds 3] [--json FILE]

makes K-quant files of that many weights, as `tests.benchmarks.copy_speed` does. llama.cpp (of the
package cyllama) makes an F16 file of the first one: ``llama_model_quantize`` with
``allow_requantize``. The program decodes the same file, and merges three by each method. They run
in turns in processes of their own. Prints the medians of wall seconds, with and without the start,
of processor seconds, and how many times llama.cpp's weights per second that is. The inputs are in
the page cache.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.copy_speed import Run, make_inputs, run
from tests.benchmarks.record import write_record

REQUANTIZE = """
import json, sys, time
import cyllama.llama.llama_cpp as llama
n_threads, source, target = sys.argv[1:]
llama.ggml_backend_load_all()
llama.llama_backend_init()
parameters = llama.LlamaModelQuantizeParams()
parameters.ftype, parameters.allow_requantize = 1, True
parameters.nthread = int(n_threads)
start = time.perf_counter()
llama.model_quantize(source, target, parameters)
print(json.dumps({"seconds": time.perf_counter() - start}))
"""


def commands(inputs: list[Path], output: Path, n_threads: int) -> dict[str, list[str]]:
    """What is compared, by name; llama.cpp comes first."""
    three, threads = [str(path) for path in inputs], str(n_threads)
    theirs = [sys.executable, "-c", REQUANTIZE, threads, three[0], str(output)]
    merge = [sys.executable, "-m", "recover", "merge", "-o", str(output), "--json", "--force"]
    merge += ["--threads", threads]
    return {
        "llama.cpp, one file": theirs,
        "one file": [*merge, three[0]],
        "three, linear": [*merge, *three, "--method", "linear"],
        "three, posterior": [*merge, *three, "--method", "posterior"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=float, default=400e6)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        inputs, output = make_inputs(Path(scratch), 3, args.weights), Path(scratch, "out.gguf")
        lines = commands(inputs, output, args.threads)
        sizes: dict[str, int] = {}
        for name, line in lines.items():  # machine code is made, files get into the page cache
            output.unlink(missing_ok=True)
            run(line)
            sizes[name] = output.stat().st_size
        if max(sizes.values()) > 1.01 * min(sizes.values()):
            raise SystemExit(f"these are not all F16 files of the same weights: {sizes}")
        found: dict[str, list[Run]] = {name: [] for name in lines}
        print(f"{args.folder}, {args.weights / 1e6:.0f}M weights, load {os.getloadavg()[0]:.1f}")
        for _ in range(args.rounds):
            for name, line in lines.items():
                output.unlink(missing_ok=True)
                found[name].append(run(line))
    medians = {name: Run(*np.median(runs, axis=0).tolist()) for name, runs in found.items()}
    theirs = next(iter(medians.values()))
    record: dict[str, Any] = {}
    for name, own in medians.items():
        ratios = [a / b for a, b in zip(theirs[:3], own[:3], strict=True)]
        print(
            f"  {name}: {own.whole:.2f} s with the start, {own.without_start:.2f} s without,"
            f" {own.processor:.2f} s of processors; {ratios[0]:.2f}, {ratios[1]:.2f} and"
            f" {ratios[2]:.2f} times llama.cpp's speed",
            flush=True,
        )
        record[name] = {"runs": found[name], "ratios": ratios}
    if args.json:
        write_record(args.json, "requantize_speed", record)


if __name__ == "__main__":
    main()

"""Speed of exact re-blocking on one thread, for each kind of source.

    python -m tests.benchmarks.reblock_speed [--weights 400e6] [--repeat 3]

encodes the integers of one large tensor per kind, tile by tile as `recover reblock` does, and
prints the best of several runs, then the same with the verification. Time is the processor's, not
the clock's; sources are in memory. Then the whole command converts two Grok-1 checkpoints of one
layer, the second with eight times as large experts, and its largest anonymous memory is printed
(mapped input pages do not count). In between: the error of the usual way to Q8_0.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gguf.quants
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType

from recover.quants import dequantize
from recover.reblock.integers import tile_size
from recover.reblock.source import OriginalTensor
from tests.benchmarks.merge_speed import measure
from tests.support.reblock_files import example
from tests.support.reblock_sources import SOURCES

EXAMPLE = Path(__file__).parents[2] / "examples" / "make_grok_checkpoint.py"


def seconds(tensor: OriginalTensor, *, verify: bool) -> float:
    """Time for all tiles of a tensor."""
    step = tile_size(tensor.dims[0])
    out = np.empty(tensor.outtype.n_bytes(step), np.uint8)
    start = time.process_time()
    for first in range(0, tensor.n_weights, step):
        last = min(first + step, tensor.n_weights)
        raw = out[: tensor.outtype.n_bytes(last - first)]
        tensor.encode(first, last, raw)
        if verify and tensor.reference is not None:
            expected = tensor.reference(first, last)
            decoded = dequantize(raw, tensor.outtype)
            found = decoded if tensor.beside is None else decoded * np.float64(tensor.beside[0])
            assert (found == expected).all() or tensor.outtype.name == "Q4_1"
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=float, default=400e6)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    speeds(args.weights, args.repeat)
    naive()
    memory()


def naive() -> None:
    """Print the error of the usual way, by gguf-py: float32 to bfloat16, float16, Q8_0."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 6144, 1024)) / np.sqrt(6144)
    quantized = example().quantize(x, 1)
    truth = (quantized.weight * quantized.scales.astype(np.float64))[0].T
    stored = quantized.weight.astype(ml_dtypes.bfloat16) * quantized.scales
    halves = stored[0].T.astype(np.float16).astype(np.float32)
    q8_0 = GGMLQuantizationType.Q8_0
    found = gguf.quants.dequantize(gguf.quants.quantize(halves, q8_0), q8_0).astype(np.float64)
    error = np.sqrt(np.square(found - truth).mean() / np.square(truth).mean())
    exact = np.count_nonzero(found == truth) / truth.size
    print(f"naive Q8_0: relative rms error {error:.2e}, {exact:.1%} of the weights exact")


def memory() -> None:
    """Print what the command needs for a small and a large tensor."""
    with tempfile.TemporaryDirectory() as scratch:
        for run, n_ff in enumerate((1024, 1024, 8192)):
            folder, output = Path(scratch) / "model", Path(scratch) / "out.gguf"
            sizes = ["--layers", "1", "--embd", "1024", "--ff", str(n_ff)]
            command = [sys.executable, str(EXAMPLE), str(folder), *sizes, "--vocab", "64"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            command = [sys.executable, "-m", "recover", "reblock", str(folder), "-o", str(output)]
            command += ["--hparams", str(folder / "hparams.json"), "--threads", "2"]
            for more in ([], ["--no-verify"]):
                seconds, largest = measure([*command, *more])
                if run:  # the first one compiles
                    print(
                        f"tensors of {8 * 1024 * n_ff / 1e6:.0f}M weights{' '.join(['', *more])}:"
                        f" {largest:.0f} MiB, {seconds:.1f} s"
                    )


def speeds(n_weights: float, n_runs: int) -> None:
    """Print the speed of each kind of source."""
    print("million weights/s of one core:      exact repack   with verification")
    for name, make in SOURCES.items():
        seconds(make(1e6), verify=True)  # compile
        tensor = make(n_weights)
        best = min(seconds(tensor, verify=False) for _ in range(n_runs))
        checked = seconds(tensor, verify=True)
        n = tensor.n_weights / 1e6
        print(f"{name:32}  {n / best:12.0f}   {n / checked:17.0f}")


if __name__ == "__main__":
    main()

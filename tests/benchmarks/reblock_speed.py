"""Speed of exact re-blocking on one thread, for each kind of source.

    python -m tests.benchmarks.reblock_speed [--weights 400e6] [--repeat 3]

encodes the integers of one large tensor per kind, tile by tile as `recover reblock` does, and
prints the best of several runs, then the same with the verification. Time is the processor's, not
the clock's; sources are in memory.
"""

import argparse
import time

import numpy as np

from recover.quants import dequantize
from recover.reblock.integers import tile_size
from recover.reblock.source import SourceTensor
from tests.reblock_sources import SOURCES


def seconds(tensor: SourceTensor, *, verify: bool) -> float:
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
            assert (decoded == expected).all() or tensor.outtype.name == "Q4_1"
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=float, default=400e6)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    print("million weights/s of one core:      exact repack   with verification")
    for name, make in SOURCES.items():
        seconds(make(1e6), verify=True)  # compile
        tensor = make(args.weights)
        best = min(seconds(tensor, verify=False) for _ in range(args.repeat))
        checked = seconds(tensor, verify=True)
        n = tensor.n_weights / 1e6
        print(f"{name:32}  {n / best:12.0f}   {n / checked:17.0f}")


if __name__ == "__main__":
    main()

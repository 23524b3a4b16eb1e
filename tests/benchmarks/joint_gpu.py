"""Speed of the method `joint` where a GPU is, and how far its figures are from those of the CPU.

    python -m tests.benchmarks.joint_gpu [--weights 200e6] [--threads 16] [--rounds 5]

prints weights a second, from stored bytes to estimates in memory, and the largest difference to the
kernels on the CPU, in deviations.
"""

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from recover.estimators import TileEstimator, _joint_gpu
from recover.estimators.methods import joint
from recover.quants import TILE, F32Array, quantize
from tests.support.joint_inputs import sources_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", default="Q5_K+Q4_K+Q2_K")
    parser.add_argument("--weights", type=float, default=200e6)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rng, sources = np.random.default_rng(0), sources_of(args.types)
    x = (0.02 * rng.standard_t(8, (TILE // 256, 256))).astype(np.float32)
    raws = [quantize(x, each.type) for each in sources]
    n_tiles = max(1, round(args.weights / TILE))

    def work(n: int) -> F32Array:
        tile, out = TileEstimator(sources, "joint"), np.empty(TILE, np.float32)
        for _ in range(n):
            tile.estimate(raws, 0, TILE, out, np.empty_like(out))
        return out

    on_gpu = work(1)
    print(f"device: {_joint_gpu.device() or 'cpu'}")
    with ThreadPoolExecutor(args.threads) as threads:
        list(threads.map(work, [1] * args.threads))
        for _ in range(args.rounds):
            start = time.perf_counter()
            share = n_tiles // args.threads + 1
            list(threads.map(work, [share] * args.threads))
            seconds = time.perf_counter() - start
            print(f"{share * args.threads * TILE / seconds / 1e6:.1f} million weights/s")
    vars(joint)["device"] = lambda: None
    tile, out = TileEstimator(sources, "joint"), np.empty(TILE, np.float32)
    deviation = np.empty_like(out)
    start = time.process_time()
    tile.estimate(raws, 0, TILE, out, deviation)
    print(f"CPU: {TILE / (time.process_time() - start) / 1e6:.2f} million weights/s a core")
    far = np.max(np.abs(out - on_gpu) / np.maximum(deviation, 1e-12))
    print(f"largest difference: {far:.1e} deviations ({_joint_gpu.__name__})")


if __name__ == "__main__":
    main()

"""How fast types with hidden scales are read and merged.

    python -m tests.benchmarks.hidden_speed ../shared/golden-ik/llama-29m

Million weights per second of processor time, of one thread, over the largest matrix of the folder:
the cells that the inputs have together, and a merge by each method. The best of several rounds.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from recover.containers.gguf.reader import open_gguf
from recover.containers.model import Model, StoredTensor
from recover.estimators.tile import TileEstimator
from recover.evidence.buffer import Source
from recover.evidence.intervals import Intervals
from recover.inputs.provenance import source_of
from recover.quants import TILE

SETS = (("IQ4_K", "Q4_K"), ("IQ4_K", "IQ4_KS", "Q4_K"), ("IQ5_K", "IQ4_K"), ("IQ2_K", "Q4_K"))
METHODS = ("linear", "posterior")
N_ROUNDS = 7


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest round; the first one compiles and does not count."""
    work()
    seconds = []
    for _ in range(N_ROUNDS):
        start = time.thread_time()
        work()
        seconds.append(time.thread_time() - start)
    return min(seconds)


def bounds_of(tensors: Sequence[StoredTensor], n: int) -> float:
    """Weights per second."""
    intervals = Intervals()
    intervals.look_at(tensors)
    return n / fastest(lambda: intervals.bound(0, n))


def merges(tensors: Sequence[StoredTensor], sources: Sequence[Source], n: int, name: str) -> float:
    """Weights per second of a method."""
    tile = TileEstimator(sources, name)
    out, deviation = np.empty(n, np.float32), np.empty(0, np.float32)
    return n / fastest(lambda: tile.estimate(tensors, 0, n, out, deviation))


def main(folder: Path) -> None:
    """Print a line for each set of types."""
    print(f"{'inputs':24} {'bounds':>9} " + " ".join(f"{method:>9}" for method in METHODS))
    for names in SETS:
        models: list[Model] = [open_gguf(folder / f"ik-{name}.gguf") for name in names]
        name = max(models[0].tensors.values(), key=lambda each: each.n_weights).name
        tensors = [model.tensors[name] for model in models]
        sources = [source_of(*each) for each in zip(models, tensors, strict=True)]
        n = min(tensors[0].n_weights, TILE)
        speeds = [bounds_of(tensors, n)]
        speeds += [merges(tensors, sources, n, method) for method in METHODS]
        print(f"{' + '.join(names):24} " + " ".join(f"{each / 1e6:9.1f}" for each in speeds))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

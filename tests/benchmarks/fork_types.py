"""What types of ik_llama.cpp are worth in a merge, on trained weights.

    python -m tests.benchmarks.fork_types ../shared/golden-ik/llama-29m

A folder has matrices of one model, ``ik-truth.gguf`` and a file ``ik-TYPE.gguf`` for each type;
others than the golden one are made by `tests.golden.make_ik_folders`. Sets whose types it lacks are
left out. Prints, by set of types and method, the mean square error over that of the best input, the
expected over the measured error, and the weights that lie outside the bounds of all inputs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recover.containers.gguf.reader import open_gguf
from recover.containers.model import Model, StoredTensor
from recover.estimators.tile import TileEstimator
from recover.evidence.intervals import Intervals
from recover.inputs.provenance import source_of
from recover.quants import F32Array

SETS = (
    *(("IQ4_KT", "IQ3_KT"), ("IQ4_KT", "Q4_K"), ("IQ4_K", "Q4_K"), ("IQ4_K", "IQ4_KS", "Q4_K")),
    *(("IQ4_KT", "IQ4_K", "IQ4_KS", "Q4_K"), ("IQ4_K", "IQ4_KS"), ("IQ4_KT", "IQ4_K")),
    *(("IQ2_KT", "IQ2_K"), ("IQ4_KT", "IQ3_KT", "IQ2_KT"), ("IQ4_KSS", "Q4_K"), ("IQ5_K", "Q4_K")),
    *(("IQ3_K", "IQ3_KS"), ("IQ6_K", "IQ5_K"), ("IQ5_KS", "IQ4_KS"), ("IQ2_KL", "IQ3_KT")),
    *(("IQ2_K", "Q4_K"), ("IQ4_K_R4", "Q4_K")),
)
SINGLE = (
    *("IQ2_K", "IQ3_K", "IQ4_K", "IQ5_K", "IQ6_K", "IQ3_KS", "IQ4_KS", "IQ5_KS"),
    *("IQ4_KSS", "IQ2_KL", "IQ2_KT", "IQ3_KT", "IQ4_KT"),
)
METHODS = ("linear", "midpoint", "posterior")


class Result(NamedTuple):
    """Sums over the weights of all matrices."""

    error: float
    """Squared, of the estimate."""
    expected: float
    """The same, as it is expected."""
    alone: tuple[float, ...]
    """Of each input decoded."""
    n_outside: int
    """Weights outside the bounds that the inputs have together."""

    @property
    def ratio(self) -> float:
        """Of the error to that of the best input."""
        return self.error / min(self.alone)

    @property
    def claim(self) -> float:
        """The expected over the measured error."""
        return self.expected / self.error


def merge(folder: Path, names: Sequence[str], method: str) -> Result:
    """Merge all matrices of a folder."""
    truth = open_gguf(folder / "ik-truth.gguf")
    models: list[Model] = [open_gguf(folder / f"ik-{name}.gguf") for name in names]
    error = expected = 0.0
    alone, n_outside = np.zeros(len(names)), 0
    for name, original in truth.tensors.items():
        tensors = [model.tensors[name] for model in models]
        sources = [source_of(*each) for each in zip(models, tensors, strict=True)]
        n = original.n_weights
        x, out = original.read(0, n), np.empty(n, np.float32)
        tally = TileEstimator(sources, method).estimate(tensors, 0, n, out, np.empty(0, np.float32))
        error += _square(out - x)
        expected += tally.variance
        alone += [_square(each.read(0, n) - x) for each in tensors]
        n_outside += _n_outside(tensors, x)
    return Result(error, expected, tuple(map(float, alone)), n_outside)


def _n_outside(tensors: Sequence[StoredTensor], x: F32Array) -> int:
    intervals = Intervals()
    intervals.look_at(tensors)
    lower, upper = intervals.bound(0, x.size)
    return int(np.count_nonzero((x < lower) | (x > upper)))


def _square(off: F32Array) -> float:
    return float(np.sum(np.square(off, dtype=np.float64)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    stored = {path.stem.removeprefix("ik-") for path in folder.glob("ik-*.gguf")}
    sets = [*SETS, *((name,) for name in SINGLE)]
    for names in (each for each in sets if stored.issuperset(each)):
        found = [merge(folder, names, method) for method in METHODS]
        figures = " | ".join(f"{each.ratio:.4f}, {each.claim:.3f}" for each in found)
        print(f"| {' + '.join(names):32} | {figures} | {found[-1].n_outside} |", flush=True)


if __name__ == "__main__":
    main()

"""How near intervals come to grids: types of GGUF whose cells are stated without their grid.

    python -m tests.benchmarks.stated_intervals MODEL.gguf

quantizes weights of the first matrices of an unquantized model and merges them twice: as grids, and
as intervals that have the density of typical codes. Prints, by set of types and method, the error
over that of the grids, the root mean square difference of both over the root mean square error, the
expected over the measured error of both, and the processor time of the estimator over that of the
grids.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recover.containers.gguf.reader import open_gguf
from recover.containers.gguf.tensor import Tensor
from recover.estimators import Request, Tally, estimator
from recover.evidence.buffer import EvidenceBuffer, Source
from recover.quants import F32Array, IntervalTensor, quantize, type_by_name
from tests.support.stated_intervals import state, tensor_of

SETS = (
    *(("Q5_0",), ("Q4_0",), ("Q8_0",), ("Q6_K",), ("Q5_K",)),
    *(("Q5_0", "Q4_0"), ("Q6_K", "Q4_0"), ("Q8_0", "Q6_K"), ("Q5_K", "Q4_K", "Q2_K")),
)
_N_TENSORS, _N_EACH, _N_RUNS = 4, 131_072, 10


def merge(
    inputs: Sequence[Tensor | IntervalTensor], method: str, n: int
) -> tuple[F32Array, float, float]:
    """Estimates, the mean square error to expect, and the seconds that the estimator takes."""
    evidence = EvidenceBuffer([Source(each.type) for each in inputs]).read(inputs, 0, n)
    out, seconds = np.empty(n, np.float32), []
    for _ in range(_N_RUNS):
        tally, start = Tally.zeros(len(inputs)), time.process_time()
        estimator(method).estimate(evidence, out, tally, Request())
        seconds.append(time.process_time() - start)
    return out, tally.variance / n, min(seconds)


def mean_square(off: F32Array) -> float:
    return float(np.mean(np.square(off.astype(np.float64))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    model = open_gguf(parser.parse_args().model)
    matrices = [t for t in model.tensors.values() if "ffn" in t.name and t.n_weights >= _N_EACH]
    x = np.concatenate([each.read(0, _N_EACH) for each in matrices[:_N_TENSORS]])
    for mix in SETS:
        raws = [quantize(x.reshape(-1, 256), type_by_name(name)) for name in mix]
        pairs = list(zip(raws, mix, strict=True))
        for method in ("best", "linear", "midpoint", "posterior"):
            grids = [tensor_of(*each, x.size) for each in pairs]
            grid, of_grid, usual = merge(grids, method, x.size)
            stated = [state(*each, x.size) for each in pairs]
            out, expected, seconds = merge(stated, method, x.size)
            error, own = mean_square(grid - x), mean_square(out - x)
            print(
                f"{'+'.join(mix):14} {method:9} error {own / error:.4f},"
                f" difference {(mean_square(out - grid) / error) ** 0.5:.4f},"
                f" expected {expected / own:.3f} (grids {of_grid / error:.3f}),"
                f" time {seconds / usual:.2f}"
            )


if __name__ == "__main__":
    main()

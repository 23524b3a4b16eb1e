"""What formats of Hugging Face folders are worth beside GGUF types.

    python -m tests.benchmarks.foreign MODEL.gguf [WORD...]

quantizes the matrices of one block of an unquantized model and merges them. Prints, by set of
inputs and method, the mean square error over that of the best single input, the expected over the
measured error before and after what random weights correct of it (see
`recover.estimators.error_calibration`), and the share of conflicts; of each format the error
relative to the weights, the expected over the measured one, how many weights lie outside of their
bounds, and how fast intervals are stated. Only sets that have one of the words in their names, if
there are any.
"""

import argparse
import pkgutil
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from recover.containers.gguf.reader import open_gguf
from recover.containers.huggingface.formats import Matrix
from recover.containers.huggingface.rows import Rows
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.estimators.error_calibration import calibrate_errors, kurtosis_of
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Source
from recover.quants import TILE, F32Array, ScalarType, Stated, quantize, type_by_name
from tests.benchmarks import foreign_rows
from tests.benchmarks.record import write_record
from tests.support.foreign_modules import n_outside, rounded, state
from tests.support.stated_intervals import tensor_of

_N_RUNS = 5
METHODS = "linear", "midpoint", "posterior"
Formats = dict[str, Callable[[F32Array], Matrix]]


def discovered() -> tuple[Formats, list[tuple[str, ...]]]:
    """All formats and sets."""
    formats: Formats = {}
    sets: list[tuple[str, ...]] = []
    for found in sorted(each.name for each in pkgutil.iter_modules(foreign_rows.__path__)):
        module = import_module(f"{foreign_rows.__name__}.{found}")
        formats |= module.FORMATS
        sets += module.SETS
    return formats, sets


def squares(off: F32Array) -> float:
    return float(np.sum(np.square(off.astype(np.float64))))


def timed(matrix: Matrix) -> float:
    """Seconds of the processor to state all intervals, tile by tile."""
    n = matrix.n_rows * matrix.row_length
    stated = np.empty((4, min(n, TILE)), np.float32)
    start = time.process_time()
    for first in range(0, n, TILE):
        last = min(first + TILE, n)
        matrix.intervals(first, last, Stated(*stated[:, : last - first]))
    return time.process_time() - start


class Cases:
    """The matrices, each quantized once in every way that is asked for."""

    def __init__(self, matrices: Sequence[F32Array], formats: Formats) -> None:
        self.matrices, self._formats = matrices, formats
        self._made: dict[str, list[Any]] = {}

    def __getitem__(self, name: str) -> list[Any]:
        """Every matrix in one format."""
        if name not in self._made:
            self._made[name] = [self._quantized(name, w) for w in self.matrices]
        return self._made[name]

    def _quantized(self, name: str, w: F32Array) -> Any:
        if name in self._formats:
            return self._formats[name](w)
        return tensor_of(quantize(w, type_by_name(name)), name, w.size)

    @property
    def n_weights(self) -> int:
        return sum(w.size for w in self.matrices)

    def alone(self, name: str) -> float:
        """The mean square error of the decoded weights."""
        return self.merge((name,), "best")["error"]

    def merge(self, names: Sequence[str], method: str) -> dict[str, float]:
        """Mean square error, that which is expected, also corrected, and the share of conflicts."""
        inputs = [[_of_folder(each) for each in self[name]] for name in names]
        sources = [Source(each[0].type, has_cells=_has_cells(each[0])) for each in inputs]
        estimator = UncorrectedTileEstimator(sources, method)
        error_calibration = calibrate_errors(tuple(sources), method)
        error = expected = corrected = conflicts = 0.0
        for w, *tensors in zip(self.matrices, *inputs, strict=True):
            for start in range(0, w.size, TILE):
                part = w.reshape(-1)[start : start + TILE]
                out = np.empty_like(part)
                tally = estimator.estimate(tensors, start, start + part.size, out)
                error += squares(out - part)
                expected += tally.variance
                conflicts += tally.n_conflicts
                error_calibration.correct(tally.array[None], kurtosis_of(out))
                corrected += tally.variance
        sums = {
            "error": error,
            "expected": expected,
            "corrected": corrected,
            "conflicts": conflicts,
        }
        return {name: each / self.n_weights for name, each in sums.items()}

    def describe(self, name: str) -> dict[str, float]:
        """What a format says of the matrices, compared with the truth."""
        outside, error, expected, seconds = 0, 0.0, 0.0, 0.0
        for w, matrix in zip(self.matrices, self[name], strict=True):
            stated = state(matrix)
            seconds += min(timed(matrix) for _ in range(_N_RUNS))
            seen = rounded(w, matrix.seen_as)
            outside += n_outside(stated, seen) if matrix.has_cells else 0
            error += squares(stated.value - w.reshape(-1))
            expected += float(np.sum(stated.variance, dtype=np.float64))
        power = sum(map(squares, self.matrices))
        return {
            "relative": error / power,
            "expected": expected / error,
            "outside": outside,
            "speed": self.n_weights / seconds,
        }


def _of_folder(made: Any) -> Any:
    """A tensor as a merge has it; bounds of matrices are those of the weights before a cast."""
    if isinstance(made.type, ScalarType):
        return made
    return QuantizedTensor("weight", (made.row_length, made.n_rows), (Rows(made),), 0)


def _has_cells(tensor: Any) -> bool:
    return isinstance(tensor.type, ScalarType) or tensor.has_cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("words", nargs="*", metavar="WORD", help="sets to choose")
    parser.add_argument("--block", type=int, default=3, help="default: 3")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    args = parser.parse_args()
    prefix = f"blk.{args.block}."
    tensors = open_gguf(args.model).tensors.values()
    cases = Cases(
        [
            tensor.read(0, tensor.n_weights).reshape(tensor.info.dims[::-1])
            for tensor in tensors
            if tensor.name.startswith(prefix) and len(tensor.info.dims) == 2
        ],
        discovered()[0],
    )
    chosen = [
        each
        for each in discovered()[1]
        if not args.words or any(word in "+".join(each) for word in args.words)
    ]
    figures: dict[str, Any] = {}
    for name in dict.fromkeys(name for each in chosen for name in each):
        if name in discovered()[0]:
            figures[name] = found = cases.describe(name)
            print(
                f"{name:20} relative error {found['relative']:.3e}, expected"
                f" {found['expected']:.3f}, outside {found['outside']},"
                f" {found['speed'] / 1e6:.0f} million a second"
            )
    for names in chosen:
        best = min(map(cases.alone, names))
        for method in METHODS:
            found = cases.merge(names, method)
            ratio = found["error"] / best
            expected, corrected = (found[key] / found["error"] for key in ("expected", "corrected"))
            figures[f"{'+'.join(names)} {method}"] = {
                "ratio": ratio,
                "expected": expected,
                "corrected": corrected,
                "conflicts": found["conflicts"],
            }
            print(
                f"{'+'.join(names):32} {method:9} {ratio:.4f}, expected {expected:.3f},"
                f" corrected {corrected:.3f}, conflicts {found['conflicts']:.1e}",
                flush=True,
            )
    if args.json:
        write_record(args.json, "foreign", figures)


if __name__ == "__main__":
    main()

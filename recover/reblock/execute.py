"""Carrying out a re-blocking: threads encode tiles, write them, read them back and compare."""

import json
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._text import quoted
from recover.errors import ReblockError
from recover.execution.output import OutputFile
from recover.execution.tiles import Progress, Tile, available_cores, for_each_tile
from recover.quants import F32Array, U8Array, dequantize, types_of_integers
from recover.reblock.plan import ReblockPlan
from recover.reblock.source import OriginalTensor

F64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class TensorResult:
    """What became of a tensor.

    Attributes
    ----------
    tensor : OriginalTensor
        What was written.
    verified : bool
        Whether every written weight was decoded again and compared with the source.
    exact : bool
        Whether every weight is what the source means: measured if `verified`, else as the source
        promises.
    n_different : int
        Weights that differ from the source, if `verified`.
    relative_rmse : float
        Root mean square error relative to that of the weights, if `verified`.
    max_error : float
        Largest error of a weight, if `verified`.
    """

    tensor: OriginalTensor
    verified: bool
    exact: bool
    n_different: int
    relative_rmse: float
    max_error: float

    @property
    def reason(self) -> str:
        """Why it is exact or not, and how large the error is."""
        if self.exact or not self.verified or not self.n_different:
            return self.tensor.reason
        error = (
            f"{self.n_different} of {self.tensor.n_weights} weights differ,"
            f" relative rms error {self.relative_rmse:.3g}, at most {self.max_error:.3g}"
        )
        return "; ".join(filter(None, (self.tensor.reason, error)))

    def to_json(self) -> dict[str, Any]:
        """One entry of the document that ``recover reblock --json`` prints."""
        return {
            "name": self.tensor.name,
            "from": self.tensor.stored_as,
            "to": self.tensor.outtype.name,
            "group": self.tensor.group,
            "exact": self.exact,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class ReblockResult:
    """What a re-blocking did.

    Attributes
    ----------
    plan : ReblockPlan
        What was carried out.
    tensors : tuple of TensorResult
        In output order.
    seconds : float
        Wall time, verification included.
    """

    plan: ReblockPlan
    tensors: tuple[TensorResult, ...]
    seconds: float

    @property
    def exact(self) -> bool:
        """Whether every weight of every tensor is what the source means."""
        return all(tensor.exact for tensor in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """The document that ``recover reblock --json`` prints."""
        document = {
            "source": str(self.plan.source.path),
            "output": str(self.plan.output),
            "exact": self.exact,
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }
        warnings = list(self.plan.source.warnings)
        return document | ({"warnings": warnings} if warnings else {})

    def report(self) -> dict[str, Any]:
        """The document beside the output: what is proven, how, and under which conditions."""
        entries = [
            tensor.to_json()
            | {
                "shape": list(tensor.tensor.dims),
                "n_weights": tensor.tensor.n_weights,
                "verified": tensor.verified,
            }
            | (
                {
                    "n_different": tensor.n_different,
                    "relative_rmse": tensor.relative_rmse,
                    "max_error": tensor.max_error,
                }
                if tensor.verified
                else {}
            )
            for tensor in self.tensors
        ]
        return self.to_json() | {
            "n_bytes": self.plan.n_bytes,
            "conditions": list(self.plan.source.conditions),
            "left_out": list(self.plan.source.left_out),
            "verification": (
                "every written tensor was read back, decoded and compared with code x scale in"
                " float64 (tensors that are copied: byte by byte)"
                if all(tensor.verified for tensor in self.tensors)
                else "none: what is said here follows from the formats, nothing was decoded again"
            ),
            "tensors": entries,
        }


def execute_reblock(
    plan: ReblockPlan,
    *,
    verify: bool = True,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> ReblockResult:
    """Carry out a plan; the output and its report appear only when all of it holds.

    Parameters
    ----------
    plan : ReblockPlan
        From `plan_reblock`.
    verify : bool
        Read every tile back, decode it and compare it with the source. Tensors that are not exact
        are always measured.
    n_threads, progress : optional
        See `recover.execution.tiles`.

    Returns
    -------
    ReblockResult

    Raises
    ------
    OutputError
        If the output cannot be written.
    ReblockError
        If a tensor that was to be exact is not, or cannot be stored.
    """
    start = time.perf_counter()
    tensors = plan.source.tensors
    tallies = [_Tally() for _ in tensors]
    inputs = plan.source.parts
    with (
        OutputFile(plan.report, 0, inputs) as report,
        OutputFile(plan.output, plan.n_bytes, inputs) as output,
    ):
        output.write_at(0, plan.header)
        n_workers = n_threads or available_cores()
        workers = [_Worker(plan, output, tallies, verify=verify) for _ in range(n_workers)]
        for_each_tile(
            [tensor.n_weights for tensor in tensors],
            [worker.work for worker in workers],
            progress,
            plan.tile_sizes,
        )
        results = tuple(map(_judge, tensors, tallies))
        seconds = time.perf_counter() - start
        result = ReblockResult(plan, results, seconds)
        report.write_at(0, json.dumps(result.report(), indent=2).encode())
    return result


class _Tally:
    """What the comparison of a tensor's tiles adds up to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.n_compared = 0
        self.n_different = 0
        self.squared_error = 0.0
        self.squared_weight = 0.0
        self.max_error = 0.0
        self.example = ""

    def add(
        self, first: int, decoded: F32Array | F64Array, expected: F64Array, same: BoolArray
    ) -> None:
        """Count a tile of a tensor that is to be exact, from its weight `first` on."""
        n_different = same.size - int(np.count_nonzero(same))
        with self._lock:
            self.n_compared += same.size
            self.n_different += n_different
            if n_different and not self.example:
                at = int(np.argmin(same))
                self.example = (
                    f"weight {first + at} is {decoded[at]:.9g} instead of {expected[at]:.17g}"
                )

    def measure(self, decoded: F32Array | F64Array, expected: F64Array) -> None:
        """Add a tile's errors."""
        error = np.abs(decoded - expected)
        squares = float(np.square(error).sum()), float(np.square(expected).sum())
        with self._lock:
            self.squared_error += squares[0]
            self.squared_weight += squares[1]
            self.max_error = max(self.max_error, float(error.max()))

    def count_copied(self, n_weights: int) -> None:
        """Count weights whose bytes are those of the source."""
        with self._lock:
            self.n_compared += n_weights

    @property
    def relative_rmse(self) -> float:
        """Error relative to the weights, both as root mean square."""
        if self.squared_weight == 0:
            return 0.0 if self.squared_error == 0 else float("inf")
        return float(np.sqrt(self.squared_error / self.squared_weight))


def _judge(tensor: OriginalTensor, tally: _Tally) -> TensorResult:
    """The result of a tensor; a broken promise is an error."""
    verified = tally.n_compared == tensor.n_weights
    exact = (tally.n_different == 0 if verified else tensor.exact) and tensor.proven
    if tensor.exact and not exact:
        raise ReblockError(
            f"tensor {quoted(tensor.name)}: {tally.n_different} of {tensor.n_weights} weights are"
            f" not what the source means ({tally.example}); nothing was written"
        )
    return TensorResult(
        tensor, verified, exact, tally.n_different, tally.relative_rmse, tally.max_error
    )


def _with_scales_beside(
    tensor: OriginalTensor, tile: Tile, decoded: F32Array
) -> F32Array | F64Array:
    """Decoded weights times the scale of their matrix, if there is one; exact in float64."""
    if tensor.beside is None:
        return decoded
    n_each = tensor.n_weights // tensor.beside.size
    first, last = tile.start // n_each, -(-tile.end // n_each)
    ends = np.minimum(np.arange(first + 1, last + 1) * n_each, tile.end)
    counts = np.diff(ends, prepend=tile.start)
    return decoded * np.repeat(tensor.beside[first:last].astype(np.float64), counts)


class _Worker:
    """One thread's part: encode a tile, write it, read it back, compare."""

    def __init__(
        self, plan: ReblockPlan, output: OutputFile, tallies: list[_Tally], *, verify: bool
    ) -> None:
        self._plan = plan
        self._output = output
        self._tallies = tallies
        self._verify = verify
        self._encoded = np.empty(0, np.uint8)

    def work(self, tile: Tile) -> None:
        """Write and check one tile."""
        tensor = self._plan.source.tensors[tile.tensor]
        n_bytes = tensor.outtype.n_bytes(tile.end - tile.start)
        if self._encoded.size < n_bytes:
            self._encoded = np.empty(n_bytes, np.uint8)
        encoded = self._encoded[:n_bytes]
        tensor.encode(tile.start, tile.end, encoded)
        position = self._plan.positions[tile.tensor] + tensor.outtype.n_bytes(tile.start)
        self._output.write_at(position, encoded.data)
        if self._verify or not tensor.exact:
            self._check(
                tile, tensor, np.frombuffer(self._output.read_at(position, n_bytes), np.uint8)
            )

    def _check(self, tile: Tile, tensor: OriginalTensor, written: U8Array) -> None:
        """Compare what stands in the file with the source."""
        tally = self._tallies[tile.tensor]
        if tensor.reference is None:
            expected_bytes = np.empty(written.size, np.uint8)
            tensor.encode(tile.start, tile.end, expected_bytes)
            if not np.array_equal(written, expected_bytes):
                raise ReblockError(f"tensor {quoted(tensor.name)}: the file holds other bytes")
            tally.count_copied(tile.end - tile.start)
            return
        decoded = _with_scales_beside(tensor, tile, dequantize(written, tensor.outtype))
        expected = tensor.reference(tile.start, tile.end)
        integers = types_of_integers().get(tensor.outtype.name)
        if integers is not None and integers.has_offset:
            # d, m and d * q are exact, but decoders add them in float32: rounded once.
            same = decoded == expected.astype(np.float32)
        else:
            same = decoded == expected
        tally.add(tile.start, decoded, expected, same)
        if not tensor.exact:
            tally.measure(decoded, expected)

"""Whether stored blocks can be what ggml's encoder made: what the bytes allow to check.

Bounds rest on how the codes were chosen, so they hold only if ggml's encoder chose them. Two things
tell of another encoder, or of damage:

- The marks of the encoder (`recover.inputs.provenance`), in every block.
- Encoding the decoded weights again. Of some types (`ScalarType.comes_back`) every block that ggml
  makes without an importance matrix comes back byte for byte. Of others a share does, which depends
  on the weights: so weights like these are made, drawn from the cells, and encoded twice; what ggml
  makes of such weights comes back about as often as these blocks must (`Reencoding`). Codes that
  another encoder chose come back much less often. Types of which neither is known are not encoded.

No check sees a single code of a K-quant that was moved to its neighbour: some weights have it.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._compiled.float16 import all_finite
from recover._compiled.jit import kernel
from recover._text import path_text
from recover.containers.gguf.metadata import QUANTIZER_KEY
from recover.containers.model import Model, StoredTensor
from recover.evidence.intervals import Intervals
from recover.execution.stacks import can_be_stacked, stack_of, stacks
from recover.execution.tiles import Progress, Tile, available_cores, for_each_tile
from recover.inputs.provenance import marks_hold_with_imatrix, uses_imatrix
from recover.quants import F32Array, IntervalType, ScalarType, U8Array, dequantize, quantize

_CONDITION = "if these bytes are what {} made of one original"


def condition_of(models: Sequence[Model]) -> str:
    """What proven bounds depend on, for people."""
    kinds = {type(each.type) for model in models for each in model.tensors.values()}
    encoders = "ggml's encoder and those of the other formats"
    return _CONDITION.format(encoders if IntervalType in kinds else "ggml's encoder")


_SURE = 5.0  # standard deviations of a share; by chance once in millions of tensors
_FEWEST_BLOCKS = 64  # whose share says something
# Blocks that are encoded again: so many runs, evenly spaced, of so many.
_N_RUNS, _RUN = 8, 128
_SMALLEST_SCALE = 2.0**-18  # of a float16 with 7 bits


@dataclass(frozen=True)
class SourceCheck:
    """What was checked of one tensor in one input."""

    path: str
    type: str
    """The input, and how it stores the tensor."""
    n_blocks: int
    n_without_mark: int
    """Blocks whose marks were looked at, and those without; 0 for types without marks, or where an
    importance matrix leaves none."""
    n_encoded: int
    n_same: int
    """Blocks whose decoded weights were encoded again, and those that came back."""
    expected_share: float | None
    """Share of the blocks that come back where ggml makes them of weights like these; None if
    nothing was encoded."""
    failed: str | None
    """Why ggml's encoder did not make all of these blocks; None if nothing shows it."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def check_sources(
    sources: Sequence[tuple[Model, StoredTensor]],
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> list[SourceCheck]:
    """Check quantized tensors, each with the model that it is from.

    Parameters
    ----------
    sources : sequence of (Model, StoredTensor)
        Tensors of scalar types.
    n_threads, progress : optional
        See `recover.execution.tiles`.

    Returns
    -------
    list of SourceCheck
        In the same order.
    """
    jobs = [_Job(model, tensor) for model, tensor in sources]
    told = ((i, job.tensor.n_weights, job.kind_of_stack()) for i, job in enumerate(jobs))
    together = [[jobs[i] for i in stack] for stack in stacks(told)]
    workers = [_Worker(together) for _ in range(n_threads or available_cores())]
    if jobs:
        sizes = [len(each) * each[0].tensor.n_weights for each in together]
        for_each_tile(sizes, [worker.work for worker in workers], progress)
    return [job.result() for job in jobs]


_NO_RUNS = np.empty((0, 3))


class _Job:
    """One tensor, and the counts of its tiles: their order is of no consequence."""

    def __init__(self, model: Model, tensor: StoredTensor) -> None:
        assert isinstance(tensor.type, ScalarType)
        self.path, self.tensor, self.kind = path_text(model.path), tensor, tensor.type
        self.weighted = uses_imatrix(model)
        self.is_other = QUANTIZER_KEY in model.metadata
        self.has_marks = not (self.weighted or self.is_other) or marks_hold_with_imatrix(self.kind)
        self.counts: list[tuple[int, ...]] = []
        self.runs = _NO_RUNS

    def kind_of_stack(self) -> Hashable:
        """What tensors have in common that are checked together; None of one that is not."""
        same = self.kind, self.weighted, self.is_other, self.has_marks
        return same if can_be_stacked(self.tensor) else None

    def result(self) -> SourceCheck:
        n_blocks, n_without, n_encoded, n_same = map(sum, zip((0,) * 4, *self.counts, strict=True))
        failed, expected = None, 1.0 if n_encoded else None
        if n_without:
            failed = f"{n_without:,} of {n_blocks:,} blocks lack the mark of ggml's encoder"
            if not (marks_hold_with_imatrix(self.kind) or self.weighted):
                failed += " without an importance matrix, and the metadata name none"
        elif n_same < n_encoded:
            failed = f"{n_encoded - n_same:,} of {n_encoded:,} blocks are not what encoding gives"
        if self.runs.size:
            n_encoded, n_same, n_expected = self.runs.sum(0)
            expected = n_expected / n_encoded
            failed = failed or self._failed_runs()
        n_encoded, n_same = int(n_encoded), int(n_same)
        return SourceCheck(
            self.path, self.kind.name, n_blocks, n_without, n_encoded, n_same, expected, failed
        )

    def _failed_runs(self) -> str | None:
        """Whether too few blocks come back, of all that were encoded or of one run."""
        for runs in (self.runs.sum(0)[None], self.runs):
            for n, n_same, n_expected in runs[runs[:, 0] >= _FEWEST_BLOCKS]:
                share, expected = n_same / n, n_expected / n
                if share < self._fewest(expected, n):
                    where = "blocks" if runs is not self.runs else "consecutive blocks"
                    return (
                        f"of {n:,.0f} {where} {share:.1%} come back when they are encoded again,"
                        f" where {expected:.1%} of ggml's do"
                    )
        return None

    def _fewest(self, expected: float, n: float) -> float:
        """The smallest share that ggml's encoder explains, chance included."""
        # What was drawn has a share of its own, by chance.
        expected -= _SURE / 2 * math.sqrt(max(expected * (1 - expected), 1 / n) / n)
        known = self.kind.reencoding
        assert known is not None
        fewest = expected - known.slope * (1 - expected) - known.margin
        if self.weighted:
            fewest = known.weighted * expected
        return fewest - _SURE * math.sqrt(max(fewest * (1 - fewest), 1 / n) / n)


class _Worker:
    """One thread's part."""

    def __init__(self, together: Sequence[Sequence[_Job]]) -> None:
        self._together = together
        self._at = -1
        self._intervals = Intervals()

    def work(self, tile: Tile) -> None:
        """Check one tile; with the first one also the sample of the tensor."""
        jobs = self._together[tile.tensor]
        if tile.tensor != self._at:
            self._at, self._tensor = tile.tensor, stack_of([job.tensor for job in jobs])
        job, kind = jobs[0], jobs[0].kind
        raw = self._tensor.part(tile.start, tile.end)
        counts = np.zeros((len(jobs), 4), np.int64)
        if job.has_marks and kind.marks is not None:
            usable, marked = kind.marks(raw.reshape(-1, kind.type_size))
            counts[:, 0] = np.count_nonzero(usable.reshape(len(jobs), -1), axis=1)
            without = (usable & ~marked).reshape(len(jobs), -1)
            counts[:, 1] = np.count_nonzero(without, axis=1)
        if kind.comes_back and not (job.weighted or job.is_other):
            same = _come_back(raw, kind).reshape(len(jobs), -1)
            counts[:, 2], counts[:, 3] = same.shape[1], np.count_nonzero(same, axis=1)
        for each, row in zip(jobs, counts.tolist(), strict=True):
            each.counts.append(tuple(row))
            if tile.start == 0 and kind.reencoding is not None and not job.is_other:
                each.runs = self._sample(each)

    def _sample(self, job: _Job) -> NDArray[np.float64]:
        """Runs of blocks: how many were encoded, come back, and are expected to."""
        self._intervals.look_at([job.tensor])
        rng = np.random.default_rng(0)
        rows = []
        for start, end in _runs(job.tensor.n_weights, job.kind.block_size):
            raw = job.tensor.part(start, end)
            usable = _is_usable(raw, job.kind)
            lower, upper = self._intervals.bound(start, end)
            like = _draw(raw, job.kind, lower, upper, rng).reshape(-1, job.kind.block_size)
            like[~usable] = 0
            like_raw = quantize(like, job.kind)
            n = np.count_nonzero(usable)
            come_back = [_come_back(each, job.kind) & usable for each in (raw, like_raw)]
            rows.append((n, *(np.count_nonzero(each) for each in come_back)))
        found = np.array(rows, np.float64).reshape(-1, 3)
        return found[found[:, 0] > 0]


def _runs(n_weights: int, block_size: int) -> list[tuple[int, int]]:
    """First and last weight of the runs of blocks that are encoded again."""
    n_blocks = n_weights // block_size
    if n_blocks <= _N_RUNS * _RUN:
        pairs = [(start, min(start + _RUN, n_blocks)) for start in range(0, n_blocks, _RUN)]
    else:
        starts = np.linspace(0, n_blocks - _RUN, _N_RUNS).astype(int)
        pairs = [(int(start), int(start) + _RUN) for start in starts]
    return [(start * block_size, end * block_size) for start, end in pairs]


def _come_back(raw: U8Array, kind: ScalarType) -> NDArray[np.bool_]:
    """For each block whether its decoded weights are encoded to it; broken ones are."""
    decoded: F32Array = dequantize(raw, kind).reshape(-1, kind.block_size)
    if not all_finite(decoded.reshape(-1)):
        decoded[~np.isfinite(decoded).all(1)] = 0
    same = np.empty(len(decoded), np.bool_)
    _are_same(decoded, raw, quantize(decoded, kind), same)
    return same


@kernel
def _are_same(decoded: F32Array, raw: U8Array, encoded: U8Array, same: NDArray[np.bool_]) -> None:
    """Which blocks, decoded (n_blocks, block_size), have equal bytes (n_bytes,), or only zeros.

    A block of zeros may have any scale.
    """
    size = raw.size // same.size
    for b in range(same.size):
        is_same = True
        for i in range(b * size, (b + 1) * size):
            is_same = is_same and raw[i] == encoded[i]
        is_zero = True
        for i in range(decoded.shape[1]):
            is_zero = is_zero and decoded[b, i] == 0
        same[b] = is_same or is_zero


def _is_usable(raw: U8Array, kind: ScalarType) -> NDArray[np.bool_]:
    """Blocks whose weights are finite, not all 0, and not so small that scales lose their bits."""
    assert kind.reencoding is not None
    smallest = _SMALLEST_SCALE * kind.reencoding.largest_level
    decoded = dequantize(raw, kind).reshape(-1, kind.block_size)
    with np.errstate(invalid="ignore"):
        largest = np.abs(decoded).max(1)
    usable: NDArray[np.bool_] = np.isfinite(largest) & (largest > smallest)
    return usable


def _draw(
    raw: U8Array, kind: ScalarType, lower: F32Array, upper: F32Array, rng: np.random.Generator
) -> F32Array:
    """Weights like those that the blocks were made from: anywhere in their cells, if closed."""
    decoded: F32Array = dequantize(raw, kind)
    share = rng.random(decoded.size, np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        drawn = lower + share * (upper - lower)
    np.copyto(drawn, decoded, where=~np.isfinite(drawn))
    return drawn

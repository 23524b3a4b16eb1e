"""Error statistics of the weights of models whose original is known.

Quantiles are exact, yet no tensor is ever in memory: the magnitude of a float32, read as an
integer, orders like the number itself, so a first pass counts the upper 16 bits of all errors, and
a second the lower 16 bits of those few upper halves that hold the wanted ranks.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from recover._brief import Brief
from recover._compiled.float16 import f32_bits
from recover._compiled.jit import kernel
from recover._text import path_text, printable, quoted
from recover.containers.gguf.names import role_of
from recover.containers.model import Model, StoredTensor
from recover.errors import EvaluationError
from recover.execution.tiles import (
    OneCount,
    Progress,
    Tile,
    available_cores,
    for_each_tile,
    n_tiles,
)
from recover.inputs.alignment import with_common_rows
from recover.inputs.completion import check_unscaled
from recover.inputs.open import open_model, open_models
from recover.quants import TILE, F32Array, FloatType, OpaqueType

if TYPE_CHECKING:
    from recover.evaluate.divergence import Divergence

GroupBy = Literal["tensor", "type", "role"]

_QUANTILES = (0.5, 0.95)
_HALF = 1 << 16
_MOST_GROUPS = 128


@dataclass(frozen=True)
class ErrorStatistics:
    """How far decoded weights are from the truth."""

    n_weights: int
    """Number of weights."""
    mse: float
    rmse: float
    """Mean square error and its root."""
    max_abs_error: float
    p95_abs_error: float
    median_abs_error: float
    """Largest, 95th percentile and median magnitude of the error (exact; `numpy.quantile`'s linear
    interpolation)."""
    sqnr_db: float
    """Signal to quantization noise: ten times the decimal logarithm of the mean square of the true
    weights over `mse`; infinite without error."""
    exact_fraction: float
    """Share of the weights that equal the truth."""


@dataclass(frozen=True)
class TensorErrors:
    """One tensor's errors."""

    name: str
    type: str
    errors: ErrorStatistics


@dataclass(frozen=True, repr=False)
class ModelErrors(Brief):
    """One model's errors."""

    path: str
    """As given."""
    total: ErrorStatistics
    """Over all compared tensors."""
    tensors: tuple[TensorErrors, ...]
    """In file order."""
    groups: dict[str, ErrorStatistics]
    """Per type or role, if asked for."""
    divergence: "Divergence | None" = None
    """What `measure_divergence` says, where a text was read."""

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "path", Path(self.path).name
        yield "weights", self.total.n_weights
        yield "rmse", self.total.rmse
        yield "mse", self.total.mse
        yield "tensors", len(self.tensors)
        yield "mean_kld", self.divergence and self.divergence.mean_kld

    def rows(self) -> Iterator[Sequence[object]]:
        """See `recover._brief.Brief`."""
        yield "tensor", "type", "weights", "rmse"
        for each in self.tensors:
            yield each.name, each.type, each.errors.n_weights, each.errors.rmse

    def to_json(self) -> dict[str, Any]:
        """One entry of ``models`` in what ``recover evaluate --json`` prints."""
        return {
            "path": self.path,
            "total": asdict(self.total),
            "tensors": [
                {"name": each.name, "type": each.type, **asdict(each.errors)}
                for each in self.tensors
            ],
            "divergence": self.divergence.to_json() if self.divergence else None,
        }


def evaluate_models(
    models: Sequence[str | os.PathLike[str]],
    truth: str | os.PathLike[str],
    *,
    by: GroupBy = "tensor",
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> list[ModelErrors]:
    """Compare models with the original they come from.

    Compared are the tensors that at least one of the models stores quantized; if none does (files
    that are themselves merged or dequantized), all tensors of two or more dimensions.

    Parameters
    ----------
    models : sequence of path-like
        GGUF files or Hugging Face folders.
    truth : path-like
        The original, in any type that can be decoded.
    by : {"tensor", "type", "role"}
        What `ModelErrors.groups` are made by.
    n_threads, progress : optional
        See `recover.execution.tiles`.

    Returns
    -------
    list of ModelErrors

    Raises
    ------
    GGUFError
        If a file cannot be read.
    EvaluationError
        If a tensor is missing from the truth, has another shape there, or holds NaN or infinities.
    """
    original = open_model(truth)
    opened = [model.fitted(original.tensors.keys()) for model in open_models(models)]
    names = _compared(opened)
    original = original.fitted(names)
    check_unscaled(original, names)
    for model in opened:
        check_unscaled(model, names)
        _check_match(model, original, names)
    n_weights = 2 * sum(
        with_common_rows(tensor, original.tensors[name])[0].n_weights
        for model in opened
        for name, tensor in model.tensors.items()
        if name in names
    )
    done = OneCount(progress, n_weights)
    return [
        _evaluate_model(model, original, names, by, _Comparer(n_threads or available_cores(), done))
        for model in opened
    ]


def _compared(models: Iterable[Model]) -> set[str]:
    tensors = [tensor for model in models for tensor in model.tensors.values()]
    quantized = {t.name for t in tensors if not isinstance(t.type, FloatType | OpaqueType)}
    return quantized or {
        t.name for t in tensors if isinstance(t.type, FloatType) and len(t.dims) > 1
    }


def _check_match(model: Model, truth: Model, names: set[str]) -> None:
    here, there = printable(model.path), printable(truth.path)
    kinds = [each.get("general.architecture") for each in (model, truth)]
    if None not in kinds and kinds[0] != kinds[1]:
        raise EvaluationError(
            f"{here}: its architecture is {quoted(str(kinds[0]))}, but {there} is of"
            f" {quoted(str(kinds[1]))}, which lays tensors out in another way; name an original of"
            " the same one"
        )
    for name, tensor in model.tensors.items():
        if name not in names:
            continue
        if name not in truth.tensors:
            raise EvaluationError(f"{there}: has no tensor {quoted(name)}, which {here} has")
        own, original = with_common_rows(tensor, truth.tensors[name])
        if own.n_weights != original.n_weights or own.dims[0] != original.dims[0]:
            raise EvaluationError(
                f"tensor {quoted(name)} has the shape {tensor.dims} in {here},"
                f" but {truth.tensors[name].dims} in {there}"
            )
    if not names & set(model.tensors):
        raise EvaluationError(f"{here}: has no tensor that can be compared with {there}")


def _not_finite(models: Iterable[Model], name: str) -> EvaluationError:
    """Of a tensor that holds NaN or infinite weights in any of these."""
    paths = [printable(model.path) for model in models if _is_broken(model.tensors[name])]
    return EvaluationError(
        f"{' and '.join(paths)}: tensor {quoted(name)} holds NaN or infinite weights"
    )


def _is_broken(tensor: StoredTensor) -> bool:
    ends = ((at, min(at + TILE, tensor.n_weights)) for at in range(0, tensor.n_weights, TILE))
    return any(not np.isfinite(tensor.read(start, end)).all() for start, end in ends)


def _evaluate_model(
    model: Model, truth: Model, names: set[str], by: GroupBy, comparer: "_Comparer"
) -> ModelErrors:
    pairs = [
        with_common_rows(tensor, truth.tensors[name])
        for name, tensor in model.tensors.items()
        if name in names
    ]
    total = _Errors()
    groups: dict[str, _Errors] = {}
    own: list[tuple[StoredTensor, StoredTensor, _Errors, _Errors | None]] = []
    for tensor, original in pairs:
        errors = comparer.first_pass(tensor, original)
        if not np.isfinite(errors.square_error):
            raise _not_finite([model, truth], tensor.name)
        group = None
        if by != "tensor":
            key = tensor.type.name if by == "type" else role_of(tensor.name)
            group = groups.setdefault(key, _Errors())
            if len(groups) > _MOST_GROUPS:
                raise EvaluationError(
                    f"{printable(model.path)}: has more than {_MOST_GROUPS} roles of tensors, for"
                    " which there is no room; take --by tensor"
                )
            group.add(errors)
        total.add(errors)
        errors.find_ranks()
        own.append((tensor, original, errors, group))
    for errors in (total, *groups.values()):
        errors.find_ranks()
    found = []
    for tensor, original, errors, group in own:
        wanting = [each for each in (errors, group, total) if each is not None]
        comparer.second_pass(tensor, original, wanting)
        found.append(TensorErrors(tensor.name, tensor.type.name, errors.statistics()))
        errors.fine.clear()
    return ModelErrors(
        path=path_text(model.path),
        total=total.statistics(),
        tensors=tuple(found),
        groups={key: group.statistics() for key, group in groups.items()},
    )


@dataclass
class _Errors:
    """Sums and counts of the errors of a tensor or group, on the way to its statistics."""

    n_weights: int = 0
    n_exact: int = 0
    square_error: float = 0.0
    square_truth: float = 0.0
    largest: float = 0.0
    coarse: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_HALF, np.int64))
    """Counts by the upper 16 bits of the magnitude."""
    before: dict[int, int] = field(default_factory=dict)
    """For each upper half that holds a wanted rank: how many errors are below it."""
    fine: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    """For the same: counts by the lower 16 bits."""

    def add(self, other: "_Errors") -> None:
        """Take in a part."""
        self.n_weights += other.n_weights
        self.n_exact += other.n_exact
        self.square_error += other.square_error
        self.square_truth += other.square_truth
        self.largest = max(self.largest, other.largest)
        self.coarse += other.coarse

    def find_ranks(self) -> None:
        """Find the upper halves that hold the wanted ranks, and drop the coarse counts."""
        ends = np.cumsum(self.coarse)
        for rank in {rank for q in _QUANTILES for rank in self._ranks(q)}:
            half = int(np.searchsorted(ends, rank, side="right"))
            self.before[half] = int(ends[half] - self.coarse[half])
        self.coarse = np.zeros(0, np.int64)

    def _ranks(self, quantile: float) -> tuple[int, int]:
        rank = int(quantile * (self.n_weights - 1))
        return rank, min(rank + 1, self.n_weights - 1)

    def _at_rank(self, rank: int) -> float:
        half = max(half for half, before in self.before.items() if before <= rank)
        ends = np.cumsum(self.fine[half])
        low = int(np.searchsorted(ends, rank - self.before[half], side="right"))
        return float(np.array([half << 16 | low], np.uint32).view(np.float32)[0])

    def _quantile(self, quantile: float) -> float:
        low, high = (self._at_rank(rank) for rank in self._ranks(quantile))
        fraction = quantile * (self.n_weights - 1) % 1.0
        return low + fraction * (high - low)

    def statistics(self) -> ErrorStatistics:
        """The final figures."""
        mse = self.square_error / self.n_weights
        with np.errstate(divide="ignore", invalid="ignore"):
            sqnr_db = float(10 * np.log10(np.divide(self.square_truth, self.square_error)))
        return ErrorStatistics(
            n_weights=self.n_weights,
            mse=mse,
            rmse=mse**0.5,
            max_abs_error=self.largest,
            p95_abs_error=self._quantile(0.95),
            median_abs_error=self._quantile(0.5),
            sqnr_db=sqnr_db,
            exact_fraction=self.n_exact / self.n_weights,
        )


class _Comparer:
    """Runs the two passes over one tensor at a time, on threads."""

    def __init__(self, n_threads: int, progress: Progress) -> None:
        self._n_threads = n_threads
        self._progress = progress

    def _n_workers(self, tensor: StoredTensor) -> int:
        return min(self._n_threads, n_tiles(tensor.n_weights))

    def first_pass(self, tensor: StoredTensor, truth: StoredTensor) -> _Errors:
        """Sums and coarse counts."""
        sums = np.zeros((n_tiles(tensor.n_weights), 4))
        coarse = np.zeros((self._n_workers(tensor), _HALF), np.int64)

        def count(thread: int, tile: Tile, x: F32Array, y: F32Array) -> None:
            _count_coarse(x, y, sums[tile.start // TILE], coarse[thread])

        self._run(tensor, truth, count)
        square_error, square_truth, n_exact = sums[:, :3].sum(axis=0)
        return _Errors(
            n_weights=tensor.n_weights,
            n_exact=int(n_exact),
            square_error=float(square_error),
            square_truth=float(square_truth),
            largest=float(sums[:, 3].max()),
            coarse=coarse.sum(axis=0),
        )

    def second_pass(
        self, tensor: StoredTensor, truth: StoredTensor, wanting: Sequence[_Errors]
    ) -> None:
        """Add fine counts to all that want them."""
        halves = sorted({half for errors in wanting for half in errors.before})
        row_of = np.full(_HALF, -1, np.int64)
        row_of[halves] = np.arange(len(halves))
        fine = np.zeros((self._n_workers(tensor), len(halves), _HALF), np.int64)

        def count(thread: int, _tile: Tile, x: F32Array, y: F32Array) -> None:
            _count_fine(x, y, row_of, fine[thread])

        self._run(tensor, truth, count)
        for errors in wanting:
            for half in errors.before:
                counts = fine[:, row_of[half]].sum(axis=0)
                errors.fine[half] = errors.fine[half] + counts if half in errors.fine else counts

    def _run(
        self,
        tensor: StoredTensor,
        truth: StoredTensor,
        count: Callable[[int, Tile, F32Array, F32Array], None],
    ) -> None:
        def worker(thread: int) -> Callable[[Tile], None]:
            scratch = np.empty((2, min(TILE, tensor.n_weights)), np.float32)

            def work(tile: Tile) -> None:
                x, y = (
                    stored.read(tile.start, tile.end, out[: tile.end - tile.start])
                    for stored, out in zip((tensor, truth), scratch, strict=True)
                )
                count(thread, tile, x, y)

            return work

        workers = [worker(thread) for thread in range(self._n_workers(tensor))]
        for_each_tile([tensor.n_weights], workers, self._progress)


@kernel
def _count_coarse(
    x: F32Array, truth: F32Array, sums: NDArray[np.float64], coarse: NDArray[np.int64]
) -> None:
    """Sums (square error, square of the truth, exact ones, largest error) and coarse counts."""
    square_error = 0.0
    square_truth = 0.0
    n_exact = 0
    largest = np.float32(0)
    for i in range(x.size):
        error = abs(x[i] - truth[i])
        square_error += np.float64(error) * np.float64(error)
        square_truth += np.float64(truth[i]) * np.float64(truth[i])
        n_exact += error == 0
        largest = max(largest, error)
        coarse[f32_bits(error) >> np.uint32(16)] += 1
    sums[0] = square_error
    sums[1] = square_truth
    sums[2] = n_exact
    sums[3] = largest


@kernel
def _count_fine(
    x: F32Array, truth: F32Array, row_of: NDArray[np.int64], fine: NDArray[np.int64]
) -> None:
    """Counts by lower 16 bits for the upper halves that have a row."""
    for i in range(x.size):
        bits = f32_bits(abs(x[i] - truth[i]))
        row = row_of[bits >> np.uint32(16)]
        if row >= 0:
            fine[row, bits & np.uint32(0xFFFF)] += 1

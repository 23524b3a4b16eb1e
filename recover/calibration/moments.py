"""One streaming pass over models and their original: the sums that every fit needs.

A least-squares fit of any weights, on any part of the tensors, needs only each tensor's Gram
matrix. It is kept of the errors, not of the decoded weights: they are so much smaller that a fit to
the differences between decoded weights would lose half of its digits.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import kernel
from recover._text import printable, quoted, some
from recover.calibration.simulate import Counts
from recover.calibration.weights import InputFile
from recover.containers.gguf.names import layer_of, n_layers, role_of
from recover.containers.model import Model, StoredTensor
from recover.errors import CalibrationError
from recover.estimators._combine import square_difference
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Source
from recover.execution.tiles import Progress, Tile, available_cores, for_each_tile, n_tiles
from recover.inputs.alignment import align, is_absent
from recover.inputs.completion import complete
from recover.inputs.matching import find_duplicates, typical_error
from recover.inputs.metadata import METHOD_KEY
from recover.inputs.nearness import nearness_warnings
from recover.inputs.open import open_model, open_models
from recover.inputs.originals.coded import code_warnings
from recover.inputs.provenance import has_cells, source_of
from recover.inputs.relations import ANOTHER_MODEL, SOME_TENSORS_DIFFER, find_relations
from recover.quants import TILE, F32Array, FloatType, OpaqueType, ScalarType, VectorType

F64Array = NDArray[np.float64]

_PART = 512  # weights whose errors, as float64, stay in the L1 cache
_LANES = 8
_SUPERBLOCK = 256
_COUNTED = 1 << 16  # weights that are counted in one go, and whose neighbours may be left out
_MOST_COUNTED = 1 << 23  # weights of a type
_METHOD = "linear"  # whose weights are fitted
_N_LOOKED_AT = 32  # tensors that tell whether the inputs were quantized from the truth


@dataclass(frozen=True)
class Moments:
    """What the fits need of one tensor."""

    name: str
    role: str
    """Of the tensor."""
    layer: int | None
    """That it belongs to."""
    depth: float | None
    """The same over the number of layers."""
    types: tuple[str, ...]
    """How the K inputs with different bytes store it: finest first, equal ones in their order."""
    n_weights: int
    """Number of weights."""
    gram: F64Array
    """float64 (K + 1, K + 1): sums of the products of the errors (decoded minus true) of the inputs
    and, in the last row and column, of the true weights."""
    linear_error: float
    """Sum of the square errors of the method ``linear`` without calibration."""


@dataclass(frozen=True)
class Places:
    """Where in their cells the weights of a type lie."""

    kind: ScalarType
    """The type."""
    has_cells: bool
    weighted: bool
    """How it was made (see `recover.evidence.buffer.Source`)."""
    counts: Counts
    """Of the true weights."""


@dataclass(frozen=True)
class Survey:
    """What one pass found."""

    inputs: tuple[InputFile, ...]
    """In their order."""
    truth: InputFile
    """The original."""
    paths: tuple[Any, ...]
    """All files that were read."""
    moments: tuple[Moments, ...]
    """Of every tensor that has several inputs to combine, in file order."""
    places: tuple[Places, ...]
    """By type."""
    warnings: tuple[str, ...]
    """What makes the truth doubtful."""


def survey(
    inputs: Sequence[str | os.PathLike[str]],
    truth: str | os.PathLike[str],
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Survey:
    """Compare quantizations with their original; memory does not grow with the model.

    Parameters
    ----------
    inputs : sequence of path-like
        GGUF files or Hugging Face folders quantized from `truth`.
    truth : path-like
        The original, in any type that can be decoded.
    n_threads, progress : optional
        See `recover.execution.tiles`. The sums do not depend on `n_threads`.

    Returns
    -------
    Survey

    Raises
    ------
    GGUFError
        If a file cannot be read.
    PlanError
        If the inputs do not fit together.
    CalibrationError
        If there is nothing to combine, a tensor is missing from the truth or has another shape
        there, or holds NaN or infinities, or the inputs were not quantized from it.
    """
    models = open_models(inputs)
    if len(models) < 2:
        raise CalibrationError("a calibration weighs inputs against each other: give two or more")
    aligned = align(models)
    models = complete(aligned.models, aligned.names, [])
    original = open_model(truth).fitted(aligned.names)
    jobs = [job for name in aligned.names if (job := _job(name, models, original))]
    if not jobs:
        raise CalibrationError(
            f"{printable(models[0].path)}: no tensor is quantized in two of the inputs with"
            " different bytes, so there is nothing to combine"
        )
    names = [job.truth.name for job in jobs]
    _check_truth(models, original, names)
    sums = _Pass(jobs).run(n_threads or available_cores(), progress)
    for job, (gram, _) in zip(jobs, sums, strict=True):
        _check_finite(gram, job)
    sample = _Sample(jobs)
    for job in jobs:
        sample.add(job)
    layers = n_layers(aligned.names)
    return Survey(
        inputs=tuple(_source(model) for model in models),
        truth=_source(original),
        paths=tuple(part for model in (*models, original) for part in model.parts),
        moments=tuple(_moments(job, *each, layers) for job, each in zip(jobs, sums, strict=True)),
        places=sample.places,
        warnings=(
            *nearness_warnings(original, models, names),
            *code_warnings(original, names),
        ),
    )


def _check_truth(models: Sequence[Model], original: Model, names: Sequence[str]) -> None:
    """Refuse a truth that is quantized, or estimated, or of another model."""
    path = printable(original.path)
    if METHOD_KEY in original.metadata:
        raise CalibrationError(
            f"{path}: a merge estimated its weights, so that it is no truth to calibrate by; name"
            " the original"
        )
    for name in names:
        tensor = original.tensors[name]
        if isinstance(tensor.type, VectorType) or has_cells(original, tensor):
            raise CalibrationError(
                f"{path}: tensor {quoted(name)} is quantized ({tensor.type.name}), so that it is no"
                " truth to calibrate by; name the original"
            )
    places = np.linspace(0, len(names) - 1, min(len(names), _N_LOOKED_AT)).astype(int)
    for relation in find_relations([original, *models], {names[i]: () for i in places}):
        if relation.first == 0 and relation.kind == ANOTHER_MODEL:
            raise CalibrationError(
                f"{printable(models[relation.second - 1].path)}: was not quantized from {path},"
                f" but from another model (conflicts on {relation.conflict_fraction:.2%} of the"
                " weights)"
            )
        if relation.first == 0 and relation.kind == SOME_TENSORS_DIFFER:
            raise CalibrationError(
                f"{printable(models[relation.second - 1].path)}: was not quantized from {path}"
                f" ({relation.kind}): they contradict each other on"
                f" {some(list(map(quoted, relation.tensors)))}; leave it out, or name the original"
                " of all inputs"
            )


@dataclass(frozen=True)
class _Job:
    """A tensor to compare: the inputs with different bytes, finest first, and the truth."""

    models: tuple[Model, ...]
    tensors: tuple[StoredTensor, ...]
    sources: tuple[Source, ...]
    truth: StoredTensor
    truth_path: str


def _job(name: str, models: Sequence[Model], truth: Model) -> _Job | None:
    """None for a tensor that needs no combination."""
    tensors = [model.tensors[name] for model in models]
    distinct = sorted(
        (i for i in set(find_duplicates(tensors)) if not is_absent(tensors[i])),
        key=lambda i: (typical_error(tensors[i].type), tensors[i].type.name),
    )
    if len(distinct) < 2 or isinstance(tensors[distinct[0]].type, FloatType | OpaqueType):
        return None
    path = printable(truth.path)
    if name not in truth.tensors:
        raise CalibrationError(f"{path}: has no tensor {quoted(name)}, which the inputs have")
    original, first = truth.tensors[name], tensors[distinct[0]]
    if original.n_weights != first.n_weights or original.dims[0] != first.dims[0]:
        raise CalibrationError(
            f"tensor {quoted(name)} has the shape {first.dims} in the inputs,"
            f" but {original.dims} in {path}"
        )
    if isinstance(original.type, OpaqueType):
        raise CalibrationError(
            f"{path}: tensor {quoted(name)} of type {original.type.name} cannot be decoded"
        )
    return _Job(
        models=tuple(models[i] for i in distinct),
        tensors=tuple(tensors[i] for i in distinct),
        sources=tuple(source_of(models[i], tensors[i]) for i in distinct),
        truth=original,
        truth_path=path,
    )


def _source(model: Model) -> InputFile:
    counts = dict(sorted(Counter(each.type.name for each in model.tensors.values()).items()))
    return InputFile(name=printable(model.path.name), n_bytes=model.n_bytes, types=counts)


def _check_finite(gram: F64Array, job: _Job) -> None:
    """Name the file whose weights are not finite."""
    if np.isfinite(gram).all():
        return
    name = quoted(job.truth.name)
    for k, model in enumerate(job.models):
        if not np.isfinite(gram[k, k]) and np.isfinite(gram[-1, -1]):
            raise CalibrationError(
                f"{printable(model.path)}: tensor {name} holds NaN or infinite weights"
            )
    raise CalibrationError(f"{job.truth_path}: tensor {name} holds NaN or infinite weights")


def _moments(job: _Job, gram: F64Array, linear_error: float, layers: int) -> Moments:
    layer = layer_of(job.truth.name)
    return Moments(
        name=job.truth.name,
        role=role_of(job.truth.name),
        layer=layer,
        depth=None if layer is None else layer / layers,
        types=tuple(tensor.type.name for tensor in job.tensors),
        n_weights=job.truth.n_weights,
        gram=gram,
        linear_error=linear_error,
    )


class _Pass:
    """The pass over all tensors, on threads: sums by tile, added in their order."""

    def __init__(self, jobs: Sequence[_Job]) -> None:
        self._jobs = jobs
        self._grams = []
        self._linear = []
        for job in jobs:
            n, n_rows = n_tiles(job.truth.n_weights), len(job.tensors) + 1
            self._grams.append(np.zeros((n, n_rows, n_rows)))
            self._linear.append(np.zeros(n))

    def run(self, n_threads: int, progress: Progress | None) -> list[tuple[F64Array, float]]:
        """Of each tensor the Gram matrix of errors and truth, and the error of ``linear``."""
        sizes = [job.truth.n_weights for job in self._jobs]
        n_workers = min(n_threads, sum(map(len, self._grams)))
        for_each_tile(sizes, [self._worker() for _ in range(n_workers)], progress)
        return [
            (grams.sum(axis=0), float(linear.sum()))
            for grams, linear in zip(self._grams, self._linear, strict=True)
        ]

    def _worker(self) -> Callable[[Tile], None]:
        n = min(TILE, max(job.truth.n_weights for job in self._jobs))
        n_inputs = max(len(job.sources) for job in self._jobs)
        memory, estimate = np.empty((2, n), np.float32)
        decoded = np.empty(n_inputs * n, np.float32)
        known: tuple[Source, ...] = self._jobs[0].sources
        estimator = UncorrectedTileEstimator(known, _METHOD)

        def work(tile: Tile) -> None:
            nonlocal known, estimator
            job = self._jobs[tile.tensor]
            if job.sources != known:
                known = job.sources
                estimator = UncorrectedTileEstimator(known, _METHOD)
            size = tile.end - tile.start
            truth = job.truth.read(tile.start, tile.end, memory[:size])
            estimator.estimate(job.tensors, tile.start, tile.end, estimate[:size])
            values = decoded[: len(known) * size].reshape(len(known), size)
            for i, row in enumerate(values):
                estimator.decode(i, row)
            index = tile.start // TILE
            _add_gram(values, truth, self._grams[tile.tensor][index])
            self._linear[tile.tensor][index] = square_difference(estimate[:size], truth)

        return work


class _Sample:
    """Counts of true weights by type: of all, or of parts that are evenly spaced.

    Which parts depends on the files alone; they are counted one after the other, so that the sums
    do not depend on the threads.
    """

    def __init__(self, jobs: Sequence[_Job]) -> None:
        self._places: dict[_Key, Places] = {}
        self._n_parts: Counter[_Key] = Counter()
        self._n_passed: Counter[_Key] = Counter()
        for job in jobs:
            for each in job.sources:
                if isinstance(each.type, ScalarType):
                    key = _key(each)
                    counts = Counts(each.type, is_hard=each.has_cells)
                    self._places.setdefault(
                        key, Places(each.type, each.has_cells, each.weighted, counts)
                    )
                    self._n_parts[key] += -(-job.truth.n_weights // _COUNTED)

    @property
    def places(self) -> tuple[Places, ...]:
        """By type."""
        return tuple(self._places[key] for key in sorted(self._places))

    def add(self, job: _Job) -> None:
        """Count the weights of one tensor."""
        memory = np.empty(min(_COUNTED, job.truth.n_weights), np.float32)
        for start in range(0, job.truth.n_weights, _COUNTED):
            wanted = [k for k, each in enumerate(job.sources) if self._is_turn(each)]
            end = min(start + _COUNTED, job.truth.n_weights)
            end -= (end - start) % _SUPERBLOCK
            if wanted and end > start:
                truth = job.truth.read(start, end, memory[: end - start])
                for k in wanted:
                    tensor, counts = job.tensors[k], self._places[_key(job.sources[k])].counts
                    counts.add(tensor.unscaled(truth, start), tensor.part(start, end))

    def _is_turn(self, source: Source) -> bool:
        """Whether the next part of a type is one that is counted."""
        if not isinstance(source.type, ScalarType):
            return False
        key = _key(source)
        number = self._n_passed[key]
        self._n_passed[key] += 1
        every = -(-self._n_parts[key] * _COUNTED // _MOST_COUNTED)
        return number % every == 0


_Key = tuple[str, bool, bool]


def _key(source: Source) -> _Key:
    return source.type.name, source.has_cells, source.weighted


@kernel
def _add_gram(values: F32Array, truth: F32Array, gram: F64Array) -> None:
    """Add the products of errors (K, n) and truth (n,) to a symmetric matrix (K + 1, K + 1)."""
    n_inputs, n = values.shape
    part = np.zeros((n_inputs + 1, _PART))
    lanes = np.empty(_LANES)
    for start in range(0, n, _PART):
        size = min(_PART, n - start)
        part[:, size:] = 0
        for i in range(size):
            part[n_inputs, i] = np.float64(truth[start + i])
        for k in range(n_inputs):
            for i in range(size):
                part[k, i] = np.float64(values[k, start + i]) - part[n_inputs, i]
        for j in range(n_inputs + 1):
            for k in range(j + 1):
                lanes[:] = 0
                for i in range(0, _PART, _LANES):
                    for lane in range(_LANES):
                        lanes[lane] += part[j, i + lane] * part[k, i + lane]
                total = lanes.sum()
                gram[j, k] += total
                if k < j:
                    gram[k, j] += total

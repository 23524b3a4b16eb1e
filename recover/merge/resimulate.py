"""Densities from the model's own merged weights (empirical Bayes) instead of the shipped ones.

A sample of the weights is merged with the shipped densities and drawn from what is known of each
(means alone would lie too well in the middle of their cells), then encoded again by the encoders of
the inputs' types, and the places in the cells are counted as for the shipped tables.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from recover.calibration.simulate import SEED, Counts, importance
from recover.containers.model import StoredTensor
from recover.errors import PlanError, UsageError
from recover.estimators import estimator
from recover.estimators.base import DENSITIES
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Source
from recover.evidence.densities import density
from recover.merge.calibrated import with_densities
from recover.merge.plan import MergePlan, TensorPlan
from recover.quants import F32Array, ScalarType, quantize, type_by_name

FEWEST = 262_144
"""Weights that are needed for a fit."""

_CHUNK = 65_536
_SUPERBLOCK = 256
Density = tuple[tuple[float, ...], ...]
Key = tuple[str, bool, bool]
"""Name of a type, whether it was made with an importance matrix, and whether it has cells."""


def with_simulated_densities(plan: MergePlan, n_weights: int) -> MergePlan:
    """The plan with densities from its own weights.

    Parameters
    ----------
    plan : MergePlan
        From `recover.merge.plan.plan_merge`, with the method ``posterior`` and no calibration.
    n_weights : int
        Size of the sample, spread over all tensors that are merged.

    Returns
    -------
    MergePlan

    Raises
    ------
    PlanError
        If the plan uses no densities, or the sample or the model is too small for a fit.
    """
    if estimator(plan.method).calibrated != DENSITIES or plan.calibration is not None:
        raise UsageError("densities are simulated for the method posterior without a calibration")
    tensors = [each for each in plan.tensors if each.action == "merge" and is_whole(each)]
    available = sum(tensor.n_weights for tensor in tensors)
    if min(n_weights, available) < FEWEST:
        raise PlanError(
            f"densities cannot be simulated from {min(n_weights, available):,} weights: at least"
            f" {FEWEST:,} are needed, and {available:,} are merged in whole superblocks"
        )
    counts: dict[Key, Counts] = {}
    for number, (tensor, start, x) in enumerate(
        sample_merged(plan, tensors, n_weights / available)
    ):
        for key, (source, kind) in _kinds(plan, tensor).items():
            _, weighted, has_cells = key
            if key not in counts:
                counts[key] = Counts(kind, is_hard=has_cells)
            weights = importance(SEED, number, x.shape[1]) if weighted else None
            encoded = source.unscaled(x.reshape(-1), start).reshape(x.shape)
            counts[key].add(encoded, quantize(encoded, kind, weights))
    densities = {key: _fit(key, each) for key, each in counts.items()}
    changed = [_with_density(each, densities) for each in plan.tensors]
    return replace(plan, densities=densities, tensors=tuple(changed))


def _with_density(tensor: TensorPlan, densities: Mapping[Key, Density]) -> TensorPlan:
    """A tensor whose sources have the densities that were simulated for them."""
    if tensor.action != "merge":
        return tensor

    def give(source: Source) -> Source:
        rows = densities.get(_key(source, tensor.sources))
        return source if rows is None else replace(source, density=rows)

    return with_densities(tensor, give)


def _key(source: Source, others: Sequence[Source]) -> Key:
    """Under which a source's density is found, next to all of a tensor."""
    n_alike = sum(other.type is source.type for other in others)
    weighted = source.weighted or not source.has_cells or n_alike > 1
    return source.type.name, weighted, source.has_cells


def _fit(key: Key, counts: Counts) -> Density:
    """The density that was seen; of classes of code that are seldom, the shipped one."""
    name, weighted, has_cells = key
    kind = type_by_name(name)
    assert isinstance(kind, ScalarType)
    table = counts.table(density(kind, weighted=weighted, has_cells=has_cells))
    return tuple(tuple(map(float, row)) for row in table)


def is_whole(tensor: TensorPlan) -> bool:
    """Whether its rows are whole superblocks."""
    return tensor.dims[0] % _SUPERBLOCK == 0


def _kinds(plan: MergePlan, tensor: TensorPlan) -> dict[Key, tuple[StoredTensor, ScalarType]]:
    """A tensor's sources of scalar types, by the key of their densities."""
    return {
        _key(source, tensor.sources): (plan.models[i].tensors[tensor.name], source.type)
        for i, source in zip(tensor.used, tensor.sources, strict=True)
        if isinstance(source.type, ScalarType)
    }


def sample_merged(
    plan: MergePlan, tensors: list[TensorPlan], share: float
) -> Iterator[tuple[TensorPlan, int, F32Array]]:
    """Merged rows of the tensors, in chunks that lie evenly over each; with their first weight."""
    for tensor in tensors:
        row = tensor.dims[0]
        n_rows = tensor.n_weights // row
        rows = max(1, min(_CHUNK // row, n_rows))
        n_chunks = max(1, round(min(share, 1) * n_rows / rows))
        estimates = UncorrectedTileEstimator(tensor.sources, plan.method)
        for start in np.linspace(0, n_rows - rows, n_chunks).astype(int):
            first = int(start) * row
            drawn = _draw(plan, tensor, estimates, first, first + rows * row)
            yield tensor, first, drawn.reshape(-1, row)


def _draw(
    plan: MergePlan, tensor: TensorPlan, estimates: UncorrectedTileEstimator, start: int, end: int
) -> F32Array:
    """Weights drawn around their estimates, evenly, with the deviation to expect."""
    inputs = [plan.models[i].tensors[tensor.name] for i in tensor.used]
    out, deviation = np.empty((2, end - start), np.float32)
    estimates.estimate(inputs, start, end, out, deviation)
    generator = np.random.Generator(np.random.Philox(key=[SEED, start]))
    noise = generator.uniform(-(3**0.5), 3**0.5, out.size).astype(np.float32)
    return np.nan_to_num(out + noise * deviation)

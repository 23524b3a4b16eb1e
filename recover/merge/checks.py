"""Whether the inputs of a merge belong together: what a look tells, and what was counted."""

from collections.abc import Sequence, Set
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from recover._text import printable, quoted, some
from recover.containers.huggingface.tensors import QuantizedTensor
from recover.containers.model import Model
from recover.errors import PlanError
from recover.estimators import FIRST_ALONE
from recover.execution.stacks import stack_of, stacks
from recover.inputs.alignment import is_absent
from recover.inputs.compensated import contradicted as contradicted_codes
from recover.inputs.relations import (
    ANOTHER_MODEL,
    SOME_TENSORS_DIFFER,
    Relation,
    explained_by_rounding,
    find_relations,
)
from recover.merge.calibrated import with_error_calibration
from recover.merge.plan import MergePlan, TensorPlan
from recover.merge.redundant import sentence
from recover.merge.sums import Totals
from recover.merge.tasks import kind_of
from recover.quants import TILE

# Quantizations of one original contradict each other on no weight at all.
_TOLERATED_SHARE = 1e-5
_TOLERATED_WEIGHTS = 2
_N_LOOKED_AT = 6  # tensors that tell how the inputs belong together


def check_relations(plan: MergePlan) -> None:
    """Refuse inputs that were not quantized from one original, as a look at some tensors tells.

    All weights are compared while they are merged, and this one saves the time; but for codes that
    make up for each other's errors, which contradict others by their columns alone: these are
    looked at here, in each tensor.
    """
    for descent in plan.redundant:
        raise PlanError(
            f"{sentence(plan.models, descent)}, not from the original: it tells nothing new; leave"
            " it out, or go on without it with --force"
        )
    merged = [tensor for tensor in plan.tensors if tensor.action == "merge"]
    if not merged:
        return
    places = np.linspace(0, len(merged) - 1, min(len(merged), _N_LOOKED_AT)).astype(int)
    descents = {merged[i].name: merged[i].descents for i in places}
    for relation in find_relations(plan.models, descents):
        pair = [printable(plan.models[i].path) for i in (relation.first, relation.second)]
        if not relation.is_compatible:
            rotated = _rotated(plan.models, relation)
            raise _not_of_one(pair, relation.kind, list(relation.tensors), rotated)
    names = [tensor.name for tensor in merged]
    apart: dict[tuple[int, ...], list[str]] = {}
    for found in contradicted_codes(plan.models, names):
        if found.n_weights > _TOLERATED_WEIGHTS:
            apart.setdefault(tuple(sorted((found.tensor, found.known))), []).append(found.name)
    for numbers, of_pair in apart.items():
        pair = [printable(plan.models[i].path) for i in numbers]
        raise _not_of_one(pair, SOME_TENSORS_DIFFER, of_pair)


def _not_of_one(pair: Sequence[str], kind: str, names: Sequence[str], more: str = "") -> PlanError:
    """What two files, and tensors on which they contradict each other, are refused with."""
    return PlanError(
        f"{pair[1]} and {pair[0]} are not quantized from the same original ({kind}): they"
        f" contradict each other on {some([quoted(name) for name in names])}{more}; recover inspect"
        " says how they differ, --force takes the finest input there"
    )


def _rotated(models: Sequence[Model], relation: Relation) -> str:
    """Which of two inputs looks like one whose weights were rotated; empty if none does.

    Rotations (QuaRot, SpinQuant) go through norms once these are multiplied into the matrices
    behind them, which leaves the same number everywhere.
    """
    pair = [models[i] for i in (relation.first, relation.second)]
    flat = [_has_flat_norms(model) for model in pair]
    if relation.kind != ANOTHER_MODEL or flat[0] == flat[1]:
        return ""
    path = printable(pair[flat.index(True)].path)
    return f", and all norms of {path} are flat, as where weights were rotated (QuaRot, SpinQuant)"


def _has_flat_norms(model: Model) -> bool:
    """Whether every norm holds one number all over."""
    norms = [
        tensor.read(0, tensor.n_weights)
        for name, tensor in model.tensors.items()
        if name.endswith("norm.weight") and not is_absent(tensor)
    ]
    return bool(norms) and all(np.ptp(norm) == 0 for norm in norms)


def contradicted(plan: MergePlan, sums: Totals, *, force: bool) -> tuple[set[str], list[str]]:
    """Tensors on which the inputs cannot come from one original, rounded at most.

    Parameters
    ----------
    plan : MergePlan
        What was carried out.
    sums : dict of int to Sums
        Of each tensor.
    force : bool
        Whether to go on.

    Returns
    -------
    set of str
        Tensors of which only the finest input is to be taken.
    list of str
        What people should know, of these and of others with a few contradictions.

    Raises
    ------
    PlanError
        If there are such tensors, without `force`.
    """
    found = _contradictions(plan, sums)
    refused = [each for each in found if is_refused(each.n_weights, each.tensor.n_weights)]
    names = {each.tensor.name for each in refused}
    named = some([str(each) for each in refused])
    if refused and not force:
        raise PlanError(
            f"the inputs contradict each other on tensors {named}: they are not quantized from the"
            " same original, or by an unknown quantizer; recover inspect says which and how they"
            f" differ, --force takes the finest input there ({_paths(plan)})"
        )
    warnings = [
        f"tensor {quoted(tensor.name)}: the inputs contradict each other on about"
        f" {n_weights:,} of {tensor.n_weights:,} weights, so that a part of it is not from the same"
        " original, or a file is damaged; recover inspect compares the files"
        for tensor, n_weights in found
        if tensor.name not in names
    ]
    # What is broken in the finest input is left to the others.
    broken = {plan.tensors[i].name for i, each in sums.items() if each.broken}
    for taken, how in ((True, "was taken alone"), (False, "was taken on the weights in dispute")):
        named = some([str(each) for each in refused if (each.tensor.name not in broken) == taken])
        if named:
            warnings.append(
                f"the inputs contradict each other on tensors {named}: of these the finest input"
                f" {how}, whatever it is of"
            )
    return names - broken, warnings


def _paths(plan: MergePlan) -> str:
    return f"the inputs are {some([printable(model.path) for model in plan.models])}"


def broken_inputs(
    plan: MergePlan, indices: Sequence[int], *, only_folders: bool = False
) -> dict[int, list[str]]:
    """By index of some tensors, the inputs that have NaN or infinite values of them."""
    if only_folders:
        indices = [i for i in indices if _is_of_folder(plan, plan.tensors[i])]
    found: dict[int, list[str]] = {index: [] for index in indices}
    told = ((i, plan.tensors[i].n_weights, kind_of(plan, plan.tensors[i])) for i in indices)
    for numbers in stacks(told):
        tensors = [plan.tensors[index] for index in numbers]
        for used in tensors[0].used:
            model = plan.models[used]
            each = [model.tensors[tensor.name] for tensor in tensors]
            if only_folders and not isinstance(each[0], QuantizedTensor):
                continue
            stored = stack_of(each)
            is_sound = np.ones(len(tensors), np.bool_)
            for start in range(0, stored.n_weights, TILE):
                finite = np.isfinite(stored.read(start, min(start + TILE, stored.n_weights)))
                is_sound &= finite.reshape(len(tensors), -1).all(1)
            for index, sound in zip(numbers, is_sound, strict=True):
                if not sound:
                    found[index].append(printable(model.path))
    return found


def _is_of_folder(plan: MergePlan, tensor: TensorPlan) -> bool:
    """Whether a tensor is taken from a folder, and quantized."""
    stored = (plan.models[i].tensors[tensor.name] for i in tensor.used)
    return any(isinstance(each, QuantizedTensor) for each in stored)


def check_broken(plan: MergePlan, sums: Totals) -> None:
    """Refuse folders whose quantized tensors hold NaN or infinite weights, as damaged ones do.

    Raises
    ------
    PlanError
        If there are any.
    """
    indices = [i for i, each in sorted(sums.items()) if each.broken]
    for i, damaged in broken_inputs(plan, indices, only_folders=True).items():
        if damaged:
            raise PlanError(
                f"{some(damaged)}: tensor {quoted(plan.tensors[i].name)} holds NaN or infinite"
                " weights, as scales of damaged files give them; load it again, or go on with what"
                " the other inputs say there with --force"
            )


def is_refused(n_contradicted: int, n_weights: int) -> bool:
    """Whether inputs contradict each other on too many weights of a tensor to come from one."""
    return n_contradicted > max(_TOLERATED_WEIGHTS, _TOLERATED_SHARE * n_weights)


class _Contradiction(NamedTuple):
    """A tensor on which inputs contradict each other."""

    tensor: TensorPlan
    n_weights: int
    """Weights with empty intersections of cells, or in superblocks that have nothing in common."""

    @property
    def share(self) -> float:
        """Of the tensor's weights."""
        return self.n_weights / self.tensor.n_weights

    def __str__(self) -> str:
        return f"{quoted(self.tensor.name)} ({100 * self.share:.3g}%)"


def _contradictions(plan: MergePlan, sums: Totals) -> list[_Contradiction]:
    """The tensors on which inputs contradict each other, but for rounding; the worst first."""
    conflicts = {i: int(each.conflicts) for i, each in sorted(sums.items())}
    disputed = [plan.tensors[i] for i, n in conflicts.items() if n]
    inputs = {tensor.name: (*tensor.used, *tensor.compared) for tensor in disputed}
    if inputs and explained_by_rounding(plan.models, inputs):
        conflicts = dict.fromkeys(conflicts, 0)
    found = []
    for i, n in conflicts.items():
        n_unlike = sums[i].likeness.n_contradicted(plan.tensors[i].n_weights)
        found.append(_Contradiction(plan.tensors[i], n + n_unlike))
    return sorted((each for each in found if each.n_weights), key=lambda each: -each.share)


def with_finest_alone(plan: MergePlan, names: Set[str]) -> tuple[MergePlan, set[int]]:
    """The plan that decodes the finest input of some tensors, and their indices where it differs.

    The other inputs stay among those used: they are compared, and their expected errors told.
    """
    changed = {
        i
        for i, tensor in enumerate(plan.tensors)
        if tensor.name in names and tensor.method != FIRST_ALONE and tensor.action == "merge"
    }
    alone = [
        replace(tensor, method=FIRST_ALONE) if i in changed else tensor
        for i, tensor in enumerate(plan.tensors)
    ]
    tensors = with_error_calibration(alone, plan.estimate) if changed else plan.tensors
    undecided = plan.undecided | {plan.tensors[i].name for i in changed}
    return replace(plan, tensors=tensors, undecided=undecided), changed

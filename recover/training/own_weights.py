"""A model's own merged weights, to learn from."""

from collections import Counter
from collections.abc import Iterator

from recover.errors import PlanError
from recover.estimators.methods.joint import names_of
from recover.merge.plan import MergePlan, TensorPlan
from recover.merge.resimulate import is_whole, sample_merged
from recover.quants import F32Array

_ROW = 256


def most_common(plan: MergePlan) -> tuple[tuple[str, ...], list[TensorPlan]]:
    """The set that most merged weights are stored as, and the tensors that are.

    Raises
    ------
    PlanError
        If they are stored in ways of which no network is known.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for tensor in plan.tensors:
        names = names_of(tensor.sources) if tensor.action == "merge" else None
        if names and is_whole(tensor):
            counts[names] += tensor.n_weights
    if not counts:
        raise PlanError(
            "no tensors are merged whose inputs are all of scalar types with cells, as llama.cpp's"
            " encoders write them, and whose rows are whole superblocks"
        )
    names = max(counts, key=lambda each: (counts[each], each))
    chosen = [
        tensor
        for tensor in plan.tensors
        if tensor.action == "merge" and is_whole(tensor) and names_of(tensor.sources) == names
    ]
    return names, chosen


def merged_rows(plan: MergePlan, tensors: list[TensorPlan], share: float) -> Iterator[F32Array]:
    """Superblocks of merged weights, drawn from what is known of each."""
    for _, _, x in sample_merged(plan, tensors, share):
        yield x.reshape(-1, _ROW)

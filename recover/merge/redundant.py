"""Inputs that tell nothing new of some tensors, or of any: what people should know of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from recover._text import printable, quoted, some
from recover.containers.gguf.side_scales import folded
from recover.containers.model import Model
from recover.inputs.descent import ESTIMATED, Descent
from recover.inputs.provenance import searched_tensors
from recover.merge.decide import Draft
from recover.quants import FloatType, OpaqueType


def find_redundant(models: Sequence[Model], drafts: Sequence[Draft]) -> tuple[Descent, ...]:
    """Inputs that were made from quantized ones in all their own matrices, and from which ones.

    Parameters
    ----------
    models : sequence of Model
        The inputs.
    drafts : sequence of Draft
        Of all tensors of a merge.

    Returns
    -------
    tuple of Descent
        At most one per input.
    """
    found = []
    for child in range(len(models)):
        own = [draft for draft in drafts if _has_its_own(models, draft, child)]
        descents = [_descent_of(models, draft, child) for draft in own]
        known = [descent for descent in descents if descent is not None]
        if known and len(known) == len(descents):
            widest = max(known, key=lambda each: len(each.parents))
            ways = [via for via in widest.ways if all(via in each.ways for each in known)]
            found.append(replace(widest, ways=tuple(ways) or widest.ways))
    return tuple(found)


def sentence(models: Sequence[Model], descent: Descent) -> str:
    """Who was made from whom, by way of what."""
    child = printable(models[descent.child].path)
    parents = " and ".join(printable(models[i].path) for i in descent.parents)
    if descent.via == ESTIMATED:
        return f"{child} was made from a merge of {parents}"
    via = f" by way of {descent.via}" if descent.via else ""
    return f"{child} was quantized from {parents}{via}"


def describe(models: Sequence[Model], drafts: Sequence[Draft]) -> list[str]:
    """A warning for each input that tells nothing new of some matrices."""
    names: dict[str, list[str]] = {}
    for draft in drafts:
        for descent in draft.descents:
            if _is_matrix(draft):
                # By way of which type may differ between tensors, where bytes tell it.
                known = replace(descent, ways=descent.ways if descent.via == ESTIMATED else ("",))
                text = _rounding(models, draft, descent) or sentence(models, known)
                text += "" if _is_taken(models, draft) else ", not from the original,"
                names.setdefault(text, []).append(quoted(draft.name))
    lines = [
        f"{text} in {some(tensors)}: it tells nothing new there, and is left out"
        for text, tensors in names.items()
    ]
    taken: dict[int, list[str]] = {}
    for draft in drafts:
        if draft.descents and _is_taken(models, draft):
            taken.setdefault(draft.used[0], []).append(quoted(draft.name))
    lines += [
        f"{printable(models[number].path)} is taken for the original in {some(tensors)}, as others"
        " were quantized from it; should it be a quantization itself, its error is not counted"
        for number, tensors in taken.items()
    ]
    return lines


def _is_taken(models: Sequence[Model], draft: Draft) -> bool:
    """Whether the codes of an input are taken for the original's numbers."""
    kind = models[draft.used[0]].tensors[draft.name].type
    return draft.is_known and not isinstance(kind, FloatType | OpaqueType)


def errors_alone(
    duplicate_of: Sequence[int], descents: Sequence[Descent], of_input: Mapping[int, float]
) -> list[float]:
    """The square error to expect of each input alone.

    Parameters
    ----------
    duplicate_of : sequence of int
        For each input the first one with the same bytes.
    descents : sequence of Descent
        What was made from which inputs: it is off at least as far.
    of_input : mapping of int to float
        The errors of those that take part.

    Returns
    -------
    list of float
        Of an input of which nothing is known the largest of these.
    """
    if len(of_input) == len(duplicate_of):
        return [of_input[number] for number in range(len(duplicate_of))]
    parents = {descent.child: descent.parents for descent in descents}

    def of(number: int) -> float:
        if number in of_input:
            return of_input[number]
        if number in parents:
            return max(of(duplicate_of[parent]) for parent in parents[number])
        return max(of_input.values())

    return [of(number) for number in duplicate_of]


def _rounding(models: Sequence[Model], draft: Draft, descent: Descent) -> str:
    """The same of floats that are what others round to; empty if they are none."""
    kinds = [models[i].tensors[draft.name].type for i in (descent.child, *descent.parents)]
    if not all(isinstance(kind, FloatType) for kind in kinds):
        return ""
    child, parent = (printable(models[i].path) for i in (descent.child, *descent.parents))
    return f"{child} is {parent} rounded to {descent.via or kinds[0].name}"


def _has_its_own(models: Sequence[Model], draft: Draft, child: int) -> bool:
    """Whether an input has bytes of a matrix that the inputs before it do not have."""
    if draft.duplicate_of[child] != child or not any(draft.duplicate_of):
        return False
    return _is_matrix(draft) and not isinstance(models[child].tensors[draft.name].type, OpaqueType)


def _descent_of(models: Sequence[Model], draft: Draft, child: int) -> Descent | None:
    """From which quantized inputs a tensor was made."""
    for descent in draft.descents:
        kinds = [models[i].tensors[draft.name].type for i in descent.parents]
        if descent.child == child and not all(isinstance(kind, FloatType) for kind in kinds):
            return descent
    return None


def _is_matrix(draft: Draft) -> bool:
    return sum(dim > 1 for dim in draft.dims) > 1


def foreign_codes(models: Sequence[Model], drafts: Sequence[Draft]) -> list[str]:
    """A warning for each input whose codes another program than llama.cpp gave."""
    names: dict[int, list[str]] = {}
    for draft in drafts:
        for number, noise in zip(draft.used, draft.noises, strict=True):
            if noise is not None:
                names.setdefault(number, []).append(quoted(draft.name))
    return [
        f"{printable(models[number].path)}: another program than llama.cpp gave the codes of"
        f" {some(tensors)} (GPTQ and AWQ, for instance): they prove no bounds, and how far off they"
        " are is estimated"
        for number, tensors in sorted(names.items())
    ]


def searched_codes(models: Sequence[Model], names: Sequence[str]) -> list[str]:
    """A warning for each input whose codes were searched for, or whose scales lie beside them."""
    searches = [
        f"{printable(model.path)}: another quantizer than llama.cpp's plain one, or an importance"
        f" matrix, made {some([quoted(name) for name in searched])}; their codes prove no bounds"
        for model in models
        if (searched := searched_tensors(model, names))
    ]
    scales = [
        f"{printable(model.path)}: {sides}"
        for model in models
        if (sides := folded(model.tensors[name] for name in names))
    ]
    return searches + scales

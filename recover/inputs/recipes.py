"""How tensors of aligned inputs are made of those that are stored: plain data, and back.

Inputs are made to have the same tensors (`recover.inputs.alignment`), and some count as the
integers that they were made from (`recover.inputs.originals`). A recipe says how one such tensor is
made, so that another process can make it of the opened input:

- ``{"stored": NAME}``: as it is stored;
- ``{"stored": NAME, "type": TYPE}``: the same bytes, as another type of their number;
- ``{"view": NAME, "dims": [...], "spans": [[RECIPE, START, END], ...]}``: weights of others;
- ``{"absent": NAME, "dims": [...]}``: the input does not have it;
- ``{"integers": RECIPE, "type": TYPE, "found": {...}}``: what naive blocks were made from;
- ``{"completed": NAME, "found": [...], "as_seen": BOOLEAN}``: as it is stored, with what other
  inputs told of it (see `recover.containers.huggingface.tensors.QuantizedTensor`).
"""

from dataclasses import asdict, replace
from typing import Any, cast

from recover.containers.huggingface.tensors import QuantizedTensor
from recover.containers.model import Model, StoredTensor
from recover.containers.views import Span, View
from recover.inputs.alignment import AbsentTensor
from recover.inputs.found import completed_tensor, found_of, found_record, read_found
from recover.inputs.generations import as_type, twin_of
from recover.inputs.originals.origin import RecoveredTensor
from recover.inputs.originals.requantized import SecondHand
from recover.quants import type_by_name

Recipe = dict[str, Any]
"""Plain data that JSON can hold."""


def recipe_of(tensor: StoredTensor) -> Recipe:
    """How a tensor is made of those that are stored."""
    match tensor:
        case View():
            spans = [[recipe_of(each.tensor), each.start, each.end] for each in tensor.spans]
            return {"view": tensor.name, "dims": list(tensor.dims), "spans": spans}
        case AbsentTensor():
            return {"absent": tensor.name, "dims": list(tensor.dims)}
        case RecoveredTensor():
            found, kind = asdict(tensor.found), tensor.type.name
            return {"integers": recipe_of(tensor.naive), "type": kind, "found": found}
        case QuantizedTensor() if (
            any(of_runs := [found_record(each) for each in found_of(tensor)]) or tensor.is_as_seen
        ):
            return {"completed": tensor.name, "found": of_runs, "as_seen": tensor.is_as_seen}
        case _ if tensor.type.is_alternative and twin_of(tensor) is not None:
            return {"stored": tensor.name, "type": tensor.type.name}
        case _:
            return {"stored": tensor.name}


def make(recipe: Recipe, model: Model) -> StoredTensor:
    """The tensor of a recipe, made of those of an opened model.

    Raises
    ------
    LookupError
        If the model does not have what it is made of.
    """
    match recipe:
        case {"stored": name, "type": kind}:
            return as_type(_stored(name, model), type_by_name(kind))
        case {"stored": name}:
            return _stored(name, model)
        case {"completed": name, "found": found, "as_seen": bool(is_as_seen)}:
            stored = replace(cast(QuantizedTensor, _stored(name, model)), is_as_seen=is_as_seen)
            return completed_tensor(stored, list(map(read_found, found)))
        case {"view": name, "dims": dims, "spans": spans}:
            parts = tuple(Span(make(each, model), start, end) for each, start, end in spans)
            return View(name, tuple(dims), parts)
        case {"absent": name, "dims": dims}:
            return AbsentTensor(name, tuple(dims))
        case {"integers": naive, "type": kind, "found": found}:
            return RecoveredTensor(make(naive, model), SecondHand(**found), type_by_name(kind))
    raise LookupError(f"{recipe!r} is no recipe")


def _stored(name: str, model: Model) -> StoredTensor:
    """A tensor as it is stored, in whatever layout."""
    if name in model.tensors:
        return model.tensors[name]
    return model.fitted([name]).tensors[name]

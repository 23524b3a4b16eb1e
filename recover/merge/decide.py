"""What happens to one tensor of a merge: which inputs take part, and how they are combined."""

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from recover._brief import Brief
from recover._text import printable, quoted
from recover.containers.model import GGML_DIMS, Model, StoredTensor
from recover.errors import PlanError
from recover.estimators import DEFAULT_METHOD, FIRST_ALONE, estimator, method_for
from recover.estimators.error_calibration import ErrorCalibration
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Source
from recover.inputs.alignment import Alignment, is_absent
from recover.inputs.descent import ESTIMATED, FEWEST_WEIGHTS, Descent, Family
from recover.inputs.floats import float_descents
from recover.inputs.foreign import foreign_noise, measure_noise
from recover.inputs.matching import by_fineness, contradicts, find_duplicates
from recover.inputs.provenance import (
    has_marks,
    is_foreign,
    is_plain,
    is_searched,
    proves_alone,
    source_of,
)
from recover.inputs.samples import Sampler
from recover.merge.lineage import declared_parents
from recover.quants import F32Array, FloatType, OpaqueType, ScalarType, TensorType, type_by_name

AnyDraft = TypeVar("AnyDraft", bound="Draft")


@dataclass(frozen=True, repr=False)
class Draft(Brief):
    """What happens to one tensor, wherever its output goes."""

    name: str
    """Name of the tensor."""
    dims: tuple[int, ...]
    """Row length first."""
    action: str
    """``copy`` (stored bytes), ``convert`` (one input, decoded) or ``merge``."""
    types: tuple[str, ...]
    """How each input stores it, in the order of the inputs."""
    used: tuple[int, ...]
    """Inputs that take part, finest first."""
    duplicate_of: tuple[int, ...]
    """For each input, the first input with the same bytes."""
    outtype: str
    """How the output stores it."""
    method: str
    """Name of the estimator; ``best`` where nothing is estimated."""
    compared: tuple[int, ...]
    """Inputs that take no part, but must not contradict what is taken."""
    descents: tuple[Descent, ...]
    """Inputs that tell nothing new, since they were made from others."""
    is_known: bool
    """Whether the input that is taken has the original's weights: nothing is estimated."""
    noises: tuple[float | None, ...]
    """For each of `used` the mean square error of its codes, in units of the squared scale, if
    another encoder than llama.cpp's made them."""
    sources: tuple[Source, ...]
    """Those of `used`, as the evidence on the weights; empty if `is_known`."""
    confining: tuple[int, ...]
    """Where inputs are compared, those whose numbers or codes prove bounds: of these and of the
    first of `used`."""
    compared_noises: tuple[float | None, ...]
    """As `noises`, where inputs are compared: of the first of `used` and of these."""
    error_calibration: ErrorCalibration | None
    """What the errors that the estimator expects are worth; None where nothing is estimated, and
    until all is known that decides on it (see `recover.merge.calibrated`)."""
    follows: str = ""
    """The tensor whose further rows these are; empty for a tensor of its own."""
    shift: float = 0.0
    """What is added to the weights, in float32, before they are stored."""

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "name", self.name
        yield "shape", self.dims[::-1]
        yield "action", self.action
        yield "types", " ".join(self.types)
        yield "outtype", self.outtype

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return math.prod(self.dims)


def changed(draft: AnyDraft, **values: Any) -> AnyDraft:
    """As `dataclasses.replace`; there may be very many drafts, and nothing is checked."""
    new = object.__new__(type(draft))
    vars(new).update(vars(draft), **values)
    return new


def _present(tensors: Sequence[StoredTensor], duplicate_of: Sequence[int]) -> list[int]:
    """The inputs that have a tensor, every content once."""
    return [i for i in sorted(set(duplicate_of)) if not is_absent(tensors[i])]


def _with_noise(source: Source, noise: float | None) -> Source:
    if noise is None:
        return source
    return replace(source, has_cells=False, weighted=False, noise=noise)


def _is_copied(tensor: StoredTensor, *, one_dimensional: bool) -> bool:
    """Whether the bytes of the finest input are taken, whatever type the output has."""
    kept = isinstance(tensor.type, FloatType) and (one_dimensional or tensor.type.name == "F32")
    return isinstance(tensor.type, OpaqueType) or kept or len(tensor.dims) > GGML_DIMS


class Decider:
    """Decides what happens to each tensor of some inputs.

    Parameters
    ----------
    models : sequence of Model
        The opened inputs.
    method : str
        Name of the estimator that is asked for.

    Attributes
    ----------
    warnings : list of str
        What is to be said of the tensors that were decided on.
    """

    def __init__(self, models: Sequence[Model], method: str) -> None:
        self.warnings: list[str] = []
        self._models = models
        self._method = method
        self._sampler = Sampler()
        self._declared = declared_parents(models)
        self._name = ""
        self._sources: dict[int, Source] = {}
        self._shared: dict[tuple[Source, ...], tuple[Source, ...]] = {}
        self._alike: dict[Hashable, Draft] = {}

    def drafts(self, aligned: Alignment, outtype: TensorType) -> list[Draft]:
        """What happens to each tensor; further rows of one are stored as its first ones are.

        Raises
        ------
        PlanError
            If the inputs' types do not fit together.
        """
        found: dict[str, Draft] = {}
        for name in aligned.names:
            draft = self.draft(name, outtype)
            if first := aligned.followers.get(name):
                same = found[first].outtype
                action = "convert" if draft.action == "copy" else draft.action
                keeps = draft.outtype == same
                draft = replace(draft, outtype=same, action=draft.action if keeps else action)
                draft = replace(draft, follows=first)
            found[name] = draft
        return list(found.values())

    def draft(self, name: str, outtype: TensorType) -> Draft:
        """What happens to the tensor of that name.

        Raises
        ------
        PlanError
            If the inputs' types do not fit together.
        """
        tensors = [model.tensors[name] for model in self._models]
        duplicate_of = find_duplicates(tensors)
        distinct = by_fineness(tensors, _present(tensors, duplicate_of))
        alike = self._what_decides(tensors, duplicate_of, distinct, outtype)
        if alike is not None and (known := self._alike.get(alike)) is not None:
            return changed(known, name=name)
        if isinstance(tensors[distinct[0]].type, OpaqueType):
            kinds = {tensor.type.name for tensor in tensors if not is_absent(tensor)}
            if len(kinds) > 1:
                raise PlanError(
                    f"tensor {quoted(name)} has types that do not fit: {', '.join(sorted(kinds))}"
                )
        draft = self._decide(name, tensors, duplicate_of, distinct, outtype)
        if alike is not None:
            self._alike[alike] = draft
        return draft

    def _what_decides(
        self,
        tensors: Sequence[StoredTensor],
        duplicate_of: Sequence[int],
        distinct: Sequence[int],
        outtype: TensorType,
    ) -> Hashable:
        """All that the draft of a small tensor follows from; None if its bytes are to be read."""
        finest = tensors[distinct[0]]
        if finest.n_weights >= FEWEST_WEIGHTS or len(finest.dims) > GGML_DIMS:
            return None
        told: list[Hashable] = [outtype, duplicate_of, tuple(distinct)]
        for model, each in zip(self._models, tensors, strict=True):
            if not isinstance(each.type, ScalarType):
                return None
            marked = has_marks(each)
            if not marked and is_foreign(model, each):
                return None
            told.append((each.type, each.dims, marked, each.scales is None, each.is_original))
        return tuple(told)

    def _decide(
        self,
        name: str,
        tensors: Sequence[StoredTensor],
        duplicate_of: tuple[int, ...],
        distinct: list[int],
        outtype: TensorType,
    ) -> Draft:
        """As `draft`; of the inputs with different bytes, the finest first."""
        descents = self._descents_among(name, distinct)
        children = {descent.child for descent in descents}
        distinct = [i for i in distinct if i not in children]
        finest = tensors[distinct[0]]
        one_dimensional = sum(dim > 1 for dim in finest.dims) <= 1
        if finest.dims[0] % outtype.block_size:
            outtype = type_by_name("F16")
        used, compared = distinct[:1], distinct[1:]
        action = "convert"
        if _is_copied(finest, one_dimensional=one_dimensional):
            action, outtype = "copy", finest.type
            is_odd = any(tensors[i].type is finest.type for i in children)
            if is_odd or (
                one_dimensional and any(contradicts(tensors[i], finest) for i in compared)
            ):
                self.warnings.append(
                    f"tensor {quoted(name)}: the inputs disagree; taken from"
                    f" {printable(self._models[distinct[0]].path)}"
                )
            if one_dimensional:
                compared = [i for i in compared if not isinstance(tensors[i].type, FloatType)]
        elif isinstance(finest.type, FloatType):
            action = "copy" if finest.type is outtype else "convert"
        else:
            if one_dimensional:
                outtype = type_by_name("F32")
            if originals := [i for i in distinct if tensors[i].is_original]:
                used = originals[:1]
            elif len(distinct) > 1 and not estimator(self._method).takes_first:
                used, action = distinct, "merge"
            if len(used) == 1 and outtype is tensors[used[0]].type:
                action = "copy"
            compared = [i for i in distinct if i not in used]
        if isinstance(finest.type, OpaqueType):
            compared = []
        is_known = self._is_known(name, used, descents)
        noises = (None,) * len(used) if is_known else self._noises(name, used)
        return Draft(
            name,
            finest.dims,
            action,
            tuple(tensor.type.name for tensor in tensors),
            tuple(used),
            duplicate_of,
            outtype.name,
            FIRST_ALONE if is_known else self._method_for(name, used),
            tuple(compared),
            descents,
            is_known,
            noises,
            () if is_known else self._sources_of(name, used, noises),
            self._confining(name, [used[0], *compared]) if compared else (),
            self._typical_noises(name, [used[0], *compared]) if compared else (),
            None,
        )

    def _sources_of(
        self, name: str, used: Sequence[int], noises: Sequence[float | None]
    ) -> tuple[Source, ...]:
        """The inputs that take part, as sources; tensors that are alike share one tuple."""
        sources = tuple(
            _with_noise(self._source(name, i), noise) for i, noise in zip(used, noises, strict=True)
        )
        return self._shared.setdefault(sources, sources)

    def _confining(self, name: str, inputs: Iterable[int]) -> tuple[int, ...]:
        """Which of some inputs give an interval for each weight."""
        return tuple(
            i
            for i in inputs
            if proves_alone(self._models[i].tensors[name].type) or self._source(name, i).has_cells
        )

    def _typical_noises(self, name: str, inputs: Iterable[int]) -> tuple[float | None, ...]:
        """The errors of some inputs' codes, as far as one input alone tells."""
        models = [self._models[i] for i in inputs]
        return tuple(foreign_noise(model, model.tensors[name]) for model in models)

    def _noises(self, name: str, used: Sequence[int]) -> tuple[float | None, ...]:
        """The errors of codes that another encoder than llama.cpp's made; None for all others."""
        tensors = {i: self._models[i].tensors[name] for i in used}
        foreign = [i for i in used if is_foreign(self._models[i], tensors[i])]
        known = [
            tensors[i] for i in used if i not in foreign and isinstance(tensors[i].type, ScalarType)
        ]
        return tuple(
            measure_noise(tensors[i], known[0] if known else None) if i in foreign else None
            for i in used
        )

    def _is_known(self, name: str, used: Sequence[int], descents: Sequence[Descent]) -> bool:
        """Whether the one input that is taken has the original's weights, so nothing is estimated.

        Codes that another encoder than llama.cpp's made, and 4-bit floats, are taken for the
        original if other inputs were quantized from them.
        """
        tensor = self._models[used[0]].tensors[name]
        if isinstance(tensor.type, FloatType | OpaqueType) or tensor.is_original:
            return True
        if len(used) > 1 or not any(used[0] in each.parents for each in descents):
            return False
        model = self._models[used[0]]
        if not (isinstance(tensor.type, ScalarType) and tensor.type.is_even):
            return tensor.type.is_native
        return not is_searched(model) and not is_plain(tensor)

    def _method_for(self, name: str, used: Sequence[int]) -> str:
        """Name of the estimator."""
        return method_for([self._source(name, i) for i in used], self._method)

    def _source(self, name: str, number: int) -> Source:
        """An input's tensor as a source; asked for again, its bytes are not looked at again."""
        if name != self._name:
            self._name = name
            self._sources.clear()
        if number not in self._sources:
            model = self._models[number]
            self._sources[number] = source_of(model, model.tensors[name])
        return self._sources[number]

    def descents(self, name: str) -> tuple[Descent, ...]:
        """Which inputs' tensors of that name were made from others'."""
        tensors = [model.tensors[name] for model in self._models]
        present = _present(tensors, find_duplicates(tensors))
        return self._descents_among(name, by_fineness(tensors, present))

    def _descents_among(self, name: str, distinct: Sequence[int]) -> tuple[Descent, ...]:
        """Which of some inputs with different bytes were made from others of them."""
        tensors = {i: self._models[i].tensors[name] for i in distinct}
        if len(distinct) < 2 or any(isinstance(t.type, OpaqueType) for t in tensors.values()):
            return ()
        declared = tuple(
            Descent(child, parents, (ESTIMATED,))
            for child, parents in self._declared.items()
            if {child, *parents} <= set(distinct)
        )
        for descent in declared:
            del tensors[descent.child]
        floats = float_descents(tensors)
        for descent in floats:
            del tensors[descent.child]
        is_small = self._models[0].tensors[name].n_weights < FEWEST_WEIGHTS
        if is_small or any(tensor.is_original for tensor in tensors.values()):
            return (*declared, *floats)
        confining = self._confining(name, tensors)

        def estimate(inputs: Sequence[int], start: int, end: int) -> F32Array:
            return self._estimate(name, inputs, start, end)

        natives = [
            i
            for i, tensor in tensors.items()
            if (isinstance(tensor.type, ScalarType) and tensor.type.is_native)
            or is_foreign(self._models[i], tensor)
        ]
        quantized = Family(tensors, confining, self._sampler, estimate, natives).descents()
        return (*declared, *floats, *quantized)

    def _estimate(self, name: str, inputs: Sequence[int], start: int, end: int) -> F32Array:
        """What a merge of some inputs makes of a range of weights."""
        tensors = [self._models[i].tensors[name] for i in inputs]
        sources = [self._source(name, i) for i in inputs]
        out = np.empty(end - start, np.float32)
        method = method_for(sources, DEFAULT_METHOD)
        UncorrectedTileEstimator(sources, method).estimate(tensors, start, end, out)
        return out

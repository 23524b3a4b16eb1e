"""What happens to one tensor of a merge: which inputs take part, and how they are combined."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from recover._text import printable, quoted
from recover.containers.model import GGML_DIMS, Model, StoredTensor
from recover.errors import PlanError
from recover.estimators import DEFAULT_METHOD, FIRST_ALONE, estimator, method_for
from recover.estimators.error_calibration import Claims
from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Witness
from recover.inputs.alignment import Alignment, is_absent
from recover.inputs.descent import ESTIMATED, FEWEST_WEIGHTS, Descent, Family
from recover.inputs.floats import float_descents
from recover.inputs.foreign import foreign_noise, measure_noise
from recover.inputs.matching import by_fineness, contradicts, find_twins
from recover.inputs.provenance import is_foreign, is_plain, is_searched, witness_of
from recover.inputs.samples import Sampler
from recover.merge.lineage import declared_parents
from recover.quants import (
    F32Array,
    FloatType,
    OpaqueType,
    ScalarType,
    TensorType,
    type_by_name,
)


@dataclass(frozen=True)
class Draft:
    """What happens to one tensor, wherever its output goes.

    Attributes
    ----------
    name : str
        Name of the tensor.
    dims : tuple of int
        Row length first.
    action : str
        ``copy`` (stored bytes), ``convert`` (one input, decoded) or ``merge``.
    types : tuple of str
        How each input stores it, in the order of the inputs.
    sources : tuple of int
        Inputs that take part, finest first.
    twins : tuple of int
        For each input, the first input with the same bytes.
    outtype : str
        How the output stores it.
    method : str
        Name of the estimator; ``best`` where nothing is estimated.
    compared : tuple of int
        Inputs that take no part, but must not contradict what is taken.
    descents : tuple of Descent
        Inputs that tell nothing new, since they were made from others.
    is_known : bool
        Whether the input that is taken has the original's weights: nothing is estimated.
    noises : tuple of float or None
        For each of the sources the mean square error of its codes, in units of the squared scale,
        if another encoder than llama.cpp's made them.
    witnesses : tuple of Witness
        The sources, as the evidence on the weights; empty if `is_known`.
    confining : tuple of int
        Where inputs are compared, those whose numbers or codes prove bounds: of these and of the
        first source.
    compared_noises : tuple of float or None
        As `noises`, where inputs are compared: of the first source and of these.
    claims : Claims or None
        What the errors that the estimator expects are worth; None where nothing is estimated, and
        until all is known that decides on it (see `recover.merge.calibrated.with_claims`).
    follows : str
        The tensor whose further rows these are; empty for a tensor of its own.
    """

    name: str
    dims: tuple[int, ...]
    action: str
    types: tuple[str, ...]
    sources: tuple[int, ...]
    twins: tuple[int, ...]
    outtype: str
    method: str
    compared: tuple[int, ...]
    descents: tuple[Descent, ...]
    is_known: bool
    noises: tuple[float | None, ...]
    witnesses: tuple[Witness, ...]
    confining: tuple[int, ...]
    compared_noises: tuple[float | None, ...]
    claims: Claims | None
    follows: str = ""

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return math.prod(self.dims)


def _present(tensors: Sequence[StoredTensor], twins: Sequence[int]) -> list[int]:
    """The inputs that have a tensor, every content once."""
    return [i for i in sorted(set(twins)) if not is_absent(tensors[i])]


def _with_noise(witness: Witness, noise: float | None) -> Witness:
    if noise is None:
        return witness
    return replace(witness, has_cells=False, weighted=False, noise=noise)


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
        self._witnesses: dict[int, Witness] = {}
        self._shared: dict[tuple[Witness, ...], tuple[Witness, ...]] = {}

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
        twins = find_twins(tensors)
        distinct = by_fineness(tensors, _present(tensors, twins))
        kinds = {tensor.type.name for tensor in tensors if not is_absent(tensor)}
        if isinstance(tensors[distinct[0]].type, OpaqueType) and len(kinds) > 1:
            raise PlanError(
                f"tensor {quoted(name)} has types that do not fit: {', '.join(sorted(kinds))}"
            )
        descents = self._descents_among(name, distinct)
        children = {descent.child for descent in descents}
        distinct = [i for i in distinct if i not in children]
        finest = tensors[distinct[0]]
        one_dimensional = sum(dim > 1 for dim in finest.dims) <= 1
        if finest.dims[0] % outtype.block_size:
            outtype = type_by_name("F16")
        sources, compared = distinct[:1], distinct[1:]
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
                sources = originals[:1]
            elif len(distinct) > 1 and not estimator(self._method).takes_first:
                sources, action = distinct, "merge"
            if len(sources) == 1 and outtype is tensors[sources[0]].type:
                action = "copy"
            compared = [i for i in distinct if i not in sources]
        if isinstance(finest.type, OpaqueType):
            compared = []
        is_known = self._is_known(name, sources, descents)
        noises = (None,) * len(sources) if is_known else self._noises(name, sources)
        return Draft(
            name,
            finest.dims,
            action,
            tuple(tensor.type.name for tensor in tensors),
            tuple(sources),
            twins,
            outtype.name,
            FIRST_ALONE if is_known else self._method_for(name, sources),
            tuple(compared),
            descents,
            is_known,
            noises,
            () if is_known else self._witnesses_of(name, sources, noises),
            self._confining(name, [sources[0], *compared]) if compared else (),
            self._typical_noises(name, [sources[0], *compared]) if compared else (),
            None,
        )

    def _witnesses_of(
        self, name: str, sources: Sequence[int], noises: Sequence[float | None]
    ) -> tuple[Witness, ...]:
        """The inputs that take part, as witnesses; tensors that are alike share one tuple."""
        witnesses = tuple(
            _with_noise(self._witness(name, i), noise)
            for i, noise in zip(sources, noises, strict=True)
        )
        return self._shared.setdefault(witnesses, witnesses)

    def _confining(self, name: str, inputs: Iterable[int]) -> tuple[int, ...]:
        """Which of some inputs give an interval for each weight."""
        return tuple(
            i
            for i in inputs
            if isinstance(self._models[i].tensors[name].type, FloatType)
            or self._witness(name, i).has_cells
        )

    def _typical_noises(self, name: str, inputs: Iterable[int]) -> tuple[float | None, ...]:
        """The errors of some inputs' codes, as far as one input alone tells."""
        models = [self._models[i] for i in inputs]
        return tuple(foreign_noise(model, model.tensors[name]) for model in models)

    def _noises(self, name: str, sources: Sequence[int]) -> tuple[float | None, ...]:
        """The errors of codes that another encoder than llama.cpp's made; None for all others."""
        tensors = {i: self._models[i].tensors[name] for i in sources}
        foreign = [i for i in sources if is_foreign(self._models[i], tensors[i])]
        known = [
            tensors[i]
            for i in sources
            if i not in foreign and isinstance(tensors[i].type, ScalarType)
        ]
        return tuple(
            measure_noise(tensors[i], known[0] if known else None) if i in foreign else None
            for i in sources
        )

    def _is_known(self, name: str, sources: Sequence[int], descents: Sequence[Descent]) -> bool:
        """Whether the one input that is taken has the original's weights, so nothing is estimated.

        Codes that another encoder than llama.cpp's made, and 4-bit floats, are taken for the
        original if other inputs were quantized from them.
        """
        tensor = self._models[sources[0]].tensors[name]
        if isinstance(tensor.type, FloatType | OpaqueType) or tensor.is_original:
            return True
        if len(sources) > 1 or not any(sources[0] in each.parents for each in descents):
            return False
        model = self._models[sources[0]]
        if not (isinstance(tensor.type, ScalarType) and tensor.type.is_even):
            return tensor.type.is_native
        return not is_searched(model) and not is_plain(tensor)

    def _method_for(self, name: str, sources: Sequence[int]) -> str:
        """Name of the estimator."""
        return method_for([self._witness(name, i) for i in sources], self._method)

    def _witness(self, name: str, source: int) -> Witness:
        """An input's tensor as a witness; asked for again, its bytes are not looked at again."""
        if name != self._name:
            self._name = name
            self._witnesses.clear()
        if source not in self._witnesses:
            model = self._models[source]
            self._witnesses[source] = witness_of(model, model.tensors[name])
        return self._witnesses[source]

    def descents(self, name: str) -> tuple[Descent, ...]:
        """Which inputs' tensors of that name were made from others'."""
        tensors = [model.tensors[name] for model in self._models]
        present = _present(tensors, find_twins(tensors))
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
        witnesses = [self._witness(name, i) for i in inputs]
        out = np.empty(end - start, np.float32)
        method = method_for(witnesses, DEFAULT_METHOD)
        UncorrectedTileEstimator(witnesses, method).estimate(tensors, start, end, out)
        return out

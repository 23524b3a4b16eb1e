"""The same tensors in all inputs: under one name, in one shape, or known to be absent.

Files of one model do not always hold the same tensors. Converters of different age store experts
apart or stacked, leave out what can be computed, or give the same weights another shape; some files
have rows added to the vocabulary. What all have is merged. What some lack is taken from the others.
Nothing is guessed: inputs that are aligned here are still compared weight by weight.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from math import prod

import numpy as np

from recover._text import printable, quoted, some
from recover.containers.model import BlockTensor, Model, StoredTensor
from recover.containers.views import reshaped, rows_of, stacked
from recover.errors import PlanError, UsageError
from recover.inputs.open import reference_of
from recover.quants import OpaqueType, TensorType, U8Array

ABSENT = OpaqueType(name="absent", block_size=1, type_size=0)
"""The type of a tensor that an input does not have."""

_ARCHITECTURE = "general.architecture"
_OF_TOKENS = frozenset({"token_embd.weight", "output.weight"})  # a row for each
_EXPERT = re.compile(r"(?P<stem>blk\.\d+\.ffn_(gate|up|down))\.(?P<number>\d{1,5})\.weight")


@dataclass(frozen=True, eq=False)
class AbsentTensor(BlockTensor):
    """Stands for a tensor that an input does not have."""

    name: str
    dims: tuple[int, ...]

    @property
    def type(self) -> TensorType:
        """`ABSENT`."""
        return ABSENT

    def part(self, start: int, end: int) -> U8Array:
        """Nothing."""
        return np.empty(0, np.uint8)


def is_absent(tensor: StoredTensor) -> bool:
    """Whether an input does not have a tensor."""
    return tensor.type is ABSENT


@dataclass(frozen=True)
class Alignment:
    """Inputs that have the same tensors.

    Attributes
    ----------
    models : tuple of Model
        The inputs; each has all of `names`, some perhaps as an `AbsentTensor`.
    names : tuple of str
        The tensors that are looked at, in the order of the output.
    followers : mapping of str to str
        Tensors that are the further rows of another one in the output, by their name; each follows
        that one in `names`.
    warnings : tuple of str
        What the user should know.
    """

    models: tuple[Model, ...]
    names: tuple[str, ...]
    followers: Mapping[str, str]
    warnings: tuple[str, ...]


def align(models: Sequence[Model], pattern: str | None = None) -> Alignment:
    """Make the inputs have the same tensors.

    Parameters
    ----------
    models : sequence of Model
        Inputs of one original; the first GGUF file gives the shapes.
    pattern : str, optional
        Regular expression; only tensors in whose name it is found are looked at.

    Raises
    ------
    PlanError
        If two inputs cannot be of one original: they name different architectures, tensors have
        other numbers of weights that no added rows explain, or they have no tensor in common.
    UsageError
        If `pattern` is no regular expression.
    """
    models = [_with_stacks(model, models) for model in models]
    reference = reference_of(models)
    models = [model.fitted(reference.tensors.keys()) for model in models]
    reference = reference_of(models)
    names = _selected(reference, models, pattern)
    for model in models:
        if model is not reference:
            _check_architecture(reference, model)
            _check_common(reference, model, names)
    wanted: dict[str, StoredTensor] = {}
    for name in names:
        wanted[name] = next(m.tensors[name] for m in (reference, *models) if name in m.tensors)
    fitter = _Fitter(reference, wanted, models)
    aligned = [fitter.fit(model) for model in models]
    fitter.check_held(aligned)
    ordered = [each for name in names for each in fitter.pieces_of(name)]
    full = tuple(_with_absent(model, ordered, fitter.dims) for model in aligned)
    warnings = [text for model in aligned if (text := _lacking(model, names, len(models)))]
    warnings += [
        f"{printable(model.path)}: left out are {some(list(map(quoted, model.left_out)))}, which"
        " have no place in a GGUF file of this architecture"
        for model in aligned
        if model.left_out
    ]
    said = dict.fromkeys((*warnings, *fitter.warnings))  # a file may be given twice
    return Alignment(full, tuple(ordered), fitter.followers, tuple(said))


def _with_absent(model: Model, names: Iterable[str], dims: Mapping[str, tuple[int, ...]]) -> Model:
    """The model with what stands for the tensors that it does not have."""
    held = model.tensors
    absent = {name: AbsentTensor(name, dims[name]) for name in names if name not in held}
    return model.with_tensors(absent) if absent else model


def _selected(reference: Model, models: Sequence[Model], pattern: str | None) -> list[str]:
    """All names, those of the reference first; or those in which the pattern is found."""
    names = list(dict.fromkeys(name for m in (reference, *models) for name in m.tensors))
    if pattern is None:
        return names
    try:
        names = [name for name in names if re.search(pattern, name)]
    except re.error as error:
        raise UsageError(f"{quoted(pattern)} is no regular expression: {error}") from None
    if not names:
        raise PlanError(f"{printable(reference.path)}: no tensor's name matches {quoted(pattern)}")
    return names


def _check_architecture(first: Model, other: Model) -> None:
    """Refuse another architecture; an input that names none may be of any."""
    names = [model.get(_ARCHITECTURE) for model in (first, other)]
    if None not in names and names[0] != names[1]:
        raise _mismatch(
            first,
            other,
            f"its architecture is {quoted(str(names[1]))}, not {quoted(str(names[0]))}",
        )


def _check_common(first: Model, other: Model, names: Iterable[str]) -> None:
    """Refuse inputs that share nothing, or of which one has scales that the other does not."""
    sides = _side_names(first) | _side_names(other)
    odd = [name for name in names if (name in first.tensors) != (name in other.tensors)]
    if scales := [quoted(name) for name in odd if name in sides]:
        raise _mismatch(
            first,
            other,
            f"{some(scales)}: of one the scales of NVFP4 weights, of the other of another type's,"
            " to which they are not applied",
        )
    if any(name in first.tensors and name in other.tensors for name in names):
        return
    missing = [quoted(name) for name in names if name in first.tensors]
    added = [quoted(name) for name in names if name in other.tensors]
    lacks = [f"it lacks {some(missing)}"] if missing else []
    has = [f"only it has {some(added)}"] if added else []
    raise _mismatch(first, other, "; ".join([*lacks, *has, "they have no tensor in common"]))


def _side_names(model: Model) -> set[str]:
    tensors = model.tensors.values()
    return {side.name for tensor in tensors for side in tensor.side_tensors}


def _mismatch(first: Model, other: Model, why: str) -> PlanError:
    return PlanError(f"{printable(other.path)} does not belong to {printable(first.path)}: {why}")


def _lacking(model: Model, names: Sequence[str], n_models: int) -> str:
    """A warning on what an input lacks; empty if it lacks nothing."""
    missing = [quoted(name) for name in names if name not in model.tensors]
    if not missing:
        return ""
    others = "the other input" if n_models == 2 else "the other inputs"
    return f"{printable(model.path)} lacks {some(missing)}: taken from {others} alone"


class _Fitter:
    """Gives the tensors of inputs the shapes that are wanted.

    Where an input has fewer rows than are wanted, the tensor is cut: the rows that all inputs have
    keep the name, the further ones are tensors of their own.

    Parameters
    ----------
    reference : Model
        The input whose shapes are wanted.
    wanted : mapping of str to StoredTensor
        A tensor of the wanted shape by name.
    models : sequence of Model
        All inputs.
    """

    def __init__(
        self, reference: Model, wanted: Mapping[str, StoredTensor], models: Sequence[Model]
    ) -> None:
        self.warnings: list[str] = []
        self.followers: dict[str, str] = {}
        self.dims: dict[str, tuple[int, ...]] = {}
        self._reference = reference
        self._cuts: dict[str, list[int]] = {}
        self._check(wanted, models)
        for name, tensor in wanted.items():
            stored = [model.tensors[name] for model in models if name in model.tensors]
            self._cuts[name] = self._cut(tensor, stored)

    def _check(self, wanted: Mapping[str, StoredTensor], models: Sequence[Model]) -> None:
        """Refuse an input with shapes that do not fit, and name all of them."""
        for model in models:
            odd = [
                f"{quoted(name)} is {shape_of(model.tensors[name])} instead of {shape_of(tensor)}"
                for name, tensor in wanted.items()
                if name in model.tensors and not _fits(model.tensors[name], tensor)
            ]
            if odd:
                raise _mismatch(self._reference, model, f"shapes differ: {some(odd)}")

    def _cut(self, tensor: StoredTensor, stored: Sequence[StoredTensor]) -> list[int]:
        """Where the rows of a tensor are cut; its number of rows comes last."""
        if all(each.n_weights == tensor.n_weights for each in stored):
            self.dims[tensor.name] = tensor.dims
            return []
        length, n_rows = tensor.dims[0], prod(tensor.dims[1:])
        ends = sorted({min(each.n_weights // length, n_rows) for each in stored})
        self.dims[tensor.name] = (length, ends[0])
        for first, last in pairwise(ends):
            name = name_of_rows(tensor.name, first)
            self.followers[name] = tensor.name
            self.dims[name] = (length, last - first)
        return ends

    def pieces_of(self, name: str) -> list[str]:
        """A tensor, and those with its further rows."""
        return [name, *(name_of_rows(name, first) for first in self._cuts[name][:-1])]

    def fit(self, model: Model) -> Model:
        """The same model with tensors of the shapes that are wanted."""
        changed: dict[str, StoredTensor] = {}
        odd: list[str] = []
        for name, ends in self._cuts.items():
            tensor = model.tensors.get(name)
            if tensor is None:
                continue
            if not _has_whole_blocks(tensor, ends):
                odd.append(name)
                continue
            if not ends:
                if tensor.dims != self.dims[name]:
                    if shape_of(tensor) != _shape(self.dims[name]):
                        self._say_reshaped(model, tensor)
                    changed[name] = reshaped(tensor, self.dims[name])
                continue
            n_rows = tensor.n_weights // tensor.dims[0]
            self._say_cut(model, tensor, ends[-1])
            for first, last in zip([0, *ends], ends, strict=False):
                own = name_of_rows(name, first)
                if last <= n_rows and last > first:
                    changed[own] = rows_of(tensor, own, first, last)
        changed |= {name: AbsentTensor(name, self.dims[name]) for name in odd}
        self._say_odd(model, odd)
        return model.with_tensors(changed) if changed else model

    def check_held(self, models: Sequence[Model]) -> None:
        """Refuse tensors that no input holds in whole blocks.

        Raises
        ------
        PlanError
            If there are any.
        """
        held = {
            name
            for model in models
            for name in self.dims
            if name in model.tensors and not is_absent(model.tensors[name])
        }
        if missing := [quoted(name) for name in self.dims if name not in held]:
            raise PlanError(
                f"{some(missing)}: quantized without a whole number of blocks in every input; leave"
                " them out with --tensors, or name an input that stores them as F32, F16 or BF16"
            )

    def _say_odd(self, model: Model, names: Sequence[str]) -> None:
        kinds = sorted({model.tensors[name].type.block_size for name in names})
        if names:
            self.warnings.append(
                f"{printable(model.path)}: {some(list(map(quoted, names)))}: quantized, but no"
                f" whole blocks of {' or '.join(map(str, kinds))} weights: they say nothing"
            )

    def _say_reshaped(self, model: Model, tensor: StoredTensor) -> None:
        wanted = _shape(self.dims[tensor.name])
        self.warnings.append(
            f"{printable(model.path)}: {quoted(tensor.name)} is {shape_of(tensor)}, and taken as"
            f" {wanted}"
        )

    def _say_cut(self, model: Model, tensor: StoredTensor, n_wanted: int) -> None:
        n_rows = tensor.n_weights // tensor.dims[0]
        if n_rows == n_wanted:
            return
        what = (
            f"the {n_rows - n_wanted} that {printable(self._reference.path)} does not have are left"
            " out"
            if n_rows > n_wanted
            else f"the {n_wanted - n_rows} that it lacks are taken from other inputs"
        )
        self.warnings.append(
            f"{printable(model.path)}: {quoted(tensor.name)} has {n_rows} rows, not {n_wanted};"
            f" {what}"
        )


def with_common_rows(one: StoredTensor, other: StoredTensor) -> tuple[StoredTensor, StoredTensor]:
    """Two tensors as far as both have their rows, where a vocabulary was padded.

    Tensors that differ in another way are as they were.
    """
    n_rows = min(prod(each.dims[1:]) for each in (one, other))
    is_padded = one.name in _OF_TOKENS and one.n_weights != other.n_weights
    if not (is_padded and _fits(one, other)):
        return one, other
    if not (_has_whole_blocks(one, [n_rows]) and _has_whole_blocks(other, [n_rows])):
        return one, other
    return rows_of(one, one.name, 0, n_rows), rows_of(other, other.name, 0, n_rows)


def name_of_rows(name: str, first: int) -> str:
    """What the rows of a tensor from one on are called."""
    return f"{name}[{first}:]" if first else name


def _has_whole_blocks(tensor: StoredTensor, ends: Sequence[int]) -> bool:
    """Whether a tensor has whole blocks, also where its rows are cut."""
    size = tensor.type.block_size
    return not (tensor.n_weights % size or any(end * tensor.dims[0] % size for end in ends))


def _fits(tensor: StoredTensor, wanted: StoredTensor) -> bool:
    """Whether a tensor can have the wanted shape, or more or fewer rows of it."""
    if tensor.n_weights == wanted.n_weights:
        return True
    is_plain = tensor.scales is None and wanted.scales is None
    same_rows = tensor.dims[0] == wanted.dims[0]
    fewest, most = sorted((tensor.n_weights, wanted.n_weights))
    are_matrices = all(prod(each.dims[2:]) == 1 for each in (tensor, wanted))
    return is_plain and same_rows and are_matrices and 2 * fewest >= most


def shape_of(tensor: StoredTensor) -> str:
    """The shape for people, row length first, without sizes of 1 at the end."""
    return _shape(tensor.dims)


def _shape(dims: Sequence[int]) -> str:
    sizes = list(dims)
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return "x".join(map(str, sizes))


def _with_stacks(model: Model, models: Sequence[Model]) -> Model:
    """The model with its experts stacked, if another one has stacks and they are of one kind."""
    experts: dict[str, dict[int, StoredTensor]] = {}
    for name, tensor in model.tensors.items():
        if match := _EXPERT.fullmatch(name):
            experts.setdefault(match["stem"], {})[int(match["number"])] = tensor
    changed: dict[str, StoredTensor] = {}
    taken: set[str] = set()
    for stem, numbered in experts.items():
        name, tensors = f"{stem}_exps.weight", [numbered[i] for i in sorted(numbered)]
        kinds = {(each.type, each.dims, each.scales is None) for each in tensors}
        is_whole = sorted(numbered) == list(range(len(numbered)))
        if is_whole and len(kinds) == 1 and any(name in other.tensors for other in models):
            changed[name] = stacked(name, tensors)
            taken.update(each.name for each in tensors)
    return model.without(taken).with_tensors(changed) if changed else model


def index_of(names: Sequence[str], name: str) -> int:
    """Which of some tensors has a name.

    Raises
    ------
    UsageError
        If none has; it names those that are spelt alike.
    """
    try:
        return names.index(name)
    except ValueError:
        near = get_close_matches(name, names, 3)
        hint = f"; did you mean {' or '.join(map(quoted, near))}?" if near else ""
        raise UsageError(f"there is no tensor {quoted(name)} among {len(names):,}{hint}") from None

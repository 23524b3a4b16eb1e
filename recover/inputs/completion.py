"""What folders do not say of their own tensors, found beside the other inputs.

Codes that make up for the errors of others (GPTQ, EXL2) are off by more than rounding; how much
more differs from tensor to tensor. Of some codes nobody says whether they do. AWQ and SmoothQuant
scale columns and rows of matrices; the norms that take that back are all that they leave of the
scales. Another input of the same original tells all of it (see `recover.inputs.foreign`,
`recover.inputs.scaled`).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import Any, cast

from recover._text import printable, quoted, some
from recover.containers.huggingface.floats import Floats
from recover.containers.huggingface.formats._grid import Grid
from recover.containers.huggingface.formats.base import is_soft
from recover.containers.huggingface.modules import as_float32, values
from recover.containers.huggingface.scaled import (
    Scales,
    behind_plain,
    no_scales,
)
from recover.containers.huggingface.tensors import FloatTensor, QuantizedTensor
from recover.containers.model import Model, StoredTensor
from recover.errors import PlanError
from recover.evidence.intervals import Intervals
from recover.inputs.alignment import AbsentTensor, align, is_absent
from recover.inputs.as_seen import as_seen
from recover.inputs.foreign import (
    is_rounded_plainly,
    may_be_clipped,
    measure_beyond,
    measure_ratio,
)
from recover.inputs.found import Found, completed, completed_tensor, is_measured, is_scaled
from recover.inputs.generations import with_generations
from recover.inputs.matching import by_fineness, typical_error
from recover.inputs.provenance import has_cells
from recover.inputs.scaled import (
    SCALINGS,
    ByNorm,
    ByRows,
    compare_norms,
    norm_scales,
    shared_scales,
)
from recover.quants import FloatType, IntervalTensor

_LAYER = re.compile(r"(?P<stem>blk\.\d+\.)(?P<role>\w+)\.weight")


def complete(
    models: Sequence[Model], names: Iterable[str], warnings: list[str]
) -> tuple[Model, ...]:
    """Find what folders do not say of their tensors.

    Parameters
    ----------
    models : sequence of Model
        The inputs, with the same tensors.
    names : iterable of str
        Tensors to look at.
    warnings : list of str
        What cannot be used is added.

    Returns
    -------
    tuple of Model
        In the same order. Tensors that say nothing are absent from them, and norms that take back
        the scales of columns.

    Raises
    ------
    PlanError
        If no other input has such a tensor.
    """
    found: list[Model] = []
    wanted = list(names)
    models = with_generations(models, wanted, warnings)
    for number, model in enumerate(models):
        completer = _Completer(models, number)
        known = completed(model, completer.look_at(wanted))
        if unknown := completer.unknown:
            what = (
                f"{printable(model.path)}: columns of {some(list(map(quoted, unknown)))} were"
                " scaled before they were quantized, and no other input tells the scales"
            )
            warnings.append(f"{what}: they say nothing")
        gone = [*unknown, *completer.divided]
        changed: dict[str, StoredTensor] = {
            name: AbsentTensor(name, model.tensors[name].dims) for name in gone
        }
        others = [each for i, each in enumerate(models) if i != number]
        changed |= as_seen(
            {name: known.tensors[name] for name in wanted if name not in gone}, others
        )
        found.append(known.with_tensors(changed) if changed else known)
    lost = [name for name in wanted if all(is_absent(model.tensors[name]) for model in found)]
    if lost:
        raise PlanError(
            f"{some(list(map(quoted, lost)))}: scaled before they were quantized in every input"
            " that has them, and no other input tells the scales; name a GGUF file of the same"
            " model as well"
        )
    return tuple(found)


def without_divided(model: Model) -> Model:
    """The model without norms that may take back scales of its own matrices' columns."""
    norms = {
        norm
        for name, tensor in model.tensors.items()
        if is_scaled(tensor)
        for scaling, norm in _scalings_of(name)
        if isinstance(scaling, ByNorm)
    }
    return model.without(norms) if norms else model


def with_known_scales(models: Sequence[Model]) -> tuple[Model, ...]:
    """The models, with the matrices unscaled of which another one proves the scales.

    Parameters
    ----------
    models : sequence of Model
        The inputs, as they are stored.

    Returns
    -------
    tuple of Model
        In the same order. Matrices whose scales are unknown, or only likely, are as they were.

    Raises
    ------
    PlanError
        If there are such matrices, and the inputs cannot be of one original.
    """
    scaled = [
        [name for name, tensor in model.tensors.items() if is_scaled(tensor)] for model in models
    ]
    if len(models) < 2 or not any(scaled):
        return tuple(models)
    aligned = align(models)
    found = []
    for number, (model, names) in enumerate(zip(models, scaled, strict=True)):
        here = [name for name in names if name in aligned.names]
        completions = _Completer(aligned.models, number).look_at(here)
        known = {
            name: tensor
            for name, of_runs in completions.items()
            if not is_measured(
                tensor := completed_tensor(cast(QuantizedTensor, model.tensors[name]), of_runs)
            )
        }
        found.append(model.with_tensors(known) if known else model)
    return tuple(found)


def check_unscaled(model: Model, names: Iterable[str]) -> None:
    """Refuse to take the weights of a model for the original's where they are not.

    Raises
    ------
    PlanError
        If columns of any of these tensors were scaled.
    """
    scaled = [name for name in names if name in model.tensors and is_scaled(model.tensors[name])]
    if scaled:
        raise PlanError(
            f"{printable(model.path)}: columns of {some(list(map(quoted, scaled)))} were scaled"
            " before they were quantized, so that they are no weights of the original; merge the"
            " folder with a GGUF file of the same model, which tells the scales"
        )


class _Completer:
    """Looks at one input beside the others."""

    def __init__(self, models: Sequence[Model], number: int) -> None:
        self._model = models[number]
        self._others = [model for i, model in enumerate(models) if i != number]
        self._columns: dict[str, Scales | None] = {}
        self._rows: dict[str, list[Scales]] = {}
        self._shared: dict[str, list[Scales]] = {}
        self._with_rows: set[str] = set()  # whose rows were divided by scales
        self.unknown: list[str] = []
        self.divided: set[str] = set()

    def look_at(self, names: Sequence[str]) -> dict[str, list[Found]]:
        """What is found, by name."""
        tensors = {
            name: tensor
            for name in names
            if isinstance(tensor := self._model.tensors[name], QuantizedTensor)
        }
        found = {}
        for name, tensor in tensors.items():
            if self._is_plain(name, tensor):
                found[name] = [Found(is_plain=True)] * len(tensor.runs)
            elif any(is_soft(run.matrix) for run in tensor.runs):
                found[name] = self._noises(name, tensor)
            elif may_be_clipped(tensor) and (known := self._known(name)):
                beyond = measure_beyond(tensor, known)
                found[name] = [Found(beyond=beyond)] * len(tensor.runs)
        scaled = [name for name, tensor in tensors.items() if is_scaled(tensor)]
        self._find_scales(self._of_layers(scaled))
        for name in scaled:
            has_columns = name in self._columns or name in self._shared  # None: not scaled
            if has_columns and (name in self._rows or name not in self._with_rows):
                scales = self._scales_of(name, tensors[name])
                tensor = completed_tensor(tensors[name], scales)
                found[name] = [
                    each._replace(noise=of_errors.noise)
                    for each, of_errors in zip(scales, self._noises(name, tensor), strict=True)
                ]
            else:
                self.unknown.append(name)
        return found

    def _of_layers(self, names: Sequence[str]) -> list[str]:
        """All scaled tensors of the layers of some, since a scale is told by several of them."""
        stems = {match["stem"] for name in names if (match := _LAYER.fullmatch(name))}
        return [
            name
            for name, tensor in self._model.tensors.items()
            if is_scaled(tensor) and (match := _LAYER.fullmatch(name)) and match["stem"] in stems
        ]

    def _known(self, name: str) -> StoredTensor | None:
        """The finest of the other inputs that confines a tensor's weights."""
        return self._finest(name, has_cells)

    def _finest(
        self, name: str, is_wanted: Callable[[Model, StoredTensor], bool]
    ) -> StoredTensor | None:
        """The finest of the other inputs' quantized tensors that are wanted."""
        tensors = [
            tensor
            for model in self._others
            if (tensor := model.tensors.get(name)) is not None
            and not is_absent(tensor)
            and not isinstance(tensor.type, FloatType)
            and is_wanted(model, tensor)
        ]
        ordered = by_fineness(tensors, range(len(tensors)))
        return tensors[ordered[0]] if ordered else None

    def _noises(self, name: str, tensor: QuantizedTensor) -> list[Found]:
        """The errors of codes that make up for others', beside the finest input that tells them.

        That is one with cells or, if there is none, a finer one of such codes.
        """
        if not any(is_soft(run.matrix) for run in tensor.runs):
            return [Found()] * len(tensor.runs)
        known = self._known(name)
        is_sure = known is not None
        if known is None:
            known = self._finest(name, lambda _, other: _is_finer(other, tensor))
        ratio = 1.0
        if known is not None:
            ratio = measure_ratio(cast(IntervalTensor, tensor), known, is_sure=is_sure)
        return [
            Found(noise=run.matrix.noise * ratio) if is_soft(run.matrix) else Found()
            for run in tensor.runs
        ]

    def _is_plain(self, name: str, tensor: QuantizedTensor) -> bool:
        """Whether only another input tells that codes are plainly rounded weights, and it does."""
        known = self._known(name)
        if known is None or not all(_is_untried(run.matrix) for run in tensor.runs):
            return False
        tried = completed_tensor(tensor, [Found(is_plain=True)] * len(tensor.runs))
        return is_rounded_plainly(tried, known)

    def _find_scales(self, names: Sequence[str]) -> None:
        """Scales of columns that norms tell, then those that two matrices share."""
        scalings = [(name, *each) for name in names for each in _scalings_of(name)]
        for name, scaling, norm in scalings:
            if isinstance(scaling, ByNorm):
                self._by_norm(name, norm)
        for name, scaling, behind in scalings:
            if isinstance(scaling, ByRows):
                self._by_rows(behind, name, scaling)

    def _by_norm(self, name: str, norm: str) -> None:
        """Columns whose scales a norm takes back."""
        stored = self._model.tensors.get(norm)
        original = next(
            (
                tensor
                for model in self._others
                if (tensor := model.tensors.get(norm)) is not None and tensor.type.name == "F32"
            ),
            None,
        )
        if not isinstance(stored, FloatTensor) or original is None:
            return
        floats: Floats = stored.runs[0].matrix
        own = as_float32(floats.tensor, values(floats.tensor)).reshape(-1)
        offset = 1.0 if floats.adds_one else 0.0
        whole = original.read(0, original.n_weights)
        match compare_norms(whole, own, floats.tensor.dtype, offset):
            case "plain":
                self._columns[name] = None
            case "scaled":
                self._columns[name] = norm_scales(whole, own, floats.tensor.dtype, offset)
                self.divided.add(norm)

    def _by_rows(self, name: str, before_name: str, scaling: ByRows) -> None:
        """Columns whose scales the last rows of the matrix in front take back."""
        after, before = (self._model.tensors.get(each) for each in (name, before_name))
        assert isinstance(before, QuantizedTensor)
        if after is not None and scaling.only_if_alike and before.dims != after.dims:
            self._columns[name] = None
            return
        if isinstance(after, QuantizedTensor) and not is_scaled(after):
            return  # nothing of it was scaled, so that no rows take anything back
        self._with_rows.add(before_name)
        known = self._known(name)
        if known is None or not isinstance(after, QuantizedTensor):
            return
        n_plain = before.dims[1] - after.dims[0]  # rows of other matrices, in front of those meant
        if n_plain < 0 or len(before.runs) != len(after.runs):
            return
        known_before = self._known(before_name) if before_name in self._columns else None
        shared = []
        for number, (run, front) in enumerate(zip(after.runs, before.runs, strict=True)):
            sides: list[Any] = [run.matrix.with_scales(None), _bounds_of(known, after, number)]
            if known_before is not None and not n_plain:
                columns = self._columns[before_name]
                in_front = _bounds_of(known_before, before, number)
                sides += [front.matrix.with_scales(columns), in_front]
            shared.append(shared_scales(*sides))
        self._shared[name] = shared
        self._rows[before_name] = [behind_plain(n_plain, each) for each in shared]

    def _scales_of(self, name: str, tensor: QuantizedTensor) -> list[Found]:
        """What was found of each matrix of a tensor."""
        n = len(tensor.runs)
        none = [no_scales(tensor.dims[0])]
        by_norm = self._columns.get(name)
        columns = self._shared.get(name) or (none if by_norm is None else [by_norm]) * n
        rows: list[Any] = list(self._rows.get(name, [None] * n))
        return [Found(columns=each, rows=row) for each, row in zip(columns, rows, strict=True)]


def _scalings_of(name: str) -> Iterator[tuple[ByNorm | ByRows, str]]:
    """How a matrix is scaled, and the norm in front of it or the matrix behind it."""
    if (match := _LAYER.fullmatch(name)) is None:
        return
    for scaling in SCALINGS:
        if isinstance(scaling, ByNorm) and match["role"] in scaling.columns:
            yield scaling, f"{match['stem']}{scaling.norm}.weight"
        elif isinstance(scaling, ByRows) and match["role"] == scaling.rows:
            yield scaling, f"{match['stem']}{scaling.columns}.weight"


def _is_finer(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether a tensor states errors, and smaller ones than those of another."""
    is_stated = isinstance(one, QuantizedTensor) and not is_scaled(one)
    return is_stated and typical_error(one.type) < typical_error(other.type)


def _is_untried(matrix: Any) -> bool:
    return isinstance(matrix, Grid) and matrix.is_untried


def _bounds_of(
    known: StoredTensor, tensor: QuantizedTensor, number: int
) -> Callable[[int, int], Any]:
    """Bounds of the weights of one of the matrices of a stack, by another input."""
    intervals = Intervals()
    intervals.look_at([known])
    offset = number * prod(tensor.dims[:2])

    def bounds(start: int, end: int) -> Any:
        return intervals.bound(offset + start, offset + end)

    return bounds

"""What `recover bounds` will do, decided from the headers."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recover._brief import Brief
from recover._text import printable, quoted, some, tensors_of
from recover._version import __version__
from recover.bounds.checks import SourceCheck, check_sources, condition_of
from recover.containers.gguf.metadata import QUANTIZER_KEY
from recover.containers.model import Model, StoredTensor
from recover.containers.safetensors.writer import ITEM_SIZES, Layout, lay_out
from recover.errors import PlanError
from recover.estimators import DEFAULT_METHOD
from recover.execution.output import check_output_path
from recover.execution.tiles import Progress
from recover.inputs.alignment import align, is_absent
from recover.inputs.completion import complete
from recover.inputs.found import is_measured, is_tried
from recover.inputs.matching import find_duplicates
from recover.inputs.metadata import METHOD_KEY
from recover.inputs.open import open_models
from recover.inputs.provenance import confines, uses_imatrix
from recover.merge.decide import Decider
from recover.quants import FloatType, OpaqueType, ScalarType

DTYPES = ("f32", "f16")


@dataclass(frozen=True, repr=False)
class TensorPlan(Brief):
    """One tensor."""

    name: str
    """Name of the tensor."""
    dims: tuple[int, ...]
    """Row length first."""
    types: tuple[str, ...]
    """How each input stores it."""
    sources: tuple[StoredTensor, ...]
    """Those that confine the weights, every content once."""
    positions: tuple[int, int] = (0, 0)
    """Where the lower and the upper bounds begin in the output."""
    checks: tuple[SourceCheck, ...] = ()
    """What was checked of each input whose codes may confine the weights; those that failed are not
    among the sources."""
    left_out: tuple[str, ...] = ()
    """Inputs that prove nothing of the original, and why, a line each."""
    kept: tuple[int, ...] | None = None
    """Which of the sources that there were before the checks are still there; None for all."""

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "name", self.name
        yield "shape", self.dims[::-1]
        yield "types", " ".join(self.types)
        yield "sources", len(self.sources)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why inputs were left out, a line each."""
        failed = [each for each in self.checks if each.failed]
        if not failed:
            return self.left_out
        return (*self.left_out, *(f"{printable(each.path)}: {each.failed}" for each in failed))

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return math.prod(self.dims)


@dataclass(frozen=True, repr=False)
class BoundsPlan(Brief):
    """All tensors, and the layout of the output."""

    models: tuple[Model, ...]
    """The opened inputs."""
    output: Path | None
    """File to be written, if any."""
    dtype: str
    """``f32`` or ``f16`` (rounded outward)."""
    tensors: tuple[TensorPlan, ...]
    """In the order of the first input."""
    header: bytes
    """Of the output, as long as it can become (see `header_with`); empty if there is none."""
    n_bytes: int
    """Size of the output; 0 if there is none."""
    told: tuple[str, ...]
    """What the user should know, before any check."""
    asked: dict[str, Any]
    """The parameters of `plan_bounds` as plain data, with absolute paths."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know."""
        return (*self.told, *_warnings(self.tensors))

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "inputs", " + ".join(each.path.name for each in self.models)
        yield "output", self.output
        yield "tensors", len(self.tensors)
        yield "weights", self.n_weights
        yield "warnings", len(self.warnings)

    def rows(self) -> Iterator[Sequence[object]]:
        """See `recover._brief.Brief`."""
        yield "tensor", "shape", "inputs", "that confine"
        for each in self.tensors:
            yield each.name, each.dims[::-1], " ".join(each.types), len(each.sources)

    @property
    def item_size(self) -> int:
        """Bytes of one bound."""
        return ITEM_SIZES[self.dtype.upper()]

    @property
    def n_weights(self) -> int:
        """Weights of all tensors."""
        return sum(tensor.n_weights for tensor in self.tensors)


def plan_bounds(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    dtype: str = "f32",
    tensors: str | None = None,
    checks: bool = True,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> BoundsPlan:
    """Decide what is bounded and where it goes, and check the inputs; nothing is written.

    Parameters
    ----------
    inputs : sequence of path-like
        GGUF files or Hugging Face folders quantized from the same original.
    output : path-like, optional
        Safetensors file for ``<tensor>.lower`` and ``<tensor>.upper``; none for statistics alone.
    dtype : {"f32", "f16"}
        How bounds are stored; f16 is rounded outward.
    tensors : str, optional
        Regular expression; only tensors in whose name it is found are taken.
    checks : bool
        Whether the inputs are checked now; otherwise each tensor's before its bounds are made (see
        `recover.bounds.work`).
    n_threads : int, optional
        For the checks; default: the cores that this process may use.
    progress : callable, optional
        ``progress(n_weights_done, n_weights)`` of the checks, called from this thread.

    Returns
    -------
    BoundsPlan

    Raises
    ------
    GGUFError, OutputError, PlanError
        If an input cannot be read, the output cannot be written, or the inputs do not fit together.
    """
    if dtype not in DTYPES:
        raise PlanError(f"bounds cannot be stored as {dtype!r}; known are {', '.join(DTYPES)}")
    opened = open_models(inputs)
    path = None if output is None else Path(output)
    if path is not None:
        check_output_path(path, [part for model in opened for part in model.parts])
    warnings: list[str] = []
    models, names = prepare(opened, tensors, warnings)
    plans = plan_tensors(models, names)
    if not plans:
        raise PlanError("none of the tensors holds weights")
    header, n_bytes = b"", 0
    if path is not None:
        # As if all tensors failed: so long can the header become.
        layout = _layout(plans, models, dtype, [tensor.name for tensor in plans])
        header, n_bytes = layout.header, layout.n_bytes
        positions = zip(layout.positions[::2], layout.positions[1::2], strict=True)
        plans = [replace(tensor, positions=p) for tensor, p in zip(plans, positions, strict=True)]
    asked = {
        "inputs": [str(Path(each).absolute()) for each in inputs],
        "output": None if path is None else str(path.absolute()),
        "dtype": dtype,
        "tensors": tensors,
        "checks": False,
    }
    if checks:
        plans = checked(plans, models, n_threads, progress)
    return BoundsPlan(
        *(models, path, dtype, tuple(plans), header, n_bytes), told=tuple(warnings), asked=asked
    )


def header_with(plan: BoundsPlan, not_certified: Sequence[str]) -> bytes:
    """The header of the output, naming the tensors whose bounds are not certified."""
    layout = _layout(plan.tensors, plan.models, plan.dtype, not_certified, len(plan.header))
    return layout.header


def _layout(
    tensors: Sequence[TensorPlan],
    models: Sequence[Model],
    dtype: str,
    not_certified: Sequence[str],
    n_header: int = 0,
) -> Layout:
    return lay_out(
        [
            (f"{tensor.name}.{side}", dtype.upper(), tensor.dims[::-1])
            for tensor in tensors
            for side in ("lower", "upper")
        ],
        {
            "recover.version": __version__,
            "recover.sources": _names(models),
            "recover.condition": condition_of(models),
            "recover.not_certified": json.dumps(list(not_certified), ensure_ascii=False),
        },
        n_header,
    )


def prepare(
    opened: Sequence[Model], pattern: str | None, warnings: list[str]
) -> tuple[tuple[Model, ...], list[str]]:
    """The inputs with the same tensors, and the names of those that hold weights.

    Parameters
    ----------
    opened : sequence of Model
        The inputs.
    pattern : str or None
        Regular expression; only tensors in whose name it is found are taken.
    warnings : list of str
        What cannot be used is added.
    """
    aligned = align(opened, pattern)
    models = complete(aligned.models, aligned.names, warnings)
    return models, [name for name in aligned.names if _holds_weights(name, models)]


def plan_tensors(models: Sequence[Model], names: Sequence[str]) -> list[TensorPlan]:
    """Which inputs may confine the weights of some tensors; they are not checked yet."""
    decider = Decider(models, DEFAULT_METHOD)
    return [_plan_tensor(name, models, decider) for name in names]


def checked(
    plans: Sequence[TensorPlan],
    models: Sequence[Model],
    n_threads: int | None,
    progress: Progress | None,
) -> list[TensorPlan]:
    """The plans with what was checked of the sources, less those that failed."""
    checks = check_tensors(plans, models, n_threads, progress)
    return [_with_checks(plan, own) for plan, own in zip(plans, checks, strict=True)]


def check_tensors(
    plans: Sequence[TensorPlan],
    models: Sequence[Model],
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> list[tuple[SourceCheck, ...]]:
    """Check the sources of tensors; of each what was found of those of scalar types."""
    model_of = {id(tensor): model for model in models for tensor in model.tensors.values()}
    sources = [
        [source for source in plan.sources if isinstance(source.type, ScalarType)] for plan in plans
    ]
    pairs = [(model_of[id(source)], source) for own in sources for source in own]
    found = iter(check_sources(pairs, n_threads=n_threads, progress=progress))
    return [tuple(next(found) for _ in own) for own in sources]


def _with_checks(plan: TensorPlan, checks: Sequence[SourceCheck]) -> TensorPlan:
    """The plan of a tensor with what was checked, less the sources that failed."""
    left = iter(checks)
    kept = tuple(
        i
        for i, source in enumerate(plan.sources)
        if not isinstance(source.type, ScalarType) or next(left).failed is None
    )
    sources = (
        plan.sources if len(kept) == len(plan.sources) else tuple(plan.sources[i] for i in kept)
    )
    return replace(plan, sources=sources, checks=tuple(checks), kept=kept)


def with_checks(plan: BoundsPlan, checks: Mapping[int, Sequence[SourceCheck]]) -> BoundsPlan:
    """The plan with what was checked of some tensors, less the sources that failed."""
    tensors = tuple(
        _with_checks(tensor, checks[i]) if i in checks else tensor
        for i, tensor in enumerate(plan.tensors)
    )
    return replace(plan, tensors=tensors)


def _may_confine(model: Model, tensor: StoredTensor) -> bool:
    """As `recover.inputs.provenance.confines`, before the marks of all blocks are looked at."""
    searched = uses_imatrix(model) or QUANTIZER_KEY in model.metadata
    kind = tensor.type
    if isinstance(kind, ScalarType):
        return not (kind.refits_scale_with_imatrix and searched)
    return confines(model, tensor)


def _holds_weights(name: str, models: Sequence[Model]) -> bool:
    stored = [model.tensors[name] for model in models]
    present = [tensor for tensor in stored if not is_absent(tensor)]
    return not any(isinstance(tensor.type, OpaqueType) for tensor in present)


def _plan_tensor(name: str, models: Sequence[Model], decider: Decider) -> TensorPlan:
    stored = [model.tensors[name] for model in models]
    duplicate_of = find_duplicates(stored)
    left_out = _not_of_the_original(name, models, decider) if _is_matrix(stored[0]) else {}
    sources = tuple(
        tensor
        for i, (model, tensor) in enumerate(zip(models, stored, strict=True))
        if duplicate_of[i] == i and i not in left_out and _may_confine(model, tensor)
    )
    types = tuple(each.type.name for each in stored)
    why = tuple(f"{printable(models[i].path)}: {text}" for i, text in left_out.items())
    return TensorPlan(name, stored[0].dims, types, sources, left_out=why)


def _is_matrix(tensor: StoredTensor) -> bool:
    return sum(dim > 1 for dim in tensor.dims) > 1


def _not_of_the_original(name: str, models: Sequence[Model], decider: Decider) -> dict[int, str]:
    """Inputs whose numbers or codes prove nothing of the original's weights, and why."""
    found = {
        i: "holds what a merge estimated, not the original's weights"
        for i, model in enumerate(models)
        if METHOD_KEY in model.metadata
    }
    for i, model in enumerate(models):
        if is_measured(model.tensors[name]):
            found[i] = "was scaled, by scales that are not stored but only measured beside others"
        elif is_tried(model.tensors[name]):
            found[i] = "has codes of which only other inputs tell that they were rounded plainly"
    for descent in decider.descents(name):
        parents = [models[i].tensors[name] for i in descent.parents]
        if not all(isinstance(parent.type, FloatType) for parent in parents):
            paths = " and ".join(printable(models[i].path) for i in descent.parents)
            found.setdefault(descent.child, f"was quantized from {paths}, not from the original")
    return found


def _names(models: Sequence[Model]) -> str:
    return ", ".join(printable(model.path.name) for model in models)


def _warnings(plans: Sequence[TensorPlan]) -> list[str]:
    warnings = []
    if unbounded := [quoted(tensor.name) for tensor in plans if not tensor.sources]:
        warnings.append(f"no input confines the weights of {some(unbounded)}")
    failed: dict[str, list[str]] = {}
    for tensor in plans:
        for failure in tensor.failures:
            failed.setdefault(failure, []).append(quoted(tensor.name))
    return warnings + [
        f"{tensors_of(names)} not bounded by {failure}, so that it proves nothing"
        for failure, names in failed.items()
    ]

"""What `recover bounds` will do, decided from the headers."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recover import __version__
from recover.errors import PlanError
from recover.gguf.reader import Model, Tensor, open_gguf
from recover.gguf.text import some
from recover.gguf.writer import check_output_path
from recover.matching import check_match, find_twins, select_tensors
from recover.provenance import has_cells
from recover.quants import FloatType, OpaqueType
from recover.safetensors.writer import ITEM_SIZES, lay_out

DTYPES = ("f32", "f16")


@dataclass(frozen=True)
class TensorPlan:
    """One tensor.

    Attributes
    ----------
    name : str
        Name of the tensor.
    dims : tuple of int
        Row length first.
    types : tuple of str
        How each input stores it.
    sources : tuple of Tensor
        Those that confine the weights, every content once.
    positions : tuple of int
        Where the lower and the upper bounds begin in the output.
    """

    name: str
    dims: tuple[int, ...]
    types: tuple[str, ...]
    sources: tuple[Tensor, ...]
    positions: tuple[int, int] = (0, 0)

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return math.prod(self.dims)


@dataclass(frozen=True)
class BoundsPlan:
    """All tensors, and the layout of the output.

    Attributes
    ----------
    models : tuple of Model
        The opened inputs.
    output : Path or None
        File to be written, if any.
    dtype : str
        ``f32`` or ``f16`` (rounded outward).
    tensors : tuple of TensorPlan
        In the order of the first input.
    header : bytes
        Of the output.
    n_bytes : int
        Size of the output.
    warnings : tuple of str
        What the user should know.
    """

    models: tuple[Model, ...]
    output: Path | None
    dtype: str
    tensors: tuple[TensorPlan, ...]
    header: bytes
    n_bytes: int
    warnings: tuple[str, ...]

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
) -> BoundsPlan:
    """Decide what is bounded and where it goes; nothing is written.

    Parameters
    ----------
    inputs : sequence of path-like
        GGUF files quantized from the same original.
    output : path-like, optional
        Safetensors file for ``<tensor>.lower`` and ``<tensor>.upper``; none for statistics alone.
    dtype : {"f32", "f16"}
        How bounds are stored; f16 is rounded outward.
    tensors : str, optional
        Regular expression; only tensors in whose name it is found are taken.

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
    models = open_inputs(inputs)
    path = None if output is None else Path(output)
    if path is not None:
        check_output_path(path, [part for model in models for part in model.parts])
    chosen = select_tensors(models[0], tensors)
    plans = [_plan_tensor(name, models) for name in chosen if _holds_weights(name, models)]
    if not plans:
        raise PlanError("none of the tensors holds weights")
    layout = lay_out(
        [
            (f"{tensor.name}.{side}", dtype.upper(), tensor.dims[::-1])
            for tensor in plans
            for side in ("lower", "upper")
        ],
        {"recover.version": __version__, "recover.sources": _names(models)},
    )
    placed = [
        TensorPlan(t.name, t.dims, t.types, t.sources, (lower, upper))
        for t, lower, upper in zip(
            plans, layout.positions[::2], layout.positions[1::2], strict=True
        )
    ]
    return BoundsPlan(
        models, path, dtype, tuple(placed), layout.header, layout.n_bytes, _warnings(plans)
    )


def open_inputs(inputs: Sequence[str | os.PathLike[str]]) -> tuple[Model, ...]:
    """Open files that must have the same tensors; `PlanError` if they do not, or there are none."""
    if not inputs:
        raise PlanError("there are no inputs")
    models = tuple(open_gguf(path) for path in inputs)
    for model in models[1:]:
        check_match(models[0], model)
    return models


def confines(model: Model, tensor: Tensor) -> bool:
    """Whether an input's tensor gives an interval for each of the original weights."""
    return isinstance(tensor.type, FloatType) or has_cells(model, tensor)


def _holds_weights(name: str, models: Sequence[Model]) -> bool:
    return not any(isinstance(model.tensors[name].type, OpaqueType) for model in models)


def _plan_tensor(name: str, models: Sequence[Model]) -> TensorPlan:
    stored = [model.tensors[name] for model in models]
    twins = find_twins(stored)
    sources = tuple(
        tensor
        for i, (model, tensor) in enumerate(zip(models, stored, strict=True))
        if twins[i] == i and confines(model, tensor)
    )
    return TensorPlan(name, stored[0].dims, tuple(each.type.name for each in stored), sources)


def _names(models: Sequence[Model]) -> str:
    return ", ".join(model.path.name for model in models)


def _warnings(plans: Sequence[TensorPlan]) -> tuple[str, ...]:
    unbounded = [tensor.name for tensor in plans if not tensor.sources]
    if not unbounded:
        return ()
    return (f"no input confines the weights of {some(unbounded)}",)

"""Tensors that are known exactly: what a merge does with them, and what becomes of them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recover.gguf.reader import Model, Tensor
from recover.gguf.text import printable, quoted, some
from recover.merge.sums import NOT_FINITE, ROUNDED
from recover.quants import FloatType
from recover.reblock.origin import is_original

if TYPE_CHECKING:
    from recover.merge.plan import MergePlan, TensorPlan


def warnings_of(plan: "MergePlan", totals: Mapping[int, NDArray[np.float64]]) -> list[str]:
    """What people should know of tensors that were copied, or exact.

    Parameters
    ----------
    plan : MergePlan
        What was carried out.
    totals : mapping of int to array
        The sums of each tensor (`recover.merge.sums`).
    """
    return _not_finite(plan, totals) + _rounded(plan, totals)


def _not_finite(plan: "MergePlan", totals: Mapping[int, NDArray[np.float64]]) -> list[str]:
    return [
        f"tensor {quoted(plan.tensors[index].name)} of"
        f" {printable(plan.models[plan.tensors[index].sources[0]].path)} holds"
        f" {int(sums[NOT_FINITE]):,} NaN or infinite values, which were copied"
        for index, sums in sorted(totals.items())
        if sums[NOT_FINITE]
    ]


def _rounded(plan: "MergePlan", totals: Mapping[int, NDArray[np.float64]]) -> list[str]:
    """Exact tensors that the output's type cannot hold."""
    found: dict[str, list[str]] = {}
    for index, sums in sorted(totals.items()):
        tensor = plan.tensors[index]
        if sums[ROUNDED] and _is_exact(_source(plan, tensor)):
            amount = f"{int(sums[ROUNDED]):,} of {tensor.n_weights:,} weights"
            found.setdefault(tensor.outtype, []).append(f"{quoted(tensor.name)} ({amount})")
    return [
        f"{outtype} cannot hold exactly what is known exactly, so that weights were rounded:"
        f" {some(named)}; --outtype f32 holds them"
        for outtype, named in found.items()
    ]


def _source(plan: "MergePlan", tensor: "TensorPlan") -> Tensor:
    return plan.models[tensor.sources[0]].tensors[tensor.name]


def _is_exact(tensor: Tensor) -> bool:
    return isinstance(tensor.type, FloatType) or is_original(tensor)


def unquantized_warnings(models: Sequence[Model], tensors: Sequence["TensorPlan"]) -> list[str]:
    """Inputs whose matrices are not quantized, so that the others add nothing to them.

    Parameters
    ----------
    models : sequence of Model
        The inputs.
    tensors : sequence of TensorPlan
        What is to happen to their tensors.

    Returns
    -------
    list of str
        A line for each such input.
    """
    matrices = [tensor for tensor in tensors if sum(dim > 1 for dim in tensor.dims) > 1]
    taken: dict[int, list[str]] = {}
    for tensor in matrices:
        (source, *others), name = tensor.sources, tensor.name
        is_float = isinstance(models[source].tensors[name].type, FloatType)
        if is_float and not others and any(twin != source for twin in _others(tensor, source)):
            taken.setdefault(source, []).append(quoted(name))
    lines = []
    for source, names in taken.items():
        path = printable(models[source].path)
        if len(names) == len(matrices):
            lines.append(
                f"{path} is not quantized: its tensors are taken as they are, the others add"
                " nothing"
            )
        else:
            lines.append(
                f"{path} holds {some(names)} unquantized: they are taken as they are, the others"
                " add nothing to them"
            )
    return lines


def _others(tensor: "TensorPlan", source: int) -> list[int]:
    """For each input but one, the first input with the same bytes."""
    same = tensor.twins[source]
    return [source if twin == same else twin for twin in tensor.twins]

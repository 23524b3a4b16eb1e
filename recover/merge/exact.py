"""Tensors that are known exactly: what a merge does with them, and what becomes of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recover._text import printable, quoted, some
from recover.containers.model import Model, StoredTensor
from recover.inputs.nearness import nearness_warnings
from recover.merge.decide import Draft
from recover.merge.sums import Totals
from recover.quants import F32Array, FloatType, TensorType, U8Array, dequantize

if TYPE_CHECKING:
    from recover.merge.plan import MergePlan, TensorPlan

_F16_STEP = 2.0**-24
_NOTICED = 0.01
"""Rounding to F16 is told where it adds more than this share of the expected square error."""


def warnings_of(plan: "MergePlan", totals: Totals) -> list[str]:
    """What people should know of tensors that were copied, or exact.

    Parameters
    ----------
    plan : MergePlan
        What was carried out.
    totals : dict of int to Sums
        Of each tensor.
    """
    return _not_finite(plan, totals) + _rounded(plan, totals) + _small(plan, totals)


def _not_finite(plan: "MergePlan", totals: Totals) -> list[str]:
    return [
        f"tensor {quoted(plan.tensors[index].name)} of"
        f" {printable(plan.models[plan.tensors[index].used[0]].path)} holds"
        f" {sums.not_finite:,} NaN or infinite values, which were copied"
        for index, sums in sorted(totals.items())
        if sums.not_finite
    ]


def _rounded(plan: "MergePlan", totals: Totals) -> list[str]:
    """Exact tensors that the output's type cannot hold."""
    found: dict[tuple[str, str], list[str]] = {}
    for index, sums in sorted(totals.items()):
        tensor = plan.tensors[index]
        source = _source(plan, tensor)
        if sums.rounded and _is_exact(source):
            amount = f"{sums.rounded:,} of {tensor.n_weights:,} weights"
            better = "bf16" if source.type.name == "BF16" else "f32"
            key = tensor.outtype, better
            found.setdefault(key, []).append(f"{quoted(tensor.name)} ({amount})")
    return [
        f"{outtype} cannot hold exactly what is known exactly: {some(named)} were rounded;"
        f" --outtype {better} holds them"
        for (outtype, better), named in found.items()
    ]


def _small(plan: "MergePlan", totals: Totals) -> list[str]:
    """Tensors of weights so small that F16 has few of its digits for them.

    F16 numbers are 2**-24 apart, or more. What rounding to them adds to the square error is known
    without a look at the weights.
    """
    found = []
    for index, sums in sorted(totals.items()):
        tensor = plan.tensors[index]
        if tensor.outtype != "F16" or sums.estimated is None:
            continue
        expected = float(sums.estimated.variance) / tensor.n_weights
        if 0 < expected < _F16_STEP**2 / 12 / _NOTICED:
            more = f"{_F16_STEP**2 / 12 / expected:.0%} of the error that is expected of it"
            found.append(f"{quoted(tensor.name)} (by up to {more})")
    if not found:
        return []
    lost = f"F16 loses digits of weights as small as those of {some(found)}"
    return [f"{lost}; --outtype bf16 has as many for them as for others"]


def _source(plan: "MergePlan", tensor: "TensorPlan") -> StoredTensor:
    return plan.models[tensor.used[0]].tensors[tensor.name]


def _is_exact(tensor: StoredTensor) -> bool:
    return isinstance(tensor.type, FloatType) or tensor.is_original


def unquantized_warnings(models: Sequence[Model], drafts: Sequence[Draft]) -> list[str]:
    """Inputs that are not quantized, so that the others add nothing to their tensors.

    Parameters
    ----------
    models : sequence of Model
        The inputs.
    drafts : sequence of Draft
        What is to happen to their tensors.

    Returns
    -------
    list of str
        A line for each input most of whose weights in matrices are taken as floats, and for each
        other one that these are too near to (see `recover.inputs.nearness`).
    """
    matrices = [tensor for tensor in drafts if sum(dim > 1 for dim in tensor.dims) > 1]
    n_weights = sum(tensor.n_weights for tensor in matrices)
    lines = []
    for number, model in enumerate(models):
        taken = [tensor for tensor in matrices if _is_taken_alone(tensor, number, model)]
        others = [other for other in models if other is not model]
        lines += nearness_warnings(model, others, [tensor.name for tensor in taken])
        if 2 * sum(tensor.n_weights for tensor in taken) <= n_weights:
            continue
        path, which = printable(model.path), "its tensors"
        if len(taken) < len(matrices):
            which = some([quoted(tensor.name) for tensor in taken])
        lines.append(
            f"{path} is not quantized: {which} are taken as they are, the others add nothing"
        )
    return lines


def _is_taken_alone(tensor: Draft, number: int, model: Model) -> bool:
    """Whether an input's floats are taken, while another input has something else."""
    is_float = isinstance(model.tensors[tensor.name].type, FloatType)
    is_alone = len(set(tensor.duplicate_of)) > 1 and tensor.used == (number,)
    return is_float and is_alone


def count_rounded(
    estimate: F32Array, encoded: U8Array, outtype: TensorType, n_tensors: int = 1
) -> NDArray[np.int64]:
    """Weights that the output's type does not hold exactly: int64 (n_tensors,).

    So many tensors of one size lie one behind the other.
    """
    if outtype.name == "F32":
        return np.zeros(n_tensors, np.int64)
    differs = dequantize(encoded, outtype) != estimate
    return np.add.reduce(differs.reshape(n_tensors, -1), 1, dtype=np.int64)


def rounded_away(
    estimate: F32Array, encoded: U8Array, outtype: TensorType, n_tensors: int = 1
) -> NDArray[np.float64]:
    """The square errors that the output's type adds, summed: float64 (n_tensors,).

    F16 and F32 add next to nothing.
    """
    if outtype.name in ("F16", "F32"):
        return np.zeros(n_tensors)
    off = dequantize(encoded, outtype).astype(np.float64) - estimate
    return np.array([each @ each for each in off.reshape(n_tensors, -1)])

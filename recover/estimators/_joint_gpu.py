"""The method `joint` with its network on a GPU, through torch (the extra ``gpu``).

What is told of superblocks, and what is made of the results, is done by the same kernels as on the
CPU, so that figures differ by the rounding of float32 alone.
"""

import threading
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover._compiled.jit import bare_kernel
from recover._compiled.lanes import load
from recover.estimators._joint import confine, settle
from recover.estimators._joint_features import (
    Inputs,
    Means,
    describe,
    inputs_of,
    is_like_others,
    n_features,
    new_means,
)
from recover.estimators._joint_files import Terms
from recover.evidence.buffer import Evidence
from recover.evidence.cells import intersect_cells
from recover.quants import F32Array

_AT_ONCE = 512  # superblocks
_ZERO = np.float32(0)


@cache
def device() -> str | None:
    """The GPU that torch has; None without torch, or without a GPU."""
    if find_spec("torch") is None:
        return None
    import torch

    return "cuda" if torch.cuda.is_available() else None


class _Buffers(NamedTuple):
    """Memory of a thread: tensors that the device reads fast, and arrays on the same memory."""

    tensors: tuple[Any, ...]
    by_weight: F32Array
    by_group: F32Array
    units: F32Array


class _Memory(threading.local):
    """Buffers by the device and the number of inputs; networks by their terms."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, int], _Buffers] = {}
        self.terms: dict[tuple[str, int], tuple[Terms, dict[str, Any]]] = {}


_memory = _Memory()


def _buffers(where: str, n_inputs: int) -> _Buffers:
    import torch

    if (where, n_inputs) not in _memory.buffers:
        n_by_weight, n_by_group = n_features(n_inputs)
        shapes = (_AT_ONCE, 16, n_by_weight, 16), (_AT_ONCE, n_by_group, 16)
        tensors = tuple(torch.empty(each, pin_memory=where == "cuda") for each in shapes)
        arrays = [each.numpy().reshape(-1) for each in tensors]
        units = np.empty(_AT_ONCE * 16, np.float32)
        _memory.buffers[where, n_inputs] = _Buffers(tensors, arrays[0], arrays[1], units)
    return _memory.buffers[where, n_inputs]


def _on_device(terms: Terms, where: str) -> dict[str, Any]:
    import torch

    key = where, id(terms)
    if key not in _memory.terms:
        moved = {name: torch.from_numpy(each).to(where) for name, each in terms.items()}
        _memory.terms[key] = terms, moved
    return _memory.terms[key][1]


def correct(
    terms: Terms,
    evidence: Evidence,
    estimate: F32Array,
    deviation: F32Array,
    n_tensors: int,
    where: str,
) -> NDArray[np.float64]:
    """Do what `recover.estimators._joint.correct` does; `where` is a device of torch."""
    import torch

    infer = import_module("recover.estimators._joint_torch").infer
    inputs = inputs_of(evidence)
    lower, upper = np.empty((2, estimate.size), np.float32)
    intersect_cells(evidence, lower, upper)
    sums = np.zeros((n_tensors, 1 + inputs.step.size))
    posterior, bounds, means = (estimate, deviation), (lower, upper), new_means()
    buffers, net = _buffers(where, inputs.step.size), _on_device(terms, where)
    n_superblocks, size = estimate.size // 256, estimate.size // 256 // n_tensors
    for first in range(0, n_superblocks, _AT_ONCE):
        n = min(_AT_ONCE, n_superblocks - first)
        told = buffers.by_weight, buffers.by_group
        _tell(inputs, first, n, posterior, bounds, means, told, buffers.units)
        with torch.inference_mode():
            moved = [each[:n].to(where, non_blocking=True) for each in buffers.tensors]
            pair = [each.reshape(n, 16, 1, 16) for each in infer(net, *moved)]
            result = torch.cat(pair, 2).cpu().numpy().reshape(-1)
        _settle(inputs, first, posterior, bounds, buffers.units, result, sums, size)
    return sums


@bare_kernel
def _tell(
    inputs: Inputs,
    first: int,
    n: int,
    posterior: tuple[F32Array, F32Array],
    bounds: tuple[F32Array, F32Array],
    means: Means,
    told: tuple[F32Array, F32Array],
    units: F32Array,
) -> None:
    """What is told of some superblocks, and the finest steps of groups that are corrected, or 0."""
    n_by_weight = told[0].size // (units.size // 16)
    n_by_group = told[1].size // (units.size // 16)
    for i in range(n):
        by_weight = told[0][i * n_by_weight : (i + 1) * n_by_weight]
        by_group = told[1][i * n_by_group : (i + 1) * n_by_group]
        start = 256 * (first + i)
        usable = describe(inputs, start, posterior, bounds, means, by_weight, by_group)
        if not usable:
            by_weight[:], by_group[:] = _ZERO, _ZERO
        for g in range(16):
            units[16 * i + g] = means.unit[g] if usable and is_like_others(means, g) else _ZERO


@bare_kernel
def _settle(
    inputs: Inputs,
    first: int,
    posterior: tuple[F32Array, F32Array],
    bounds: tuple[F32Array, F32Array],
    units: F32Array,
    result: F32Array,
    sums: NDArray[np.float64],
    size: int,
) -> None:
    """Correct groups by what the network said, 16 corrections and 16 factors for each."""
    for i in range(result.size // 512):
        for g in range(16):
            at, unit = 256 * (first + i) + 16 * g, units[16 * i + g]
            if unit > _ZERO:
                own = result[512 * i + 32 * g : 512 * i + 32 * g + 32]
                settle(inputs, at, posterior, bounds, unit, own, sums[(first + i) // size])
            else:
                confine(posterior[0], at, load(bounds[0], at), load(bounds[1], at))

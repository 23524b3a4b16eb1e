"""The method `joint` with its network on a GPU, through torch (the extra ``gpu``).

What is told of superblocks, and what is made of the results, is done by the same kernels as on the
CPU, so that figures differ by the rounding of float32 alone.
"""

import threading
from collections.abc import Callable
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


class _Engine(NamedTuple):
    """What all threads share on a device: a network that is applied to `_AT_ONCE` superblocks.

    Attributes
    ----------
    told : tuple of (tensor, tensor)
        What is told of weights and of groups.
    result : tensor (_AT_ONCE, 16, 2, 16)
        Corrections and factors, by group.
    apply : callable
        Has the network fill in `result`.
    lock : Lock
        Of the thread whose turn it is.
    stream : stream or None
        On which a GPU works.
    """

    told: tuple[Any, Any]
    result: Any
    apply: Callable[[], None]
    lock: threading.Lock
    stream: Any


class _Buffers(NamedTuple):
    """Memory of a thread for `_AT_ONCE` superblocks.

    Attributes
    ----------
    told, result : tuple of tensors, tensor
        As those of `_Engine`, in memory of the host that a GPU reaches fast.
    by_weight, by_group, results : float32
        Arrays on the same memory.
    units : float32 (16 * _AT_ONCE,)
    beside : tuple
        On a GPU, where told and results are while it works for others, and the thread's stream.
    """

    told: tuple[Any, Any]
    result: Any
    by_weight: F32Array
    by_group: F32Array
    results: F32Array
    units: F32Array
    beside: tuple[Any, ...]


class _Memory(threading.local):
    """Buffers of a thread by the device and the number of inputs."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, int], _Buffers] = {}


_memory = _Memory()
_engines: dict[tuple[str, int], tuple[Terms, _Engine]] = {}
_making = threading.Lock()


def _shapes(n_inputs: int) -> tuple[tuple[int, ...], ...]:
    """Of what is told of weights and of groups, and of the results."""
    n_by_weight, n_by_group = n_features(n_inputs)
    of_weights, of_groups = (_AT_ONCE, 16, n_by_weight, 16), (_AT_ONCE, n_by_group, 16)
    return of_weights, of_groups, (_AT_ONCE, 16, 2, 16)


def _buffers(where: str, n_inputs: int) -> _Buffers:
    import torch

    if (where, n_inputs) not in _memory.buffers:
        on_gpu = where == "cuda"
        shapes = _shapes(n_inputs)
        here = [torch.empty(each, pin_memory=on_gpu) for each in shapes]
        beside: tuple[Any, ...] = ()
        if on_gpu:
            beside = (*(torch.empty(each, device=where) for each in shapes), torch.cuda.Stream())
        of_weights, of_groups, results = (each.numpy().reshape(-1) for each in here)
        units = np.empty(_AT_ONCE * 16, np.float32)
        told = here[0], here[1]
        found = _Buffers(told, here[2], of_weights, of_groups, results, units, beside)
        _memory.buffers[where, n_inputs] = found
    return _memory.buffers[where, n_inputs]


def _engine(terms: Terms, where: str, n_inputs: int) -> _Engine:
    """That of a network, which is made once."""
    key = where, id(terms)
    with _making:
        if key not in _engines:
            _engines[key] = terms, _new_engine(terms, where, n_inputs)
    return _engines[key][1]


def _new_engine(terms: Terms, where: str, n_inputs: int) -> _Engine:
    import torch

    told = [torch.zeros(each, device=where) for each in _shapes(n_inputs)]
    result = told.pop()
    net = {name: torch.from_numpy(each).to(where) for name, each in terms.items()}
    infer = import_module("recover.estimators._joint_torch").infer

    def apply() -> None:
        with torch.inference_mode():
            pair = [each.reshape(_AT_ONCE, 16, 1, 16) for each in infer(net, *told)]
            torch.cat(pair, 2, out=result)

    stream = None
    if where == "cuda":
        stream = torch.cuda.Stream()
        apply = _recorded(apply, stream)
    return _Engine((told[0], told[1]), result, apply, threading.Lock(), stream)


def _recorded(apply: Callable[[], None], stream: Any) -> Callable[[], None]:
    """What a GPU does, recorded once and repeated: to start it kernel by kernel takes longer."""
    import torch

    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        apply()  # libraries make themselves ready
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        apply()
    torch.cuda.synchronize()
    repeat: Callable[[], None] = graph.replay
    return repeat


def _run(engine: _Engine, buffers: _Buffers) -> None:
    """Have the network fill in `_Buffers.result`.

    A GPU copies for one thread while it works for another: each thread has a stream of its own.
    """
    if engine.stream is None:
        with engine.lock:
            for there, here in zip(engine.told, buffers.told, strict=True):
                there.copy_(here)
            engine.apply()
            buffers.result.copy_(engine.result)
        return
    import torch

    *told, result, own = buffers.beside
    with torch.cuda.stream(own):
        for there, here in zip(told, buffers.told, strict=True):
            there.copy_(here, non_blocking=True)
    with engine.lock, torch.cuda.stream(engine.stream):
        engine.stream.wait_stream(own)
        for there, here in zip(engine.told, told, strict=True):
            there.copy_(here)
        engine.apply()
        result.copy_(engine.result)
        own.wait_stream(engine.stream)
    with torch.cuda.stream(own):
        buffers.result.copy_(result, non_blocking=True)
    own.synchronize()


def correct(
    terms: Terms,
    evidence: Evidence,
    estimate: F32Array,
    deviation: F32Array,
    n_tensors: int,
    where: str,
) -> NDArray[np.float64]:
    """Do what `recover.estimators._joint.correct` does; `where` is a device of torch."""
    inputs = inputs_of(evidence)
    lower, upper = np.empty((2, estimate.size), np.float32)
    intersect_cells(evidence, lower, upper)
    sums = np.zeros((n_tensors, 1 + inputs.step.size))
    posterior, bounds, means = (estimate, deviation), (lower, upper), new_means()
    buffers = _buffers(where, inputs.step.size)
    engine = _engine(terms, where, inputs.step.size)
    n_superblocks, size = estimate.size // 256, estimate.size // 256 // n_tensors
    for first in range(0, n_superblocks, _AT_ONCE):
        n = min(_AT_ONCE, n_superblocks - first)
        told = buffers.by_weight, buffers.by_group
        _tell(inputs, first, n, posterior, bounds, means, told, buffers.units)
        _run(engine, buffers)
        result = buffers.results[: 512 * n]
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

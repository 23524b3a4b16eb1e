"""Train the network for one set of types, batch after batch."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from recover.estimators._joint_torch import Terms
from recover.quants import F32Array
from recover.training.learner import Batch, Learner, look, tensors_of
from recover.training.simulate import STAR, draw_importance, simulate

Draw = Callable[[np.random.Generator, int], F32Array]
"""``draw(rng, n)``: superblocks (n, 256) to learn from."""

_WARM_UP = 5  # steps before time is taken
_TIMES = 4  # that a GPU, which is faster than what simulates, learns from a batch
_MOST_KEPT = 512  # batches
_MOST_AHEAD = 3  # batches that a GPU has to work on


class Gain(NamedTuple):
    """What a network does to superblocks that it has not learned from.

    Attributes
    ----------
    n_steps : int
        So far.
    seconds : float
        Of learning.
    before, after : float
        Square errors of the posterior and of the network, over those of the finest input.
    claims : float
        What the network claims, over what is measured.
    """

    n_steps: int
    seconds: float
    before: float
    after: float
    claims: float


def batch_of(rng: np.random.Generator, x: F32Array, names: Sequence[str]) -> Batch:
    """Superblocks as a set of types, with importance matrices that are drawn."""
    n_matrices = max(name.count(STAR) for name in names)
    if not n_matrices:
        return tensors_of(simulate(x, names))
    missing = 0.15 if n_matrices == 1 else 0.0
    return tensors_of(simulate(x, names, draw_importance(rng, n_matrices, missing=missing)))


def to_device(batch: Batch, device: str) -> Batch:
    """A batch where it is learned from."""
    return [each.to(device, non_blocking=True) for each in batch]


def ahead(batches: Iterable[Batch], device: str) -> Iterator[Batch]:
    """Batches on a device, each brought there while it works on those before."""
    if device != "cuda":
        yield from (to_device(batch, device) for batch in batches)
        return
    beside, here = torch.cuda.Stream(), torch.cuda.current_stream()
    waiting: deque[Any] = deque()
    for batch in batches:
        with torch.cuda.stream(beside):
            brought = to_device(batch, device)
        here.wait_stream(beside)
        for each in brought:
            each.record_stream(here)
        yield brought
        waiting.append(here.record_event())
        if len(waiting) > _MOST_AHEAD:
            waiting.popleft().synchronize()


def again(batches: Iterable[Batch], n_times: int, seed: int) -> Iterator[Batch]:
    """Each batch, and after it, all but once, some of the batches before."""
    rng = np.random.default_rng(seed)
    kept: list[Batch] = []
    for batch in batches:
        yield batch
        if n_times > 1 and len(kept) < _most_kept(batch):
            kept.append(batch)
        elif kept:
            kept[rng.integers(len(kept))] = batch
        for _ in range(n_times - 1):
            yield kept[rng.integers(len(kept))]


@cache
def _free_bytes() -> int:
    """Memory of the device that nothing has taken at first."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0


def _most_kept(batch: Batch) -> int:
    n_bytes = sum(each.numel() * each.element_size() for each in batch)
    return max(1, min(_MOST_KEPT, _free_bytes() // 4 // n_bytes))


def in_order(make: Callable[[int], Batch], first: int, n_threads: int) -> Iterator[Batch]:
    """Batches number `first` and on, made by threads; their order does not depend on these."""
    waiting: deque[Future[Batch]] = deque()
    threads = ThreadPoolExecutor(n_threads)
    try:
        while True:
            while len(waiting) < 2 * n_threads + 1:
                waiting.append(threads.submit(make, first))
                first += 1
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def train(
    learner: Learner,
    names: Sequence[str],
    draw: Draw,
    held: F32Array,
    *,
    seconds: float = float("inf"),
    n_steps: int | None = None,
    size: int = 2048,
    seed: int = 0,
    first: int = 0,
    n_threads: int | None = None,
    every: float = 20,
    keeps_last: bool = False,
    tell: Callable[[Gain], None] | None = None,
) -> Gain:
    """Let a network learn for some time, or some steps.

    Parameters
    ----------
    learner : Learner
        Of the set.
    names : sequence of str
        The types, finest first, with as many stars as the number of their importance matrix.
    draw : callable
        See `Draw`.
    held : float32 (n, 256)
        Superblocks to look at.
    seconds, n_steps : float, int
        How long; the rate of learning falls to nothing at the end.
    size : int
        Superblocks of a batch.
    seed, first : int
        Of the batches; the number of the first one.
    n_threads : int, optional
        That simulate. Default: all cores but one, 15 at most.
    every : float
        Seconds after which `tell` is called again.
    keeps_last : bool
        Whether the learner is to have what it learned last, even if it was better before.
    tell : callable, optional
        ``tell(gain)``.

    Returns
    -------
    Gain
        Of what the learner has at the end: the best of what it was at the times of `every`, at the
        beginning among them, or the last.
    """
    device = learner.device
    n_threads = n_threads or max(1, min(15, (os.cpu_count() or 2) - 1))

    def make(i: int) -> Batch:
        rng = np.random.default_rng((seed, i))
        batch = batch_of(rng, draw(rng, size), names)
        return [each.pin_memory() for each in batch] if device == "cuda" else batch

    looked_at = to_device(batch_of(np.random.default_rng(seed), held, names), device)
    begun, start, told = learner.n_steps, time.monotonic(), 0.0

    def gain() -> Gain:
        alone, before, after, claimed = look(learner.network(), looked_at)
        passed = time.monotonic() - start
        return Gain(learner.n_steps, passed, before / alone, after / alone, claimed / after)

    best, mean = gain(), learner.copy()

    def keep() -> Gain:
        nonlocal best, mean
        now = gain()
        if now.after < best.after:
            best, mean = now, learner.copy()
        return now

    fresh = ahead(in_order(make, first, n_threads), device)
    for i, batch in enumerate(again(fresh, _TIMES if device == "cuda" else 1, seed)):
        passed = time.monotonic() - start
        progress = passed / seconds if i >= _WARM_UP else 0.0
        if n_steps is not None:
            progress = max(progress, (learner.n_steps - begun) / n_steps)
        if progress >= 1:
            break
        learner.step(batch, progress)
        if i + 1 == _WARM_UP:
            if device == "cuda":
                torch.cuda.synchronize()
            start, told = time.monotonic(), 0.0
        if passed > told + every:
            told, now = passed, keep()
            if tell is not None:
                tell(now)
    last = keep()
    if keeps_last:
        return last
    learner.mean = mean
    return best


def begin_as(terms: Mapping[str, F32Array]) -> Terms:
    """Terms to learn from, of arrays."""
    return {name: torch.from_numpy(np.array(each)) for name, each in terms.items()}

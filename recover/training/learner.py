"""A network of the method `joint` that learns."""

from collections.abc import Callable
from math import cos, pi
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from recover.estimators._joint_torch import Terms, assemble, infer
from recover.training import simulate

N_INPUTS = 6
"""The most inputs of a set, for networks for any set."""

_FAR = 5.99  # deviations: bounds are told up to 6
_EXTRA_CLAIMS = 0.05  # of the loss
_AVERAGED = 100  # of steps, between which parameters are averaged
_EVERY = 10  # steps
_WHOLE = 8  # numbers that matrix units take at once
_FIRST = 4  # steps before what a step does is recorded, to be repeated
_OWN = "thread_local"  # threads that simulate may take pinned memory meanwhile

Batch = list[Any]
"""Tensors of `recover.training.simulate.Batch`."""


def tensors_of(batch: simulate.Batch) -> Batch:
    """Arrays of a batch as tensors."""
    halves = [torch.from_numpy(each.view(np.float16)) for each in batch[:2]]
    return [*halves, *(torch.from_numpy(each) for each in batch[2:])]


def loss_of(correction: Any, factor: Any, target: Any, deviation: Any) -> Any:
    """What is made small.

    The square error of the corrections, weighted by the variances within each superblock, and a
    little of the negative log likelihood of the factors.
    """
    square = (correction - target).clamp(-4, 4).square()
    own = deviation.square()
    weight = (own / (own.mean(1, keepdim=True) + 1e-30)).clamp(max=8)
    claimed = (deviation > 0).float() * (square.detach() / factor + factor.log())
    return (weight * square).mean() + _EXTRA_CLAIMS * claimed.mean()


def _of_set(terms: Terms, batch: Batch) -> Any:
    return loss_of(*infer(_filled(terms), *batch[:2]), *batch[2:4])


def _of_any(terms: Terms, batch: Batch) -> Any:
    found = assemble(terms, *batch[4:])
    return loss_of(*infer(_filled(found), *batch[:2]), *batch[2:4])


def _missing(n: int) -> int:
    """How many numbers of a weight, or of a group, are to be added to fill whole products."""
    return -n % _WHOLE


def _filled(terms: Terms) -> Terms:
    """A network whose first layers have columns of zeros for what was added."""
    more = {
        name: functional.pad(terms[name], (0, _missing(terms[name].shape[1])))
        for name in ("weights.weight", "groups.weight")
    }
    return terms | more


class Learner:
    """A network that learns.

    Parameters
    ----------
    terms : dict of tensors
        What it begins as (see `recover.estimators._joint_torch`).
    device : str
        Where it learns, and whereto batches are brought.
    rate : float
        The largest rate of learning.
    compiled : bool
        Whether torch compiles it, which takes half a minute.
    """

    def __init__(self, terms: Terms, device: str, rate: float, *, compiled: bool = False) -> None:
        self.device, self.rate = device, rate
        self.terms = {k: v.detach().to(device).requires_grad_() for k, v in terms.items()}
        self.mean = {k: v.detach().clone() for k, v in self.terms.items()}
        self.for_any = "weights.types" in terms
        self.n_steps = 0
        on_gpu = device == "cuda"
        self._optimizer = torch.optim.AdamW(
            list(self.terms.values()),
            lr=torch.tensor(rate, device=device),
            weight_decay=0.01,
            betas=(0.9, 0.98),
            capturable=on_gpu,
        )
        loss: Callable[..., Any] = _of_any if self.for_any else _of_set
        self._loss = torch.compile(loss, dynamic=False) if compiled else loss
        self._recorded = _Recorded(self._learn) if on_gpu and compiled else None

    def step(self, batch: Batch, progress: float, rows: Any = None) -> None:
        """Learn from a batch.

        Parameters
        ----------
        batch : list of tensors
        progress : float
            How much of the training is done; the rate falls to nothing at 1.
        rows : int64 (K,), optional
            Of a network for any set, rows of the types.
        """
        slope = 0.5 * (1 + cos(pi * min(1.0, progress))) + 0.003
        for group in self._optimizer.param_groups:
            group["lr"].fill_(self.rate * min(1.0, (self.n_steps + 1) / 200) * slope)
        told = self._fill_up(batch, rows)
        if self._recorded is None:
            self._learn(told)
        else:
            self._recorded(told)
        self.n_steps += 1
        if self.n_steps % _EVERY == 0:
            share = 1 - min(0.99, self.n_steps / (self.n_steps + _AVERAGED))
            live = [each.detach() for each in self.terms.values()]
            torch._foreach_lerp_(list(self.mean.values()), live, share)

    def _learn(self, told: Batch) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, dtype=torch.bfloat16):
            loss = self._loss(self.terms, told)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.terms.values(), 1.0)
        self._optimizer.step()

    def _fill_up(self, batch: Batch, rows: Any) -> Batch:
        """The batch with whole numbers of columns.

        For any set, it is as if it were of `N_INPUTS` inputs; the rows of the types, and which of
        them there are, come behind.
        """
        absent = N_INPUTS - len(rows) if self.for_any else 0
        sizes = batch[0].shape[2] + 7 * absent, batch[1].shape[1] + 13 * absent
        by_weight = functional.pad(batch[0], (0, 0, 0, 7 * absent + _missing(sizes[0])))
        by_group = functional.pad(batch[1], (0, 0, 0, 13 * absent + _missing(sizes[1])))
        filled = [by_weight, by_group, *batch[2:4]]
        if self.for_any:
            present = (torch.arange(N_INPUTS, device=self.device) < len(rows)).float()
            filled += [functional.pad(rows, (0, absent)), present]
        return filled

    def copy(self) -> Terms:
        """What has been learned, to keep."""
        return {name: each.clone() for name, each in self.mean.items()}

    def network(self, rows: Any = None) -> Terms:
        """What has been learned, as the network for a set."""
        if not self.for_any:
            return self.mean
        return assemble(self.mean, rows, torch.ones(len(rows), device=self.device))

    def record(self) -> dict[str, Any]:
        """All that `resume` needs."""
        return {
            "mean": {k: v.cpu() for k, v in self.mean.items()},
            "live": {k: v.detach().cpu() for k, v in self.terms.items()},
            "optimizer": self._optimizer.state_dict(),
            "n_steps": self.n_steps,
        }

    def resume(self, record: dict[str, Any]) -> None:
        """Go on from a record."""
        with torch.no_grad():
            for name, value in self.terms.items():
                value.copy_(record["live"][name])
        self._optimizer.load_state_dict(record["optimizer"])
        for group in self._optimizer.param_groups:
            group["lr"] = torch.tensor(self.rate, device=self.device)
        self.mean = {k: v.to(self.device) for k, v in record["mean"].items()}
        self.n_steps = record["n_steps"]


class _Recorded:
    """What a step does on a GPU, recorded once and repeated, as starting kernels takes longer.

    Parameters
    ----------
    learn : callable
        ``learn(batch)``; it changes only tensors that stay where they are.
    """

    def __init__(self, learn: Callable[[Batch], None]) -> None:
        self._learn = learn
        self._beside = torch.cuda.Stream()
        self._n_done = 0
        self._graph: Any = None
        self._batch: Batch = []

    def __call__(self, batch: Batch) -> None:
        """Learn from a batch; all have the same shapes."""
        self._n_done += 1
        if self._n_done <= _FIRST:
            self._beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._beside):
                self._learn(batch)
            torch.cuda.current_stream().wait_stream(self._beside)
            return
        if self._graph is None:
            self._batch = [each.clone() for each in batch]
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode=_OWN):
                self._learn(self._batch)
        for own, each in zip(self._batch, batch, strict=True):
            own.copy_(each)
        self._graph.replay()


def look(terms: Terms, batch: Batch) -> tuple[float, float, float, float]:
    """Sums of square errors: of the finest input, the posterior, the network; what it claims."""
    before = after = claimed = 0.0
    with torch.no_grad():
        for i in range(0, len(batch[0]), 512):
            by_weight, by_group, target, deviation = (each[i : i + 512] for each in batch[:4])
            correction, factor = infer(terms, by_weight.float(), by_group.float())
            below, above = (by_weight[:, :, j].reshape(-1, 256).float() * 3 for j in (0, 1))
            lower = torch.where(below < _FAR, -below, -torch.inf)
            upper = torch.where(above < _FAR, above, torch.inf)
            correction = torch.minimum(torch.maximum(correction, lower), upper)
            square = deviation.square()
            before += (square * target.square()).sum().item()
            after += (square * (correction - target).square()).sum().item()
            claimed += (square * factor).sum().item()
    return batch[4].sum().item(), before, after, claimed

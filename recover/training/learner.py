"""A network of the method `joint` that learns."""

from collections.abc import Callable
from math import cos, pi
from typing import Any

import numpy as np
import torch

from recover.estimators._joint_torch import Terms, assemble, infer
from recover.training import simulate

N_INPUTS = 6
"""The most inputs of a set, for networks for any set."""

_FAR = 5.99  # deviations: bounds are told up to 6
_EXTRA_CLAIMS = 0.05  # of the loss
_AVERAGED = 100  # of steps, between which parameters are averaged
_EVERY = 10  # steps

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


def _of_set(terms: Terms, batch: Batch, rows: Any, present: Any) -> Any:
    return loss_of(*infer(terms, *batch[:2]), *batch[2:4])


def _of_any(terms: Terms, batch: Batch, rows: Any, present: Any) -> Any:
    return loss_of(*infer(assemble(terms, rows, present), *batch[:2]), *batch[2:4])


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
        self._optimizer = torch.optim.AdamW(
            list(self.terms.values()), lr=rate, weight_decay=0.01, betas=(0.9, 0.98)
        )
        loss: Callable[..., Any] = _of_any if self.for_any else _of_set
        self._loss = torch.compile(loss, dynamic=False) if compiled else loss

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
            group["lr"] = self.rate * min(1.0, (self.n_steps + 1) / 200) * slope
        told, present = self._fill_up(batch, rows) if self.for_any else (batch, None)
        if present is not None:
            rows = torch.nn.functional.pad(rows, (0, N_INPUTS - len(rows)))
        with torch.autocast(self.device, dtype=torch.bfloat16):
            loss = self._loss(self.terms, told[:4], rows, present)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.terms.values(), 1.0)
        self._optimizer.step()
        self.n_steps += 1
        if self.n_steps % _EVERY == 0:
            share = 1 - min(0.99, self.n_steps / (self.n_steps + _AVERAGED))
            live = [each.detach() for each in self.terms.values()]
            torch._foreach_lerp_(list(self.mean.values()), live, share)

    def _fill_up(self, batch: Batch, rows: Any) -> tuple[Batch, Any]:
        """The batch as if it were of `N_INPUTS` inputs, and which of them there are."""
        present = (torch.arange(N_INPUTS, device=self.device) < len(rows)).float()
        pad, missing = torch.nn.functional.pad, N_INPUTS - len(rows)
        by_weight = pad(batch[0], (0, 0, 0, 7 * missing))
        return [by_weight, pad(batch[1], (0, 0, 0, 13 * missing)), *batch[2:]], present

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
        self.mean = {k: v.to(self.device) for k, v in record["mean"].items()}
        self.n_steps = record["n_steps"]


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

"""The network of the method `joint`, in torch, to be trained."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from recover.estimators._joint_features import (
    PER_GROUP,
    PER_GROUP_AND_INPUT,
    PER_WEIGHT,
    PER_WEIGHT_AND_INPUT,
)


class Round(torch.nn.Module):
    """One exchange between the weights of a superblock."""

    def __init__(self, width: int, context: int, embedding: int) -> None:
        super().__init__()
        linear = torch.nn.Linear
        self.enter = linear(width, width)
        self.gather = linear(3 * width + embedding, context)
        self.spread = linear(context, 2 * width)
        self.leave = linear(width, width)
        for layer in (self.spread, self.leave):
            torch.nn.init.zeros_(layer.bias)
        torch.nn.init.normal_(self.spread.weight, std=0.02)
        torch.nn.init.normal_(self.leave.weight, std=0.02)

    def forward(self, x: Any, groups: Any) -> Any:
        n, d = len(x), x.shape[-1]
        h = functional.hardswish(self.enter(normalized(x)))
        of_16 = h.mean(2)
        of_32 = of_16.view(n, 8, 2, d).mean(2, keepdim=True).expand(n, 8, 2, d).reshape(n, 16, d)
        of_all = of_16.mean(1, keepdim=True).expand(n, 16, d)
        told = functional.hardswish(self.gather(torch.cat([of_16, of_32, of_all, groups], -1)))
        shift, gain = self.spread(told)[:, :, None].chunk(2, -1)
        return x + self.leave(functional.hardswish(h * (1 + gain) + shift))


def normalized(x: Any) -> Any:
    """Divided by the root mean square of the features of each weight."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Network(torch.nn.Module):
    """Corrections, in deviations, and factors of variances of the weights of superblocks.

    Parameters
    ----------
    types : sequence of str
        The inputs' types, finest first.
    width, n_rounds : int
        Of what is kept of each weight, and how often it is exchanged.
    """

    def __init__(self, types: Sequence[str], width: int, n_rounds: int) -> None:
        super().__init__()
        self.types, self.width, self.n_rounds = tuple(types), width, n_rounds
        embedding, context = width, 2 * width
        of_weights, of_groups = len(types), len(types)
        n_by_weight = PER_WEIGHT + PER_WEIGHT_AND_INPUT * of_weights
        n_by_group = PER_GROUP + PER_GROUP_AND_INPUT * of_groups
        self.weights = torch.nn.Linear(n_by_weight, width)
        self.groups = torch.nn.Linear(n_by_group, embedding)
        self.begin = torch.nn.Linear(embedding, width)
        self.rounds = torch.nn.ModuleList(
            [Round(width, context, embedding) for _ in range(n_rounds)]
        )
        self.end = torch.nn.Linear(width, 2)
        torch.nn.init.zeros_(self.end.weight)
        torch.nn.init.zeros_(self.end.bias)

    def forward(self, by_weight: Any, by_group: Any) -> tuple[Any, Any]:
        return self.body(*self.head(by_weight, by_group))

    def head(self, by_weight: Any, by_group: Any) -> tuple[Any, Any]:
        """What depends on the number of inputs."""
        return (
            self.weights(by_weight.permute(0, 1, 3, 2)),
            self.groups(by_group.permute(0, 2, 1)),
        )

    def body(self, x: Any, groups: Any) -> tuple[Any, Any]:
        """All that follows."""
        groups = functional.hardswish(groups)
        x = x + self.begin(groups)[:, :, None]
        for each in self.rounds:
            x = each(x, groups)
        out = self.end(normalized(x)).float()
        n = len(x)
        return out[..., 0].reshape(n, 256), (1 + out[..., 1].reshape(n, 256)).clamp(min=1 / 16)

    def begin_as(self, other: "Network") -> None:
        """Take over from another network what is known of its types, and all that follows."""
        state, theirs = self.state_dict(), other.state_dict()
        same = {k: v for k, v in theirs.items() if k in state and v.shape == state[k].shape}
        columns = (
            ("weights.weight", PER_WEIGHT, PER_WEIGHT_AND_INPUT),
            ("groups.weight", PER_GROUP, PER_GROUP_AND_INPUT),
        )
        for name, first, each in columns:
            same[name] = state[name]
            same[name][:, :first] = theirs[name][:, :first]
            for i, kind in enumerate(self.types):
                # A type that is new begins as that in its place.
                j = min(i, len(other.types) - 1)
                for known in (kind.rstrip("*"), kind):
                    j = other.types.index(known) if known in other.types else j
                to, start = first + each * i, first + each * j
                same[name][:, to : to + each] = theirs[name][:, start : start + each]
        self.load_state_dict(same)

"""The network of the method `joint` in torch, for GPUs and for training.

Its terms are tensors by name, as the files of networks have them: those of layers end in ``weight``
and ``bias``. A network for any set of types has terms for each type as well (see `assemble`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from recover.estimators._joint_features import (
    PER_GROUP,
    PER_GROUP_AND_INPUT,
    PER_WEIGHT,
    PER_WEIGHT_AND_INPUT,
    shapes_of_layers,
)

Terms = dict[str, Any]

_PARTS = {
    "weights": (PER_WEIGHT, PER_WEIGHT_AND_INPUT),
    "groups": (PER_GROUP, PER_GROUP_AND_INPUT),
}  # columns of a layer that are of no input, and of each


def begin(width: int, n_rounds: int, n_inputs: int) -> Terms:
    """Terms of a network that corrects nothing yet.

    Parameters
    ----------
    width, n_rounds : int
        Of what is kept of each weight, and how often it is exchanged.
    n_inputs : int
    """
    sizes = shapes_of_layers(width, n_rounds, n_inputs)
    terms: Terms = {}
    for name, (n_out, n_in) in sizes.items():
        small = name == "end" or name.endswith(("spread", "leave"))
        deviation = 0.0 if name == "end" else 0.02 if small else (1 / (3 * n_in)) ** 0.5
        terms[f"{name}.weight"] = deviation * torch.randn(n_out, n_in)
        bound = 0.0 if small else n_in**-0.5
        terms[f"{name}.bias"] = torch.empty(n_out).uniform_(-bound, bound)
    return terms


def normalized(x: Any) -> Any:
    """Divided by the root mean square of the features of each weight."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def infer(terms: Terms, by_weight: Any, by_group: Any) -> tuple[Any, Any]:
    """Corrections in deviations, and factors of variances, (n, 256) each.

    Parameters
    ----------
    terms : dict of tensors
        Of the network.
    by_weight : (n, 16, F, 16)
    by_group : (n, G, 16)
        What is told of superblocks (`recover.estimators._joint_features.describe`).
    """

    def layer(name: str, x: Any) -> Any:
        return functional.linear(x, terms[f"{name}.weight"], terms[f"{name}.bias"])

    x = layer("weights", by_weight.permute(0, 1, 3, 2))
    groups = functional.hardswish(layer("groups", by_group.permute(0, 2, 1)))
    x = x + layer("begin", groups)[:, :, None]
    n, d = len(x), x.shape[-1]
    for i in range(sum(name.endswith("enter.bias") for name in terms)):
        h = functional.hardswish(layer(f"rounds.{i}.enter", normalized(x)))
        of_16 = h.mean(2)
        of_32 = of_16.view(n, 8, 2, d).mean(2, keepdim=True).expand(n, 8, 2, d).reshape(n, 16, d)
        of_all = of_16.mean(1, keepdim=True).expand(n, 16, d)
        told = torch.cat([of_16, of_32, of_all, groups], -1)
        told = functional.hardswish(layer(f"rounds.{i}.gather", told))
        shift, gain = layer(f"rounds.{i}.spread", told)[:, :, None].chunk(2, -1)
        x = x + layer(f"rounds.{i}.leave", functional.hardswish(h * (1 + gain) + shift))
    out = layer("end", normalized(x)).float()
    return out[..., 0].reshape(n, 256), (1 + out[..., 1].reshape(n, 256)).clamp(min=1 / 16)


def assemble(terms: Terms, rows: Any, present: Any) -> Terms:
    """The network for a set of types, from that for any.

    The first two layers have columns for each type; the others are those of all sets, plus a
    product of two thin matrices for each type of the set.

    Parameters
    ----------
    terms : dict of tensors
        ``weights.types`` (T, width, 7) and ``groups.types`` (T, width, 13) are columns; a layer's
        ``left`` (T, n_out, r) and ``right`` (T, r, n_in) the thin matrices.
    rows : int64 (K,)
        Rows of the types, finest first.
    present : (K,)
        1; 0 where there is no input.
    """
    shape = present[:, None, None]
    found: Terms = {}
    for name, own in terms.items():
        layer, _, kind = name.rpartition(".")
        if kind == "bias":
            found[name] = own
        elif kind == "weight" and f"{layer}.types" in terms:
            more = (terms[f"{layer}.types"][rows] * shape).transpose(0, 1)
            found[name] = torch.cat([own, more.reshape(len(own), -1)], 1)
        elif kind == "weight":
            left = (terms[f"{layer}.left"][rows] * shape).transpose(0, 1).reshape(len(own), -1)
            found[name] = own + left @ terms[f"{layer}.right"][rows].reshape(-1, own.shape[1])
    return found


def for_any(terms: Terms, columns: Sequence[tuple[Any, Any]], rank: int) -> Terms:
    """Terms of a network for any of some types that begins as one for a set.

    Parameters
    ----------
    terms : dict of tensors
        Of the network for a set.
    columns : sequence of (tensor (width, 7), tensor (width, 13))
        What each type's columns in the first two layers begin as (see `columns_of`).
    rank : int
        Of the thin matrices.
    """
    found: Terms = {}
    for name, own in terms.items():
        layer, _, kind = name.rpartition(".")
        found[name] = own.clone()
        if layer in _PARTS and kind == "weight":
            which = list(_PARTS).index(layer)
            found[name] = own[:, : _PARTS[layer][0]].clone()
            found[f"{layer}.types"] = torch.stack([each[which] for each in columns])
        elif kind == "weight":
            n_out, n_in = own.shape
            found[f"{layer}.left"] = torch.zeros(len(columns), n_out, rank)
            found[f"{layer}.right"] = torch.randn(len(columns), rank, n_in) * n_in**-0.5
    return found


def columns_of(terms: Terms, i: int) -> tuple[Any, Any]:
    """The columns of the first two layers for input `i`, of the network for a set."""
    weights, groups = (
        terms[f"{layer}.weight"][:, first + each * i : first + each * (i + 1)]
        for layer, (first, each) in _PARTS.items()
    )
    return weights, groups

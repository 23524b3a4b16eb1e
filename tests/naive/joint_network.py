"""The network of the method `joint`, layer by layer in float64."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def apply(arrays: Mapping[str, NDArray[Any]], name: str, x: F64) -> F64:
    weight = arrays[f"{name}.weight"].astype(np.float64)
    return x @ weight.T + arrays[f"{name}.bias"].astype(np.float64)


def active(x: F64) -> F64:
    return x * np.clip(x / 6 + 0.5, 0, 1)


def normalized(x: F64) -> F64:
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)


def infer(
    arrays: Mapping[str, NDArray[Any]], by_weight: NDArray[Any], by_group: NDArray[Any]
) -> tuple[F64, F64]:
    """Corrections and factors (256,) from what is told: (16, F, 16) of weights, (G, 16)."""
    x = apply(arrays, "weights", by_weight.transpose(0, 2, 1).astype(np.float64))
    groups = active(apply(arrays, "groups", by_group.T.astype(np.float64)))
    x = x + apply(arrays, "begin", groups)[:, None]
    n_rounds = sum(name.endswith(".enter.bias") for name in arrays)
    for i in range(n_rounds):
        h = active(apply(arrays, f"rounds.{i}.enter", normalized(x)))
        of_16 = h.mean(1)
        of_32 = of_16.reshape(8, 2, -1).mean(1).repeat(2, 0)
        of_all = np.broadcast_to(of_16.mean(0), of_16.shape)
        told = np.concatenate([of_16, of_32, of_all, groups], 1)
        context = active(apply(arrays, f"rounds.{i}.gather", told))
        shift, gain = np.split(apply(arrays, f"rounds.{i}.spread", context), 2, 1)
        changed = active(h * (1 + gain[:, None]) + shift[:, None])
        x = x + apply(arrays, f"rounds.{i}.leave", changed)
    out = apply(arrays, "end", normalized(x))
    return out[..., 0].reshape(-1), np.maximum(1 + out[..., 1].reshape(-1), 1 / 16)

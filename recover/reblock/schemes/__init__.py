"""How integer weights are stored in safetensors, one file per scheme, found by discovery."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from recover.containers.huggingface.modules import Module
from recover.reblock.schemes.base import Weight

__all__ = ["Module", "Scheme", "Weight", "all_schemes"]


@dataclass(frozen=True)
class Scheme:
    """A way to store integer weights."""

    name: str
    """Of the file that declares it."""
    read: Callable[[Module], Weight | None]
    """``read(module) -> Weight | None``: the weight of a module, or None if it is not stored in
    this way; `SafetensorsError` if it is, but damaged or of a kind that has no exact type."""


@cache
def all_schemes() -> tuple[Scheme, ...]:
    """Every scheme, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(
        Scheme(name, import_module(f"{__name__}.{name}").read) for name in names if name != "base"
    )

"""How quantized weights are stored in Hugging Face folders, one file per format, by discovery."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from recover.containers.huggingface.formats.base import Matrix
from recover.containers.huggingface.modules import Module

__all__ = ["Format", "Matrix", "all_formats", "read_matrix"]


@dataclass(frozen=True)
class Format:
    """A way to store quantized weights."""

    name: str
    """Of the file that declares it."""
    read: Callable[[Module], Matrix | None]
    """``read(module) -> Matrix | None``: the weight of a module, or None if it is not stored in
    this way; a `recover.errors.SafetensorsError` if it is, but damaged or of a kind that cannot
    be read, with the reason."""


@cache
def all_formats() -> tuple[Format, ...]:
    """Every format, by name."""
    names = sorted(
        module.name
        for module in pkgutil.iter_modules(__path__)
        if module.name != "base" and not module.name.startswith("_")
    )
    return tuple(Format(name, import_module(f"{__name__}.{name}").read) for name in names)


def read_matrix(module: Module) -> Matrix | None:
    """The quantized weight of a module; None if no format knows it.

    Raises
    ------
    SafetensorsError
        If a format knows it, but cannot read it.
    """
    for each in all_formats():
        matrix = each.read(module)
        if matrix is not None:
            return matrix
    return None

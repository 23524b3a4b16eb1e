"""How quantized weights are stored in Hugging Face folders, one file per format, by discovery.

Other packages add formats as entry points of the group ``recover.formats``: an entry point names a
module with a function ``read``, or any object that has one.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata

from recover._text import quoted
from recover.containers.huggingface.formats._coded import WHOLE_NUMBERS, Coded, Runs
from recover.containers.huggingface.formats.base import Matrix
from recover.containers.huggingface.modules import Module, as_float32, values
from recover.errors import PlanError

__all__ = [
    "WHOLE_NUMBERS",
    "Coded",
    "Format",
    "Matrix",
    "Module",
    "Runs",
    "all_formats",
    "as_float32",
    "read_matrix",
    "values",
]

GROUP = "recover.formats"
"""Group of the entry points by which other packages add formats."""


@dataclass(frozen=True)
class Format:
    """A way to store quantized weights."""

    name: str
    """Of the file that declares it."""
    read: Callable[[Module], Matrix | None]
    """The weight of a module, or None if it is not stored in this way; a
    `recover.errors.SafetensorsError` if it is, but damaged or of a kind that cannot be read, with
    the reason."""


@cache
def all_formats() -> tuple[Format, ...]:
    """Every format of this package, by name."""
    names = sorted(
        module.name
        for module in pkgutil.iter_modules(__path__)
        if module.name != "base" and not module.name.startswith("_")
    )
    return tuple(Format(name, import_module(f"{__name__}.{name}").read) for name in names)


@cache
def formats_of_others() -> tuple[Format, ...]:
    """The formats of other packages.

    Raises
    ------
    PlanError
        If one of them cannot be loaded.
    """
    return tuple(map(_loaded, metadata.entry_points(group=GROUP)))


def _loaded(point: metadata.EntryPoint) -> Format:
    what = f"the format {quoted(point.name)} ({point.value})"
    try:
        read = point.load().read
    except Exception as error:  # whatever the other code raises
        raise PlanError(f"{what} cannot be loaded: {error}") from error
    return Format(point.name, read)


def read_matrix(module: Module) -> Matrix | None:
    """The quantized weight of a module; None if no format knows it.

    Formats of other packages are looked for in folders that say how they are quantized.

    Raises
    ------
    PlanError
        If a format of another package cannot be loaded.
    SafetensorsError
        If a format knows it, but cannot read it.
    """
    for each in all_formats():
        if (matrix := each.read(module)) is not None:
            return matrix
    others = formats_of_others() if module.config else ()
    return next(filter(None, (each.read(module) for each in others)), None)

"""Opening whatever holds a model: the containers say which of them reads a path."""

import os
import pkgutil
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import import_module, metadata
from itertools import chain
from pathlib import Path

import recover.containers
from recover._text import printable, quoted, some
from recover.containers.gguf.parts import without_further_parts
from recover.containers.gguf.reader import CONTAINER as GGUF
from recover.containers.gguf.reader import GGUFModel
from recover.containers.model import Container, Model, StoredTensor
from recover.errors import GGUFError, PlanError

GROUP = "recover.containers"
"""Entry points under which other distributions name their containers."""


def open_model(path: str | os.PathLike[str]) -> Model:
    """Open a model in whatever container it is.

    Parameters
    ----------
    path : path-like
        A file or folder.

    Returns
    -------
    Model

    Raises
    ------
    GGUFError
        If it cannot be read; also if no container reads it.
    PlanError
        If a container of another distribution cannot be loaded.
    """
    path = Path(path)
    for container in chain(_own_containers(), _found_containers()):
        if container.reads(path):
            return container.open(path)
    if path.is_dir():
        raise GGUFError(
            f"{printable(path)}: is a folder that holds no model; name a GGUF file, or the folder"
            f" of a Hugging Face model{_inside(path)}"
        )
    return GGUF.open(path)  # which says what is wrong with it


def _inside(folder: Path) -> str:
    """What to name instead of a folder: files and folders in it, as far down as in hubs' caches."""
    try:
        found = sorted(folder.glob("*.gguf")) or [
            each.parent for each in sorted(folder.glob("*/config.json"))
        ]
        found = found or [each.parent for each in sorted(folder.glob("*/*/config.json"))]
    except OSError:
        return ""
    shown = [quoted(str(each.relative_to(folder))) for each in found]
    return f": there is {some(shown)} in it" if shown else ""


def one_or_more(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> list[str | os.PathLike[str]]:
    """Paths as a list; one alone need not be in one."""
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def open_models(paths: Iterable[str | os.PathLike[str]]) -> tuple[Model, ...]:
    """Open several models; the parts of one split file are one model.

    Parameters
    ----------
    paths : iterable of path-like
        Files or folders.

    Returns
    -------
    tuple of Model
        In the same order.

    Raises
    ------
    GGUFError, PlanError
        As `open_model` does; and a `PlanError` if there are none.
    """
    models = tuple(open_model(path) for path in without_further_parts(paths))
    if not models:
        raise PlanError("there are no inputs")
    return models


@cache
def _own_readers() -> tuple[str, ...]:
    """The modules that declare the containers of this package, by discovery."""
    found = []
    for package in pkgutil.iter_modules(recover.containers.__path__):
        if package.ispkg:
            folder = import_module(f"{recover.containers.__name__}.{package.name}")
            if any(module.name == "reader" for module in pkgutil.iter_modules(folder.__path__)):
                found.append(f"{folder.__name__}.reader")
    return tuple(found)


def _own_containers() -> Iterator[Container]:
    """The containers of this package, loaded one after the other."""
    for name in _own_readers():
        reader = import_module(name)
        yield from [each for each in vars(reader).values() if isinstance(each, Container)]


def _found_containers() -> Iterator[Container]:
    """The containers of other distributions, loaded one after the other."""
    for point in metadata.entry_points(group=GROUP):
        what = f"the container {quoted(point.name)} ({point.value})"
        try:
            found = point.load()
        except Exception as error:  # whatever the other code raises
            raise PlanError(f"{what} cannot be loaded: {error}") from error
        if not isinstance(found, Container):
            raise PlanError(f"{what} is no Container but a {type(found).__name__}")
        yield found


def reference_of(models: Sequence[Model]) -> Model:
    """The input that gives names, order and shapes: the first GGUF file, else the first."""
    return next((model for model in models if isinstance(model, GGUFModel)), models[0])


def metadata_source(models: Sequence[Model]) -> GGUFModel[StoredTensor]:
    """The input whose metadata and alignment an output gets: the first that is a GGUF file.

    Raises
    ------
    PlanError
        If there is none.
    """
    for model in models:
        if isinstance(model, GGUFModel):
            return model
    paths = ", ".join(printable(model.path) for model in models)
    raise PlanError(
        f"{paths}: metadata comes from the first GGUF input, and there is none; name a GGUF file of"
        " the same model as well"
    )

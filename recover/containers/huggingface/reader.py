"""Opening a Hugging Face folder as a model, under the names and in the layout of GGUF files."""

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from recover._text import printable
from recover.containers.huggingface.architectures import Names, architecture_of
from recover.containers.huggingface.modules import RECIPE, SETTINGS, modules_of, read_recipe
from recover.containers.huggingface.placing import Placed, place_tensors
from recover.containers.huggingface.sizes import check_sizes
from recover.containers.huggingface.stacks import unstacked
from recover.containers.model import BriefModel, Container, StoredTensor
from recover.containers.safetensors.folder import INDEX
from recover.containers.safetensors.reader import CONFIG, open_safetensors
from recover.errors import RecoverError, SafetensorsError


@dataclass(frozen=True, repr=False, eq=False)
class FolderModel(BriefModel):
    """A Hugging Face folder, opened read-only (see `recover.containers.model.Model`).

    Attributes
    ----------
    path : Path
        As given.
    parts : tuple of Path
        All files that were opened.
    n_bytes : int
        Size of the safetensors files.
    metadata : mapping of str to Any
        What GGUF files say of themselves, as far as the folder says it.
    tensors : mapping of str to StoredTensor
        In the order of GGUF files' layers.
    variants : mapping of str to sequence of StoredTensor
        Tensors that GGUF files have in several layouts: by the name of one of `tensors` those that
        stand for it in others.
    left_out : tuple of str
        Arrays that have no place in GGUF files of this architecture: a vision tower's, say.
    """

    path: Path
    parts: tuple[Path, ...]
    n_bytes: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    variants: Mapping[str, Sequence[StoredTensor]]
    left_out: tuple[str, ...]

    def get(self, key: str, default: Any = None) -> Any:
        """What it says under a key; `default` if nothing."""
        return self.metadata.get(key, default)

    def keys_of(self, prefix: str) -> tuple[str, ...]:
        """The keys that begin with a text."""
        return tuple(key for key in self.metadata if key.startswith(prefix))

    @cached_property
    def n_weights(self) -> int:
        """Number of weights in all tensors."""
        return sum(tensor.n_weights for tensor in self.tensors.values())

    def with_tensors(self, tensors: Mapping[str, StoredTensor]) -> "FolderModel":
        """The same model with others in the place of some tensors."""
        return replace(self, tensors=MappingProxyType({**self.tensors, **tensors}))

    def without(self, names: Collection[str]) -> "FolderModel":
        """The same model without some tensors."""
        kept = {name: each for name, each in self.tensors.items() if name not in names}
        return replace(self, tensors=MappingProxyType(kept))

    def fitted(self, names: Collection[str]) -> "FolderModel":
        """The same model with tensors of these names, where there are variants of them."""
        wanted, tensors = set(names), {}
        for name, tensor in self.tensors.items():
            others = self.variants.get(name, ())
            use = name not in wanted and any(each.name in wanted for each in others)
            tensors.update({each.name: each for each in (others if use else [tensor])})
        return replace(self, tensors=MappingProxyType(tensors))

    def fingerprint(self) -> str:
        """A digest of names, sizes and times of change of the files, as they are now.

        Raises
        ------
        SafetensorsError
            If a file cannot be read any more.
        """
        files = []
        for part in self.parts:
            try:
                status = part.stat()
            except OSError as error:
                raise SafetensorsError(f"{printable(part)}: {error.strerror}") from None
            files.append([str(part.resolve()), status.st_size, status.st_mtime_ns])
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def open_folder(path: str | os.PathLike[str]) -> FolderModel:
    """Open a Hugging Face folder.

    Parameters
    ----------
    path : path-like
        A folder with safetensors files and ``config.json``, or one safetensors file beside it.

    Returns
    -------
    FolderModel

    Raises
    ------
    SafetensorsError
        If a file cannot be read, the architecture is not known, a tensor is stored in a way that is
        not, or ``config.json`` contradicts the shapes.
    """
    path = Path(path)
    model = open_safetensors(path)
    folder = path if path.is_dir() else path.parent
    try:
        architecture = architecture_of(model.config)
        names = Names(architecture, model.config)
        modules = unstacked(modules_of(model, read_recipe(folder)))
        placed: Placed = place_tensors(modules, architecture, names, model.config)
        check_sizes(placed, architecture, model.config, is_whole=path.is_dir())
    except RecoverError as error:
        if str(error).startswith(printable(path)):
            raise
        raise SafetensorsError(f"{printable(path)}: {error}") from None
    beside = [folder / name for name in (CONFIG, *SETTINGS, RECIPE, INDEX)]
    return FolderModel(
        path=path,
        parts=(*model.parts, *(each for each in beside if each.is_file())),
        n_bytes=sum(part.stat().st_size for part in model.parts),
        metadata={
            "general.architecture": names.architecture,
            "general.name": folder.resolve().name,
        },
        tensors=MappingProxyType(placed.tensors),
        variants=MappingProxyType(placed.variants),
        left_out=tuple(placed.unplaced),
    )


def _reads(path: Path) -> bool:
    if path.suffix == ".safetensors" and not path.is_dir():
        return True
    try:
        files = {each.name for each in path.iterdir()}
    except OSError:
        return False
    return CONFIG in files or any(name.endswith(".safetensors") for name in files)


CONTAINER = Container("Hugging Face folder", _reads, open_folder)

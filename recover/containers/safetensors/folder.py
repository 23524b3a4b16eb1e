"""Which files of a folder make a model, and what else a folder or a file may be."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

from recover._files import MissingError, UnreadableError, read_bytes
from recover._json import MOST_BYTES, JSONError, parse_object
from recover._text import printable, quoted, some
from recover.errors import SafetensorsError

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
"""What peft writes beside the weights of an adapter."""

_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,6})-of-(?P<all>\d{1,6})\.safetensors")
_PICKLES = (".bin", ".pt", ".pth")
_NO_PICKLES = (
    "pickles can run code, and are not read; load the model with the program that wrote it, and"
    " save it as safetensors"
)
_BEGINNINGS = {
    b"GGUF": "a GGUF file; give it the ending .gguf",
    b"PK\x03\x04": f"a pickle of PyTorch's: {_NO_PICKLES}",
    b"version https://git-lfs": "a pointer of Git LFS to it; load it with `git lfs pull`",
    b"<": "a page of a web site; load it again",
}


def what_it_is(start: bytes) -> str | None:
    """What begins with some bytes instead of a safetensors file, if that is known."""
    return next((what for each, what in _BEGINNINGS.items() if start.startswith(each)), None)


def indexed_files(folder: Path) -> dict[Path, set[str] | None]:
    """The files of a model folder, and what the index says that each holds; None without one.

    Raises
    ------
    SafetensorsError
        If there are none, some are missing, or the index cannot be read.
    """
    index = folder / INDEX
    here = sorted(each for each in folder.glob("*.safetensors") if not _is_adapter(each))
    if not index.exists():
        if not here:
            raise SafetensorsError(f"{printable(folder)}: {_instead(folder)}")
        _check_numbers(folder, here)
        return dict.fromkeys(here)
    shown = printable(index)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SafetensorsError(f"{shown}: there is no weight_map")
    files: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        # A name from a file must not lead out of the folder.
        if not isinstance(file, str) or PurePath(file).name != file or file in (".", ".."):
            raise SafetensorsError(f"{shown}: {quoted(str(file))} is no name of a file beside it")
        names = files.setdefault(folder / file, set())
        if names is not None:
            names.add(name)
    _check_named(index, files, here)
    return dict(sorted(files.items()))


def _numbered(files: Iterable[Path]) -> dict[tuple[str, str], set[int]]:
    """The numbers of files that are one of several, by their stem and how many there are."""
    found: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for file in files:
        if match := _NUMBERED.fullmatch(file.name):
            found[match["stem"], match["all"]].add(int(match["number"]))
    return found


def _check_numbers(folder: Path, files: Iterable[Path]) -> None:
    """Refuse files of which others are missing by their own names; they may count from 0."""
    for (stem, n_all), numbers in _numbered(files).items():
        if len(numbers) < int(n_all):
            first = 0 if 0 in numbers else 1
            missing = [str(i) for i in range(first, first + int(n_all)) if i not in numbers]
            raise SafetensorsError(
                f"{printable(folder)}: of the {int(n_all)} files {stem}-*-of-{n_all}.safetensors"
                f" these are missing: {some(missing)}; load them, or name the files that are meant"
            )


def _check_named(index: Path, named: Iterable[Path], here: Iterable[Path]) -> None:
    """Refuse an index that leaves out files that belong to those that it names."""
    known = _numbered(named)
    for key, numbers in _numbered(here).items():
        if key in known and (left := sorted(numbers - known[key])):
            raise SafetensorsError(
                f"{printable(index)}: names files {key[0]}-*-of-{key[1]}.safetensors, but not"
                f" {some(list(map(str, left)))}, though that is there, too; they are not of one"
                " download; load both again"
            )


def _is_adapter(file: Path) -> bool:
    return file.name.startswith("adapter_model")


def _instead(folder: Path) -> str:
    """What to say of a folder without a model's safetensors files."""
    if (folder / ADAPTER).exists():
        return "holds an adapter (LoRA), no model; merge it into its model, and name the result"
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    found = f", but {some([quoted(name) for name in pickles])}: {_NO_PICKLES}" if pickles else ""
    return f"holds no safetensors files{found}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is no such file.

    Raises
    ------
    SafetensorsError
        If it cannot be read, or is none.
    """
    try:
        return parse_object(read_bytes(path, MOST_BYTES))
    except MissingError:
        return {}
    except (UnreadableError, JSONError) as error:
        raise SafetensorsError(f"{printable(path)}: {error}") from None

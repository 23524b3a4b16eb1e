"""Split files, as ``llama-gguf-split`` makes them: the names of the parts, and what each holds.

The first part carries all metadata, the others only the keys ``split.*``; a tensor is never
divided.
"""

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from recover._text import printable
from recover.containers.gguf.header import (
    DEFAULT_ALIGNMENT,
    Layout,
    ValueType,
    align,
    encode_key_value,
    lay_out,
)
from recover.errors import OutputError, PlanError
from recover.quants import TensorType

PREFIX = "split."
"""Of the metadata keys that belong to a part, not to the model."""

_MOST_PARTS = 65_535  # split.count is a u16
_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<total>[0-9]{5})\.gguf", re.DOTALL)
_SIZE = re.compile(
    r"(?P<number>[0-9]{1,18})(?P<unit>[KMGTkmgt]?)(?:(?P<binary>(?<=[KMGTkmgt])[Ii][Bb])|[Bb])?"
)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

Shape = tuple[str, tuple[int, ...], TensorType]
"""Name, dims and type of a tensor."""


# `split -b` and what people call its pieces: NAME.gguf.part1of2, NAME.gguf-split-a.
_NUMBERED_PIECE = re.compile(
    r"(?P<whole>.+)(?P<mark>[.-]part)(?P<number>[0-9]{1,3})of(?P<total>[0-9]{1,3})", re.DOTALL
)
_LETTERED_PIECE = re.compile(r"(?P<whole>.+)(?P<mark>[.-](?:split|part)[.-]?)[a-z]{1,2}", re.DOTALL)


class PartName(NamedTuple):
    """What a file's name says of a part."""

    stem: str
    """In front of ``-00001-of-0000N.gguf``."""
    number: int
    """Counted from 1."""
    total: int
    """Number of parts."""


def parse_part_name(name: str) -> PartName | None:
    """What the name of a file says, if it is named like a part of a split file."""
    match = _NAME.fullmatch(name)
    return match and PartName(match["stem"], int(match["number"]), int(match["total"]))


def check_whole_name(path: Path) -> None:
    """Refuse to call a whole file as if it were a part, which nothing would read.

    Raises
    ------
    OutputError
        If the name is that of one of several parts.
    """
    named = parse_part_name(path.name)
    if named is not None and named.total != 1:
        raise OutputError(
            f"{printable(path)}: is the name of a part of a split file, but one whole file is"
            " written; name it otherwise"
        )


def part_paths(path: Path, total: int) -> tuple[Path, ...]:
    """The paths of all parts of a file: `path` is any part, or the file as if it were whole."""
    named = parse_part_name(path.name)
    stem = named.stem if named else path.name.removesuffix(".gguf") or path.name
    return tuple(path.with_name(f"{stem}-{i + 1:05}-of-{total:05}.gguf") for i in range(total))


def whole_path(path: Path) -> Path:
    """The path of a file as if it were whole, the same for all its parts."""
    named = parse_part_name(path.name)
    return path.with_name(f"{named.stem}.gguf") if named else path


def described_piece(name: str) -> str | None:
    """What to do with one of the pieces that a file was cut into without regard to its tensors.

    Parameters
    ----------
    name : str
        Name of a file.

    Returns
    -------
    str or None
        For people; None if the file is not named like such a piece.
    """
    if numbered := _NUMBERED_PIECE.fullmatch(name):
        first, last = "1".zfill(len(numbered["number"])), numbered["total"]
        pieces = f"{{{first}..{last}}}of{last}"
    elif numbered := _LETTERED_PIECE.fullmatch(name):
        pieces = "*"
    else:
        return None
    whole = shlex.quote(numbered["whole"])
    return (
        "is one of the pieces that a file was cut into, and no piece can be read alone; join them"
        f" first: cat {whole}{numbered['mark']}{pieces} > {whole}"
    )


def without_further_parts(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Paths, of which several parts of one split file are one; a path that is there again stays.

    Parameters
    ----------
    paths : iterable of path-like
        For instance what a shell makes of ``model-0000*-of-00003.gguf``.

    Returns
    -------
    list of Path
        In the same order; the first part that was given stands for all of a file.
    """
    kept: list[Path] = []
    given: set[Path] = set()
    files: set[tuple[Path, int]] = set()
    for path in map(Path, paths):
        where = Path(os.path.normpath(path.absolute()))  # links have names of their own
        named = parse_part_name(path.name)
        file = (whole_path(where), named.total if named else 0)
        if named is None or file not in files or where in given:
            kept.append(path)
        given.add(where)
        files.add(file)
    return kept


def parse_size(text: str) -> int:
    """A number of bytes: ``500M`` and ``500MB`` are 500,000,000, ``2GiB`` are 2 * 1024**3.

    Without an i in it, as ``llama-gguf-split`` and Hugging Face read it.

    Parameters
    ----------
    text : str
        A positive integer, perhaps followed by K, M, G or T, and these by B or iB; in any case of
        letters.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    match = _SIZE.fullmatch(text)
    if match is None or not int(match["number"]):
        raise ValueError(f"{text!r} is no size like 500M, 2GB or 2GiB")
    base = 1024 if match["binary"] else 1000
    return int(match["number"]) * int(base ** _POWERS[match["unit"].upper()])


def cut(sizes: Sequence[int], most: int) -> list[range]:
    """Which tensors make up each part, in their order, so that the data of none exceed `most`.

    As ``llama-gguf-split`` does, the sizes of headers do not count. A tensor that is larger has a
    part of its own.
    """
    starts, filled = [0], 0
    for i, size in enumerate(sizes):
        filled += size
        if filled > most and i > starts[-1]:
            starts.append(i)
            filled = size
    return [range(*each) for each in zip(starts, [*starts[1:], len(sizes)], strict=True)]


def lay_out_parts(
    metadata_spans: Iterable[bytes], tensors: Sequence[Shape], alignment: int, most: int
) -> list[Layout]:
    """Encode the headers of all parts, for tensors whose data follow in that order.

    Parameters
    ----------
    metadata_spans : iterable of bytes
        Of the whole file, without those of the keys ``split.*``.
    tensors : sequence of (str, tuple of int, TensorType)
        Name, dims and type of each tensor.
    alignment : int
        Of the tensors in the file.
    most : int
        Bytes of tensors in a part.

    Raises
    ------
    PlanError
        If there were more parts than a file may have.
    QuantError
        If a row is no whole number of blocks of its type.
    """
    sizes = [align(kind.tensor_bytes(dims), alignment) for _, dims, kind in tensors]
    ranges = cut(sizes, most)
    if len(ranges) > _MOST_PARTS:
        raise PlanError(
            f"parts of {most:,} bytes would be {len(ranges):,}, more than {_MOST_PARTS:,};"
            " allow larger ones"
        )
    parts = []
    spans = list(metadata_spans)
    for number, chosen in enumerate(ranges):
        spans += [
            encode_key_value(f"{PREFIX}no", ValueType.UINT16, number),
            encode_key_value(f"{PREFIX}count", ValueType.UINT16, len(ranges)),
            encode_key_value(f"{PREFIX}tensors.count", ValueType.INT32, len(tensors)),
        ]
        parts.append(lay_out(spans, [tensors[i] for i in chosen], alignment))
        spans = []
        if alignment != DEFAULT_ALIGNMENT:  # every part is read with its own
            spans.append(encode_key_value("general.alignment", ValueType.UINT32, alignment))
    return parts

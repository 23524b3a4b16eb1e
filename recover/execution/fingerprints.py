"""Digests of what decides on the bytes of an output."""

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from recover._version import __version__
from recover.containers.identity import identity_of
from recover.errors import InputError

_PACKAGE = Path(__file__).parents[1]


def digest_of(document: Any) -> str:
    """A digest of plain data."""
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def version_of_program() -> str:
    """The version of this program, with a digest of its sources."""
    return f"{__version__} {_digest_of_sources()}"


@cache
def _digest_of_sources() -> str:
    sources = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        sources.update(path.read_bytes())
    return sources.hexdigest()


def digest_of_files(paths: Iterable[Path]) -> str:
    """A digest of names, sizes and times of change of files, as they are now.

    Raises
    ------
    InputError
        If one is not there any more.
    """
    told = []
    for path in paths:
        try:
            told.append(identity_of(path))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return digest_of(told)

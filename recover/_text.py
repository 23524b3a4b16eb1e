"""Names and paths as messages show them: on one line, without control characters, not too long."""

import os
import re
from collections.abc import Sequence

_LONGEST = 80
# `pathlib` makes one slash of two, and puts the working folder in front of what it takes for a
# relative path.
_URL = re.compile(r"(?:.*?/)?(?P<scheme>https?|hf):/+(?P<rest>[^/].*)", re.DOTALL)


def escaped(text: str) -> str:
    r"""Text with everything that cannot be printed escaped as by `repr`: always one line.

    That is what tells a terminal to do something, ends a line, or turns the direction of writing.

    Examples
    --------
    >>> escaped("blk.0\n")
    'blk.0\\n'
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def shortened(text: str, longest: int) -> str:
    """Text, cut after so many characters."""
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"


def quoted(text: str) -> str:
    r"""Text from a file between quotation marks, escaped as by `repr`, and shortened.

    Parameters
    ----------
    text : str
        A name, key or value; it may hold anything, for instance line ends or terminal codes.

    Returns
    -------
    str
        At most about 120 printable characters.

    Examples
    --------
    >>> quoted("blk.0\n")
    "'blk.0\\n'"
    """
    shown = repr(text[:_LONGEST])
    if len(text) <= _LONGEST and len(shown) <= _LONGEST + 2:
        return shown
    return f"{shown[: _LONGEST + 1]}...{shown[0]} ({len(text)} characters)"


def some(items: Sequence[str]) -> str:
    """The first three items, and how many more there are."""
    shown = ", ".join(items[:3])
    return shown if len(items) <= 3 else f"{shown} and {len(items) - 3} more"


def tensors_of(names: Sequence[str], singular: str = "is", plural: str = "are") -> str:
    """The subject of a sentence on some tensors, quoted already, and its verb."""
    if len(names) == 1:
        return f"tensor {names[0]} {singular}"
    return f"tensors {some(names)} {plural}"


def url_of(path: str | os.PathLike[str]) -> str | None:
    """The URL that a path stands for, also once `pathlib` has made one slash of two.

    Examples
    --------
    >>> from pathlib import Path
    >>> url_of(Path("https://example.org/a.gguf"))
    'https://example.org/a.gguf'
    """
    text = os.fspath(path)
    found = _URL.fullmatch(text) if ":/" in text else None
    return found and f"{found['scheme']}://{found['rest']}"


def path_text(path: str | os.PathLike[str]) -> str:
    """A path as people write it: of a URL with both slashes."""
    return url_of(path) or os.fspath(path)


def printable(path: str | os.PathLike[str]) -> str:
    """A path as it is, or as by `repr` if it holds anything that cannot be printed."""
    text = path_text(path)
    return text if text.isprintable() else repr(text)

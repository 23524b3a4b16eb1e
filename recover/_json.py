"""JSON as other programs read it, and JSON that may hold anything."""

import json
from collections import Counter
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as _quote
from typing import Any, NoReturn

from recover._text import quoted

MOST_BYTES = 1 << 25
"""Of a document that is read; the largest index of a published model has half of it."""

MOST_VALUES = 1 << 20
"""In a document; each takes up to a hundred bytes of memory, however short it is in the file."""

_DEEPEST = 32


class JSONError(Exception):
    """A document is no JSON object, or too large; the text is for people."""


def finite(value: Any) -> Any:
    """A document without the numbers that JSON does not have: they become null.

    Parameters
    ----------
    value : object
        Plain data: dicts, lists, tuples, strings, numbers, booleans, None.

    Returns
    -------
    object
        The same with None for infinities and NaN.
    """
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


def to_text(document: Any) -> str:
    """A document as JSON, two spaces a level; numbers that JSON does not have become null.

    The text is that of ``json.dumps(finite(document), indent=2)``, in a fraction of the time.

    Parameters
    ----------
    document : object
        Plain data: dicts with texts as keys, lists, tuples, strings, numbers, booleans, None.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    parts: list[str] = []
    _append(document, "\n", parts.append)
    return "".join(parts)


def _append(value: Any, line: str, append: Callable[[str], None]) -> None:
    """Append the text of a value; `line` ends a line and begins the next one of its level."""
    if isinstance(value, list | tuple):
        inner, start = f"{line}  ", "["
        for each in value:
            if (scalar := _SCALARS.get(type(each))) is not None:
                append(f"{start}{inner}{scalar(each)}")
            else:
                append(f"{start}{inner}")
                _append(each, inner, append)
            start = ","
        append(f"{line}]" if value else "[]")
    elif isinstance(value, dict):
        inner, start = f"{line}  ", "{"
        for key, each in value.items():
            if (scalar := _SCALARS.get(type(each))) is not None:
                append(f"{start}{inner}{_quote(key)}: {scalar(each)}")
            else:
                append(f"{start}{inner}{_quote(key)}: ")
                _append(each, inner, append)
            start = ","
        append(f"{line}}}" if value else "{}")
    else:
        append(_scalar(value))


def _scalar(value: Any) -> str:
    """The text of what has no parts, of these types or of ones derived from them."""
    for kind, scalar in _SCALARS.items():
        if isinstance(value, kind):
            return scalar(value)
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


def _float(value: float) -> str:
    return float.__repr__(value) if abs(value) < _INFINITY else "null"


_INFINITY = float("inf")
_SCALARS: dict[type, Callable[[Any], str]] = {
    str: _quote,
    type(None): lambda _: "null",
    bool: lambda value: "true" if value else "false",
    int: int.__repr__,
    float: _float,
}
"""How the values are written that have no parts; what is a boolean is an integer, too."""


def parse_object(
    raw: bytes,
    *,
    strict: bool = False,
    most_bytes: int = MOST_BYTES,
    most_values: int = MOST_VALUES,
) -> dict[str, Any]:
    """The JSON object in the bytes of a file.

    Parameters
    ----------
    raw : bytes
        UTF-8.
    strict : bool
        Whether NaN and infinities are refused, which JSON does not have, but many a configuration.
    most_bytes, most_values : int
        What is read at most.

    Returns
    -------
    dict

    Raises
    ------
    JSONError
        If it is no JSON object, has a key twice, or would take much memory: it is too long, has too
        many values, or is nested too deep.
    """
    if len(raw) > most_bytes:
        raise JSONError(f"has {len(raw):,} bytes; more than {most_bytes:,} are not read")
    # Every value but the first follows one of these, which are in texts, too.
    n_values = sum(map(raw.count, (b",", b":", b"[", b"{")))
    if n_values > most_values:
        raise JSONError(f"has {n_values:,} values; more than {most_values:,} are not read")
    try:
        document = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse if strict else float,
        )
    except RecursionError:
        raise JSONError("is no JSON that can be read: nested too deep") from None
    except ValueError as error:  # no UTF-8, no JSON, huge integers
        raise JSONError(f"is no JSON: {' '.join(str(error)[:100].split())}") from None
    if not isinstance(document, dict):
        raise JSONError("is no JSON object")
    _check_depth(document)
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise JSONError(f"{quoted(twice)} is there twice")
    return found


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_depth(document: dict[str, Any]) -> None:
    level: list[Any] = [document]
    for _ in range(_DEEPEST):
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise JSONError(f"is nested more than {_DEEPEST} deep")

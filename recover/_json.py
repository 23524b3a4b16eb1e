"""JSON as other programs read it."""

from typing import Any


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

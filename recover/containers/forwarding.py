"""Attributes that are those of another object."""

from typing import Any


class Forwarded:
    """An attribute that an attribute of the object has: ``n_rows = Forwarded("stored")``.

    Parameters
    ----------
    to : str
        Name of the attribute that has it, under the same name.
    """

    def __init__(self, to: str) -> None:
        self._to = to
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn its own name."""
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """What the other object has; of a class, this object."""
        if instance is None:
            return self
        return getattr(getattr(instance, self._to), self._name)

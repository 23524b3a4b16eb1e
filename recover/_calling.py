"""Packages that can be called: ``recover.merge(...)`` beside modules like ``recover.merge.plan``.

A name of `recover` that is a function and a package at once would else be whichever was asked for
last: importing a module of the package puts the package under the name.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that stands for one of its functions, which is loaded when it is first called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return function_of(self)(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:
        """The function, for those who ask for its signature or its documentation."""
        return function_of(self)


_HOME: dict[str, str] = {}


def function_of(package: ModuleType) -> Any:
    """The function that a package stands for: of its own last name."""
    name = package.__name__
    return getattr(import_module(_HOME[name]), name.rpartition(".")[2])


def make_callable(package: str, home: str) -> None:
    """Let a package, which is being imported, stand for a function in one of its modules.

    Parameters
    ----------
    package : str
        Its name; the function has the same.
    home : str
        The module that defines the function.
    """
    _HOME[package] = home
    sys.modules[package].__class__ = CallablePackage

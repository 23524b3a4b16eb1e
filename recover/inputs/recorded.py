"""Inputs as plain data: what a plan says of them, so that another process can open them."""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from recover._text import printable
from recover.containers.model import Model
from recover.errors import InputError
from recover.inputs.open import open_model
from recover.inputs.recipes import Recipe, make, recipe_of


@dataclass(frozen=True)
class Input:
    """An input: where it is, what it was when it was opened, and what is made of it."""

    path: Path
    """As given."""
    fingerprint: str
    """See `Model.fingerprint`."""
    made: Mapping[str, Recipe] = field(default_factory=dict)
    """By name, how the tensors are made that are not taken as they are stored."""
    dropped: tuple[str, ...] = ()
    """Tensors that are stored, but not taken."""

    @classmethod
    def of(cls, opened: Model, model: Model) -> Self:
        """What an input is, as it was opened, and as it is taken.

        Raises
        ------
        RecoverError
            If a file cannot be read any more.
        """
        made = {
            name: recipe_of(tensor)
            for name, tensor in model.tensors.items()
            if opened.tensors.get(name) is not tensor
        }
        dropped = tuple(name for name in opened.tensors if name not in model.tensors)
        return cls(opened.path, opened.fingerprint(), made, dropped)

    def open(self) -> Model:
        """The model, opened again, and with the tensors as they are taken.

        Raises
        ------
        InputError
            If it is not what it was.
        RecoverError
            If it cannot be read.
        """
        return self.take(self.open_stored())

    def open_stored(self) -> Model:
        """The model, opened again, with the tensors that it stores; errors as of `open`."""
        model = open_model(self.path)
        if model.fingerprint() != self.fingerprint:
            raise InputError(
                f"{printable(self.path)}: was changed since the work was planned; plan it again"
            )
        return model

    def take(self, opened: Model) -> Model:
        """An opened model with the tensors as they are taken."""
        made = {name: make(recipe, opened) for name, recipe in self.made.items()}
        model = opened.without(self.dropped) if self.dropped else opened
        return model.with_tensors(made) if made else model

    def of_tensor(self, name: str) -> "Input":
        """The same, as far as it matters for one tensor; wherever the process runs."""
        if name not in self.made:
            return self._as_stored
        return Input(self._as_stored.path, self.fingerprint, {name: self.made[name]})

    @cached_property
    def _as_stored(self) -> "Input":
        """The same for tensors that are taken as they are stored."""
        return Input(self.path.absolute(), self.fingerprint)

    def to_record(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "path": str(self.path),
            "fingerprint": self.fingerprint,
            "made": self.made,
            "dropped": list(self.dropped),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """From what `to_record` gave, perhaps by way of JSON."""
        path, dropped = Path(record["path"]), tuple(record["dropped"])
        return cls(path, record["fingerprint"], record["made"], dropped)


class OpenInputs:
    """Inputs that are open in this process: each is opened once, when it is first asked for.

    Parameters
    ----------
    known : iterable of (Input, Model)
        Those that are open already, with the tensors as they are taken.
    """

    def __init__(self, known: Iterable[tuple[Input, Model]] = ()) -> None:
        self._lock = threading.Lock()
        self._taken: dict[tuple[Path, str], list[tuple[Input, Model]]] = {}
        for each, model in known:
            key = each.path.absolute(), each.fingerprint
            self._taken.setdefault(key, []).append((each, model))
        self._stored: dict[Path, tuple[str, Model]] = {}

    def model(self, wanted: Input, name: str) -> Model:
        """The model of an input, as far as it matters for one tensor (see `Input.of_tensor`).

        Raises
        ------
        InputError
            If it is not what it was.
        RecoverError
            If it cannot be read.
        """
        path = wanted.path if wanted.path.is_absolute() else wanted.path.absolute()
        for known, model in self._taken.get((path, wanted.fingerprint), ()):
            if known.made.get(name) == wanted.made.get(name):
                return model
        with self._lock:
            fingerprint, stored = self._stored.get(path, ("", None))
            if stored is None or fingerprint != wanted.fingerprint:
                stored = wanted.open_stored()
                self._stored[path] = wanted.fingerprint, stored
        return wanted.take(stored)

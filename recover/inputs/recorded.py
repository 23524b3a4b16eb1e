"""Inputs as plain data: what a plan says of them, so that another process can open them."""

import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from recover._text import printable
from recover.containers.model import Model
from recover.errors import InputError
from recover.inputs.open import open_model
from recover.inputs.originals.origin import RecoveredTensor
from recover.inputs.originals.requantized import SecondHand
from recover.quants import type_by_name


class Original(NamedTuple):
    """A tensor that counts as the integers that it was made from (see `RecoveredTensor`)."""

    name: str
    """Of the tensor."""
    type: str
    """Name of the type in which the integers are stored."""
    found: SecondHand
    """What the stored bytes were made from."""


@dataclass(frozen=True)
class Input:
    """An input: where it is, and what it was when it was opened.

    Attributes
    ----------
    path : Path
        As given.
    fingerprint : str
        See `Model.fingerprint`.
    originals : tuple of Original
        The tensors that count as something else than what is stored.
    """

    path: Path
    fingerprint: str
    originals: tuple[Original, ...] = ()

    @classmethod
    def of(cls, model: Model) -> Self:
        """What an open model is.

        Raises
        ------
        RecoverError
            If a file cannot be read any more.
        """
        originals = tuple(
            Original(name, tensor.type.name, tensor.found)
            for name, tensor in model.tensors.items()
            if isinstance(tensor, RecoveredTensor)
        )
        return cls(model.path, model.fingerprint(), originals)

    def open(self) -> Model:
        """The model, opened again.

        Raises
        ------
        InputError
            If it is not what it was.
        RecoverError
            If it cannot be read.
        """
        model = open_model(self.path)
        if model.fingerprint() != self.fingerprint:
            raise InputError(
                f"{printable(self.path)}: was changed since the work was planned; plan it again"
            )
        return self.with_originals(model)

    def with_originals(self, model: Model) -> Model:
        """The model with the tensors that count as something else, if it does not have them."""
        found = {
            name: RecoveredTensor(model.tensors[name], found, type_by_name(kind))
            for name, kind, found in self.originals
            if not isinstance(model.tensors[name], RecoveredTensor)
        }
        return model.with_tensors(found) if found else model

    def of_tensor(self, name: str) -> "Input":
        """The same, as far as it matters for one tensor; wherever the process runs."""
        mine = tuple(each for each in self.originals if each.name == name)
        return Input(self.path.absolute(), self.fingerprint, mine)

    def to_record(self) -> dict[str, Any]:
        """Plain data."""
        originals = [[name, kind, asdict(found)] for name, kind, found in self.originals]
        return {"path": str(self.path), "fingerprint": self.fingerprint, "originals": originals}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """From what `to_record` gave, perhaps by way of JSON."""
        originals = (
            Original(name, kind, SecondHand(**found)) for name, kind, found in record["originals"]
        )
        return cls(Path(record["path"]), record["fingerprint"], tuple(originals))


class OpenInputs:
    """Inputs that are open in this process: each is opened once, when it is first asked for.

    Parameters
    ----------
    known : iterable of (Input, Model)
        Those that are open already.
    """

    def __init__(self, known: Iterable[tuple[Input, Model]] = ()) -> None:
        self._lock = threading.Lock()
        self._models = {each.path.absolute(): (each.fingerprint, model) for each, model in known}

    def model(self, wanted: Input) -> Model:
        """The model, with the tensors of this input that count as something else.

        Raises
        ------
        InputError
            If it is not what it was.
        RecoverError
            If it cannot be read.
        """
        path = wanted.path.absolute()
        with self._lock:
            fingerprint, model = self._models.get(path, ("", None))
            if model is None or fingerprint != wanted.fingerprint:
                model = Input(wanted.path, wanted.fingerprint).open()
                self._models[path] = wanted.fingerprint, model
        return wanted.with_originals(model)

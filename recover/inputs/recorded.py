"""Inputs as plain data: what a plan says of them, so that another process can open them."""

import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from recover._text import printable
from recover.containers.model import Model, StoredTensor
from recover.containers.views import Span, View
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


class Made(NamedTuple):
    """A tensor that is made of others' weights (see `recover.containers.views.View`)."""

    name: str
    """Of the tensor."""
    dims: tuple[int, ...]
    """Its shape, row length first."""
    spans: tuple[tuple[str, int, int], ...]
    """Names of stored tensors, and the first and last of the weights that are taken of each."""


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
    views : tuple of Made
        The tensors that are made of others.
    layout : tuple of str
        See `recover.containers.model.Model`.
    """

    path: Path
    fingerprint: str
    originals: tuple[Original, ...] = ()
    views: tuple[Made, ...] = ()
    layout: tuple[str, ...] = ()

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
        stored = {
            name: tensor.naive if isinstance(tensor, RecoveredTensor) else tensor
            for name, tensor in model.tensors.items()
        }
        views = tuple(
            Made(name, tensor.dims, tuple((s.tensor.name, s.start, s.end) for s in tensor.spans))
            for name, tensor in stored.items()
            if isinstance(tensor, View)
        )
        return cls(model.path, model.fingerprint(), originals, views, model.layout)

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
        return self.completed(model)

    def completed(self, model: Model) -> Model:
        """The model with the tensors that are made of others, or count as something else.

        Those that it has already are left as they are.
        """
        if self.layout:
            model = model.fitted(self.layout)
        made: dict[str, StoredTensor] = {
            name: View(name, dims, tuple(Span(model.tensors[n], i, j) for n, i, j in spans))
            for name, dims, spans in self.views
            if not isinstance(model.tensors.get(name), View | RecoveredTensor)
        }
        if made:
            model = model.with_tensors(made)
        found = {
            name: RecoveredTensor(model.tensors[name], found, type_by_name(kind))
            for name, kind, found in self.originals
            if not isinstance(model.tensors[name], RecoveredTensor)
        }
        return model.with_tensors(found) if found else model

    def of_tensor(self, name: str) -> "Input":
        """The same, as far as it matters for one tensor; wherever the process runs."""
        originals = tuple(each for each in self.originals if each.name == name)
        views = tuple(each for each in self.views if each.name == name)
        path = self.path.absolute()
        return Input(path, self.fingerprint, originals, views, self.layout)

    def to_record(self) -> dict[str, Any]:
        """Plain data."""
        originals = [[name, kind, asdict(found)] for name, kind, found in self.originals]
        return {
            "path": str(self.path),
            "fingerprint": self.fingerprint,
            "originals": originals,
            "views": [[each.name, list(each.dims), list(each.spans)] for each in self.views],
            "layout": list(self.layout),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """From what `to_record` gave, perhaps by way of JSON."""
        originals = (
            Original(name, kind, SecondHand(**found)) for name, kind, found in record["originals"]
        )
        views = (
            Made(name, tuple(dims), tuple((stored, i, j) for stored, i, j in spans))
            for name, dims, spans in record["views"]
        )
        layout = tuple(record["layout"])
        path, fingerprint = Path(record["path"]), record["fingerprint"]
        return cls(path, fingerprint, tuple(originals), tuple(views), layout)


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
        """The model, with the tensors of this input that are made of others.

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
        return wanted.completed(model)

"""A calibration: the weights and densities that were fitted, where they come from, and its file.

The file is JSON, the same bytes whenever the same inputs are fitted in the same way. Weights belong
to the types that a tensor has in the inputs: a set in which a type may occur several times, and
whose order does not matter. Inputs of one type are told apart by their order. See
``docs/calibration.md`` for the fields.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from recover._brief import Brief
from recover._text import printable, quoted, some
from recover._version import __version__
from recover.calibration._document import Field, read_document
from recover.errors import CalibrationError
from recover.evidence.buffer import Source
from recover.evidence.densities import ABOVE, BELOW, DEGREE, SHAPE
from recover.execution.output import OutputFile
from recover.quants import ScalarType

FORMAT = "recover.calibration"
VERSION = 3
MOST_DEPTHS = 64
"""Parts that the layers of a model can be divided into."""

_MOST_TYPES = 64
_TOLERANCE = 1e-6  # of the sum of constrained weights
_LARGEST_WEIGHT = 1e6
_LARGEST_COEFFICIENT = 1e6
_FURTHEST = 1024.0


@dataclass(frozen=True)
class InputFile:
    """A file that took part in the fit: its name, its size, and how many tensors have which type.

    Nothing else is kept of it, in particular no folder.
    """

    name: str
    n_bytes: int
    types: dict[str, int]


@dataclass(frozen=True)
class Gain:
    """Mean square error over that of the best input alone."""

    mse_ratio: float
    """The smaller the better; 1 is no gain."""
    ci95: tuple[float, float] | None
    """95% interval by bootstrap over tensors; None where there are too few."""
    n_tensors: int
    """On which it was measured."""


@dataclass(frozen=True)
class Combination:
    """Weights of the inputs for one set of types, or for a part of its tensors."""

    types: tuple[str, ...]
    """Finest first; inputs of one type in their order."""
    role: str | None
    """Tensors of this role only (see `recover.containers.gguf.names.role_of`)."""
    depth: int | None
    """Tensors of this part of the layers only, counted from 0."""
    weights: tuple[float, ...]
    """One for each of the types."""
    n_tensors: int
    n_weights: int
    """What they were fitted on."""
    fitted: Gain
    """Measured on the tensors of the fit."""
    uncalibrated: Gain
    """Of the method ``linear``, which weighs by inverse variance, on the same tensors."""
    held_out: Gain | None
    """Measured on tensors that took no part in the fit; None where there is only one."""


@dataclass(frozen=True)
class FittedDensity:
    """Where in their cells the true weights lie, for one type."""

    type: str
    """Name of the type."""
    has_cells: bool
    weighted: bool
    """Whether its codes confine the weights, and whether an importance matrix was used (see
    `recover.evidence.buffer.Source`)."""
    n_weights: tuple[int, ...]
    """For each class of code, the weights that were counted; with too few, the class keeps the
    simulated density."""
    rows: tuple[tuple[float, ...], ...]
    """As `recover.evidence.densities.density` returns them."""


@dataclass(frozen=True, repr=False)
class Calibration(Brief):
    """What `recover.calibration.fit.calibrate` found.

    Attributes
    ----------
    inputs : tuple of InputFile
        In their order.
    truth : InputFile
        The original.
    constrained : bool
        Whether the weights are not negative and add up to 1.
    by_role : bool
        Whether roles have weights of their own.
    n_depths : int
        Parts of the layers that have weights of their own; 1 if depth does not matter.
    left_out : str
        What was left out at a time to measure the gain: ``tensor`` or ``layer``.
    held_out : Gain or None
        Over all sets of types, each tensor with its most special weights, fitted without it.
    uncalibrated : Gain or None
        Of the method ``linear``, which weighs by inverse variance, on the same tensors.
    combinations : tuple of Combination
        The most general first.
    densities : tuple of FittedDensity
        By type.
    recover_version : str
        That made it.
    warnings : tuple of str
        What may be wrong with the inputs and the truth; not stored.
    """

    inputs: tuple[InputFile, ...]
    truth: InputFile
    constrained: bool
    by_role: bool
    n_depths: int
    left_out: str
    held_out: Gain | None
    uncalibrated: Gain | None
    combinations: tuple[Combination, ...]
    densities: tuple[FittedDensity, ...]
    recover_version: str = __version__
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def facts(self) -> Iterator[tuple[str, object]]:
        """See `recover._brief.Brief`."""
        yield "inputs", " + ".join(each.name for each in self.inputs)
        yield "truth", self.truth.name
        yield "combinations", len(self.combinations)
        yield "densities", " ".join(each.type for each in self.densities)
        yield "held_out", None if self.held_out is None else self.held_out.mse_ratio

    def weights_for(
        self, types: Sequence[str], role: str | None = None, depth: float | None = None
    ) -> tuple[float, ...]:
        """Weights of inputs, the most special ones that there are.

        Parameters
        ----------
        types : sequence of str
            How the inputs store the tensor, in any order; equal ones in the order of the inputs.
        role : str, optional
            What the tensor does.
        depth : float, optional
            Its layer over the number of layers.

        Returns
        -------
        tuple of float
            In the order of `types`.

        Raises
        ------
        CalibrationError
            If this calibration does not know the types.
        """
        key = _key(types)
        part = None if depth is None else min(int(depth * self.n_depths), self.n_depths - 1)
        for wanted in ((role, part), (role, None), (None, part), (None, None)):
            if found := self._by_key.get((key, *wanted)):
                return _in_order(found, types)
        known = [" + ".join(each.types) for each in self.combinations if each.role is None]
        raise CalibrationError(
            f"the calibration was not made for inputs of the types {' + '.join(types)};"
            f" it knows {some(list(dict.fromkeys(known))) or 'none'}"
        )

    def density_for(
        self, type_name: str, *, has_cells: bool, weighted: bool = False
    ) -> tuple[tuple[float, ...], ...]:
        """The density of a type; `CalibrationError` if this calibration does not know it.

        Those with and without an importance matrix stand in for each other if one is missing.
        """
        found = [
            each for each in self.densities if (each.type, each.has_cells) == (type_name, has_cells)
        ]
        for each in sorted(found, key=lambda each: each.weighted != weighted):
            return each.rows
        known = [_density_name(each.type, has_cells=each.has_cells) for each in self.densities]
        raise CalibrationError(
            f"the calibration has no density of {_density_name(type_name, has_cells=has_cells)};"
            f" it knows {', '.join(known) or 'none'}"
        )

    def with_density(self, source: Source) -> Source:
        """A source with its density; unchanged if its codes stand for several weights."""
        if not isinstance(source.type, ScalarType):
            return source
        rows = self.density_for(
            source.type.name, has_cells=source.has_cells, weighted=source.weighted
        )
        return replace(source, density=rows)

    @cached_property
    def _by_key(self) -> dict[tuple[tuple[str, ...], str | None, int | None], Combination]:
        return {(_key(each.types), each.role, each.depth): each for each in self.combinations}

    @property
    def label(self) -> str:
        """What the metadata of a merged file say of it: digest, inputs and truth."""
        names = " + ".join(source.name for source in self.inputs)
        digest = hashlib.sha256(self.to_bytes()).hexdigest()[:16]
        return f"sha256:{digest} {names} on {self.truth.name}"

    def to_json(self) -> dict[str, Any]:
        """The document that is stored."""
        document = asdict(self)
        version = document.pop("recover_version")
        del document["warnings"]
        return {"format": FORMAT, "version": VERSION, "recover_version": version, **document}

    def to_bytes(self) -> bytes:
        """The file."""
        return (json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n").encode()

    def save(self, path: str | os.PathLike[str], inputs: Sequence[Path] = ()) -> None:
        """Write the file; it appears when it is complete, and never in place of an input."""
        content = self.to_bytes()
        with OutputFile(Path(path), len(content), inputs) as output:
            output.write_at(0, content)


def _key(types: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(types))


def _in_order(combination: Combination, types: Sequence[str]) -> tuple[float, ...]:
    """Its weights in the order of `types`."""
    pairs = list(zip(combination.types, combination.weights, strict=True))
    weights = {name: iter([w for each, w in pairs if each == name]) for name in set(types)}
    return tuple(next(weights[name]) for name in types)


def _density_name(type_name: str, *, has_cells: bool) -> str:
    return type_name if has_cells else f"{type_name} without cells"


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read a calibration file.

    Parameters
    ----------
    path : path-like
        What `Calibration.save` wrote.

    Returns
    -------
    Calibration

    Raises
    ------
    CalibrationError
        If it cannot be read, is damaged, or of another version.
    """
    try:
        return read_calibration(read_document(Path(path)))
    except CalibrationError as error:
        raise CalibrationError(f"{printable(path)}: {error}") from None


def read_calibration(stored: dict[str, Any]) -> Calibration:
    """The calibration of a document (see `Calibration.to_json`).

    Raises
    ------
    CalibrationError
        If it is damaged, or of another version.
    """
    document = Field(stored, "")
    if document.value.get("format") != FORMAT:
        raise CalibrationError("is no calibration: its format is not 'recover.calibration'")
    version = document["version"].integer(1)
    if version != VERSION:
        raise CalibrationError(
            f"is a calibration of version {version}, but this program reads version {VERSION};"
            " make it again with recover calibrate"
        )
    constrained = document["constrained"].boolean()
    n_depths = document["n_depths"].integer(1, MOST_DEPTHS)
    calibration = Calibration(
        inputs=tuple(_source(each) for each in document["inputs"].items()),
        truth=_source(document["truth"]),
        constrained=constrained,
        by_role=document["by_role"].boolean(),
        n_depths=n_depths,
        left_out=document["left_out"].text(),
        held_out=_gain_or_none(document["held_out"]),
        uncalibrated=_gain_or_none(document["uncalibrated"]),
        combinations=tuple(
            _combination(each, n_depths, constrained=constrained)
            for each in document["combinations"].items()
        ),
        densities=tuple(_density(each) for each in document["densities"].items()),
        recover_version=document["recover_version"].text(),
    )
    _refuse_twice(
        [(_key(each.types), each.role, each.depth) for each in calibration.combinations],
        "two combinations are for the same types, role and depth",
    )
    _refuse_twice(
        [(each.type, each.has_cells, each.weighted) for each in calibration.densities],
        "two densities are of the same type",
    )
    return calibration


def _refuse_twice(keys: Sequence[object], what: str) -> None:
    if len(set(keys)) < len(keys):
        (key, _), *_ = Counter(keys).most_common(1)
        raise CalibrationError(f"is damaged: {what}: {quoted(str(key))}")


def _source(field: Field) -> InputFile:
    types = field["types"].pairs()
    return InputFile(
        name=field["name"].text(),
        n_bytes=field["n_bytes"].integer(0),
        types={name: count.integer(0) for name, count in types.items()},
    )


def _gain(field: Field) -> Gain:
    interval = field["ci95"]
    ci95 = None
    if interval.value is not None:
        low, high = (each.number(0.0) for each in interval.items(2, 2))
        ci95 = low, high
    return Gain(field["mse_ratio"].number(0.0), ci95, field["n_tensors"].integer(0))


def _gain_or_none(field: Field) -> Gain | None:
    return None if field.value is None else _gain(field)


def _combination(field: Field, n_depths: int, *, constrained: bool) -> Combination:
    types = tuple(each.text() for each in field["types"].items(2, _MOST_TYPES))
    n_inputs = len(types)
    limit = _LARGEST_WEIGHT
    weights = field["weights"].items(n_inputs, n_inputs)
    role, depth = field["role"], field["depth"]
    combination = Combination(
        types=types,
        role=None if role.value is None else role.text(),
        depth=None if depth.value is None else depth.integer(0, n_depths - 1),
        weights=tuple(each.number(0.0 if constrained else -limit, limit) for each in weights),
        n_tensors=field["n_tensors"].integer(1),
        n_weights=field["n_weights"].integer(1),
        fitted=_gain(field["fitted"]),
        uncalibrated=_gain(field["uncalibrated"]),
        held_out=_gain_or_none(field["held_out"]),
    )
    if constrained and abs(sum(combination.weights) - 1) > _TOLERANCE:
        raise CalibrationError(
            f"is damaged: {field['weights'].place} add up to {sum(combination.weights):.9g},"
            " but constrained weights add up to 1"
        )
    return combination


def _density(field: Field) -> FittedDensity:
    *classes, varying = field["rows"].items(4, 4)
    limit = _LARGEST_COEFFICIENT
    rows = []
    for each in classes:
        *coefficients, atom, low, high = each.items(SHAPE[1], SHAPE[1])
        row = [number.number(-limit, limit) for number in coefficients]
        row += [atom.number(0.0, limit), low.number(-_FURTHEST, 0.0), high.number(0.0, _FURTHEST)]
        if row[BELOW] == row[ABOVE]:
            raise CalibrationError(f"is damaged: {each.place} leaves no place for a weight")
        rows.append(tuple(row))
    limits = (limit,) * DEGREE + (0.0,) * (SHAPE[1] - DEGREE)  # there is nothing else that varies
    added = zip(varying.items(SHAPE[1], SHAPE[1]), limits, strict=True)
    rows.append(tuple(number.number(-most, most) for number, most in added))
    return FittedDensity(
        type=field["type"].text(),
        has_cells=field["has_cells"].boolean(),
        weighted=field["weighted"].boolean(),
        n_weights=tuple(each.integer(0) for each in field["n_weights"].items(3, 3)),
        rows=tuple(rows),
    )

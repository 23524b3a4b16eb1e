"""The networks of the method `joint` as they are stored, and which of them serves which inputs.

A set of inputs has a label: its types, finest first, joined by ``+``, with as many stars behind a
type as the number of the importance matrix that its encoder used. Equal labels are equal sets.
"""

import hashlib
import itertools
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from recover._text import printable
from recover.errors import PlanError
from recover.estimators._joint_features import (
    LAYERS_OF_ROUND,
    shapes_of_layers,
)
from recover.estimators._joint_net import (
    Network,
    Round,
    layer_of_groups,
    layer_of_weights,
)
from recover.quants import F32Array

STAR = "*"
_NAMES = "names"  # of the array of types in a file of its own
_MOST_MATRICES = 4

Terms = Mapping[str, F32Array]


@dataclass(frozen=True)
class Entry:
    """What is known of a network that comes with the package.

    Attributes
    ----------
    file : str
        Its name in ``recover/data/joint``.
    types : tuple of str
        Of the network for one set, its inputs, finest first. Of one for any set, its types.
    sets : mapping of str to float
        By the labels of the sets that it serves: the share of the posterior's square error that it
        saves.
    for_any : bool
        Whether it has terms for each type, of which the network for a set is assembled.
    """

    file: str
    types: tuple[str, ...]
    sets: Mapping[str, float]
    for_any: bool


def label_of(names: Sequence[str]) -> str:
    """The label of a set of types with stars, the types finest first.

    How matrices are numbered, and the order of inputs of one type, are of no consequence. It is
    empty where there are too many matrices.
    """
    types = [name.rstrip(STAR) for name in names]
    places = {name: i for i, name in reversed(list(enumerate(types)))}
    matrices = sorted({n for name in names if (n := name.count(STAR))})
    if len(matrices) > _MOST_MATRICES:
        return ""
    found = []
    for numbers in itertools.permutations(range(1, len(matrices) + 1)):
        number = dict(zip(matrices, numbers, strict=True)) | {0: 0}
        each = sorted(
            (places[kind], kind, number[name.count(STAR)])
            for kind, name in zip(types, names, strict=True)
        )
        found.append(each)
    return "+".join(kind + STAR * n for _, kind, n in min(found))


def serving(label: str) -> Entry | None:
    """The network that serves a set; the one that was trained for it alone, if there is one."""
    return next((each for each in _entries() if label in each.sets), None)


def labels() -> tuple[str, ...]:
    """Of all sets that a network serves; those that have one of their own first."""
    return tuple(label for each in _entries() for label in sorted(each.sets))


@cache
def _entries() -> tuple[Entry, ...]:
    text = (files("recover") / "data" / "joint" / "index.json").read_text(encoding="utf-8")
    index: dict[str, Any] = json.loads(text)
    own = [
        Entry(each["file"], tuple(each["types"]), {label_of(each["types"]): each["saves"]}, False)
        for each in index["of_sets"]
    ]
    of_any = [
        Entry(each["file"], tuple(each["types"]), each["sets"], True)
        for each in index["of_any_set"]
    ]
    return (*own, *of_any)


def terms_of(entry: Entry, names: tuple[str, ...]) -> Terms:
    """The terms of the network for inputs, in the order of the evidence."""
    stored = _stored(entry.file)
    if not entry.for_any:
        return stored
    rows = [entry.types.index(name.rstrip(STAR) + STAR * (STAR in name)) for name in names]
    return assemble(stored, rows)


def nearest(names: tuple[str, ...]) -> Terms | None:
    """What a network for inputs may begin as: that which serves them, or that for any set.

    None if there are types that none has learned.
    """
    entry = serving(label_of(names))
    if entry is not None:
        return terms_of(entry, names)
    kinds = {name.rstrip(STAR) + STAR * (STAR in name) for name in names}
    of_any = (each for each in _entries() if each.for_any and kinds <= set(each.types))
    return next((terms_of(each, names) for each in of_any), None)


@cache
def _stored(file: str) -> Terms:
    with (files("recover") / "data" / "joint" / file).open("rb") as opened:
        return read_terms(opened)


def read_terms(file: IO[bytes]) -> Terms:
    """The terms in an open file."""
    with np.load(file) as arrays:
        return {key: value.astype(np.float32) for key, value in arrays.items()}


class NetworkFile(NamedTuple):
    """A network for one set in a file of its own.

    Attributes
    ----------
    names : tuple of str
        The set: types with stars, in the order of the network's inputs.
    terms : mapping
    """

    names: tuple[str, ...]
    terms: Terms


def digest_of(path: Path) -> str:
    """What tells whether a file was changed."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise PlanError(f"{printable(path)} cannot be read: {error.strerror}") from error


def save_network(file: IO[bytes], names: Sequence[str], terms: Terms) -> None:
    """Write a network for inputs (types with stars), in the order of its inputs."""
    arrays: dict[str, Any] = {_NAMES: np.array(names), **terms}
    np.savez_compressed(file, **arrays)


@cache
def read_network(path: str, digest: str) -> NetworkFile:
    """The network in a file.

    Raises
    ------
    PlanError
        If the file has another digest by now, or is none of a network.
    """
    if digest_of(Path(path)) != digest:
        raise PlanError(f"{printable(path)} was changed in the meantime")
    broken = PlanError(f"{printable(path)} is no network as recover train-set writes it")
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files}
        names = tuple(map(str, found.pop(_NAMES).tolist()))
        terms = {key: value.astype(np.float32) for key, value in found.items()}
        if not fits(terms, len(names)):
            raise broken
    except (ValueError, KeyError, OSError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise broken from error
    return NetworkFile(names, terms)


def fits(terms: Terms, n_inputs: int) -> bool:
    """Whether terms are those of a network for so many inputs, all of them finite."""
    width = terms["weights.bias"].size
    n_rounds = sum(key.endswith("enter.bias") for key in terms)
    sizes = shapes_of_layers(width, n_rounds, n_inputs)
    return (
        width >= 16
        and width % 8 == 0
        and n_rounds > 0
        and len(terms) == 2 * len(sizes)
        and all(terms[f"{name}.weight"].shape == size for name, size in sizes.items())
        and all(terms[f"{name}.bias"].shape == size[:1] for name, size in sizes.items())
        and all(bool(np.isfinite(each).all()) for each in terms.values())
    )


def assemble(terms: Terms, rows: Sequence[int]) -> Terms:
    """The network for a set of types, from that for any.

    The first two layers have columns for each type. The others are those of all sets, plus a
    product of two thin matrices, ``left`` (n_out, r) and ``right`` (r, n_in), for each type.

    Parameters
    ----------
    terms : mapping
        Arrays by name; those of types have a row for each.
    rows : sequence of int
        Of the types, finest first.
    """
    found: dict[str, F32Array] = {}
    for name, own in terms.items():
        layer, _, kind = name.rpartition(".")
        if kind == "bias":
            found[name] = own
        elif kind == "weight" and f"{layer}.types" in terms:
            columns = terms[f"{layer}.types"]
            found[name] = np.concatenate([own, *(columns[row] for row in rows)], 1)
        elif kind == "weight":
            left, right = terms[f"{layer}.left"], terms[f"{layer}.right"]
            found[name] = own + np.add.reduce([left[row] @ right[row] for row in rows])
    return found


def network_of(terms: Terms) -> Network:
    """A network, as the kernels take it; that of the same terms is made once."""
    if id(terms) not in _made:
        _made[id(terms)] = terms, _network_of(terms)
    return _made[id(terms)][1]


_made: dict[int, tuple[Terms, Network]] = {}


def _network_of(terms: Terms) -> Network:
    """See `Network`; what is always added to the results of a layer is in its biases."""
    width = terms["begin.bias"].size
    n_rounds = sum(key.startswith("rounds.") for key in terms) // (2 * len(LAYERS_OF_ROUND))
    one, none = np.ones(width, np.float32), np.zeros(width, np.float32)

    def matrix(name: str) -> F32Array:
        return terms[f"{name}.weight"]

    def bias(name: str) -> F32Array:
        return terms[f"{name}.bias"]

    def exchange(name: str) -> Round:
        gather, more = matrix(f"{name}.gather"), bias(f"{name}.gather")
        of_16 = np.concatenate([gather[:, :width], gather[:, 3 * width :]], 1)
        return Round(
            layer_of_weights(matrix(f"{name}.enter"), bias(f"{name}.enter")),
            layer_of_groups(gather[:, width : 3 * width], more),
            layer_of_groups(of_16, np.zeros_like(more)),
            layer_of_groups(
                matrix(f"{name}.spread"), bias(f"{name}.spread") + np.concatenate([none, one])
            ),
            layer_of_weights(matrix(f"{name}.leave"), bias(f"{name}.leave")),
        )

    return Network(
        layer_of_weights(matrix("weights"), none),
        layer_of_groups(matrix("groups"), bias("groups")),
        layer_of_groups(matrix("begin"), bias("begin") + bias("weights")),
        tuple(exchange(f"rounds.{i}") for i in range(n_rounds)),
        layer_of_weights(matrix("end"), bias("end") + np.array([0, 1], np.float32)),
    )

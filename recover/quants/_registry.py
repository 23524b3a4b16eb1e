"""Which tensor types there are: one file each in this package, and those of other packages.

A package adds types through entry points of the group ``recover.types``, each of which names a
`TensorType` or a sequence of them. They are loaded when a type is asked for that is none of ours,
or when all types are listed; so they take no time in any other case.
"""

import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType

import recover.quants
from recover.errors import QuantError
from recover.quants._elsewhere import AMBIGUOUS, described_elsewhere
from recover.quants.base import FloatType, Integers, ScalarType, TensorType, VectorType
from recover.quants.interval import BlockIntervals

ENTRY_POINTS = "recover.types"
"""Group of the entry points through which packages add types."""

_OTHER_MODULES = ("base", "variants")


@cache
def all_types() -> tuple[TensorType, ...]:
    """Every type, by ascending `type_id`; those without one last, by name.

    Raises
    ------
    QuantError
        If two types share a name or an id, or an entry point gives no types.
    """
    return tuple(sorted(_by_name(of_others=True).values(), key=_order))


def type_by_id(type_id: int) -> TensorType:
    """The type that GGUF files number `type_id`; `QuantError`, with its name, if it is not read."""
    for of_others in (False, True):
        if found := _by_id(of_others=of_others).get(type_id):
            return found
    unknown = f"tensor type {type_id} is unknown; known are {_names(all_types())}"
    raise QuantError(described_elsewhere(type_id) or unknown)


@cache
def types_by_id(type_id: int) -> tuple[TensorType, ...]:
    """The types of a number: that of `type_by_id` first, then its alternatives.

    Raises
    ------
    QuantError
        As `type_by_id` does.
    """
    first = type_by_id(type_id)
    return (first, *_alternatives().get(type_id, ()))


def is_ambiguous(type_id: int) -> bool:
    """Whether programs mean different types by a number, which only sizes of tensors tell apart."""
    return type_id in AMBIGUOUS or type_id in _alternatives()


@cache
def type_by_name(name: str) -> TensorType:
    """The type of that name, in any case; `QuantError` if there is none."""
    for of_others in (False, True):
        if found := _by_name(of_others=of_others).get(name.upper()):
            return found
    raise QuantError(f"tensor type {name!r} is unknown; known are {_names(all_types())}")


def has_encoder(kind: TensorType) -> bool:
    """Whether weights can be encoded as a type."""
    if isinstance(kind, BlockIntervals):
        return kind.quantize is not None
    return isinstance(kind, ScalarType | FloatType)


def makes_files(kind: TensorType) -> bool:
    """Whether ``quantize`` makes files of a type."""
    return kind.file_type is not None and has_encoder(kind)


def types_of_files() -> dict[str, TensorType]:
    """The types that ``quantize`` makes files of, by name, in the order of `file_type`."""
    kinds = filter(makes_files, all_types())
    return {kind.name: kind for kind in sorted(kinds, key=lambda each: each.file_type or 0)}


@cache
def types_of_integers() -> Mapping[str, Integers]:
    """The types that hold integers times scales, by name, the smallest first."""
    holders = ScalarType | VectorType | BlockIntervals
    kinds = [kind for kind in all_types() if isinstance(kind, holders)]
    kinds.sort(key=lambda each: each.bits_per_weight)
    return MappingProxyType({kind.name: kind.integers for kind in kinds if kind.integers})


def name_of_file_type(number: int) -> str | None:
    """What `general.file_type` means by a number (``enum llama_ftype``); None if it is unknown."""
    for of_others in (False, True):
        for kind in _by_name(of_others=of_others).values():
            if number in kind.file_types:
                return kind.file_types[number]
    return None


def forget_types_of_others() -> None:
    """Look for types of other packages again when they are next asked for."""
    for cached in (all_types, type_by_name, types_by_id, types_of_integers, _by_name, _by_id):
        cached.cache_clear()


def _names(kinds: Iterable[TensorType]) -> str:
    """Names of llama.cpp's types, and how many there are of other programs."""
    kinds = list(kinds)
    own = [kind.name for kind in kinds if not kind.writer]
    n_others = len(kinds) - len(own)
    return ", ".join(own) + (f" and {n_others} types of other programs" if n_others else "")


def _order(kind: TensorType) -> tuple[bool, int, str]:
    return kind.type_id is None, kind.type_id or 0, kind.name


@cache
def _by_id(*, of_others: bool) -> dict[int, TensorType]:
    kinds = _by_name(of_others=of_others).values()
    return {
        kind.type_id: kind for kind in kinds if kind.type_id is not None and not kind.is_alternative
    }


@cache
def _alternatives() -> dict[int, tuple[TensorType, ...]]:
    """Our types that are alternatives to another one, by number."""
    found: dict[int, tuple[TensorType, ...]] = {}
    for kind in _ours():
        if kind.type_id is not None and kind.is_alternative:
            found[kind.type_id] = (*found.get(kind.type_id, ()), kind)
    return found


@cache
def _by_name(*, of_others: bool) -> dict[str, TensorType]:
    """Our types, perhaps with those of other packages, by name in capitals."""
    found: dict[str, TensorType] = {}
    ids: dict[int, TensorType] = {}
    kinds = [*_ours(), *(_of_others() if of_others else [])]
    for kind in kinds:
        if found.setdefault(kind.name.upper(), kind) is not kind:
            raise QuantError(f"two tensor types share the name {kind.name}")
        if kind.type_id is None or kind.is_alternative:
            continue
        if ids.setdefault(kind.type_id, kind) is not kind:
            raise QuantError(f"two tensor types share the id {kind.type_id}")
    return found


@cache
def _ours() -> tuple[TensorType, ...]:
    return tuple(
        value
        for module in pkgutil.iter_modules(recover.quants.__path__)
        if not module.name.startswith("_") and module.name not in _OTHER_MODULES
        for value in vars(import_module(f"recover.quants.{module.name}")).values()
        if isinstance(value, TensorType)
    )


def _of_others() -> list[TensorType]:
    """The types of other packages."""
    from importlib import metadata  # takes as long as all of `recover --help` may

    found: list[TensorType] = []
    for entry_point in metadata.entry_points(group=ENTRY_POINTS):
        try:
            value = entry_point.load()
        except Exception as error:
            raise QuantError(
                f"tensor types of the entry point {entry_point.value!r} cannot be loaded: {error}"
            ) from error
        kinds = [value] if isinstance(value, TensorType) else value
        if not isinstance(kinds, list | tuple) or not all(
            isinstance(kind, TensorType) for kind in kinds
        ):
            raise QuantError(f"the entry point {entry_point.value!r} gives no tensor types")
        found += kinds
    return found

"""Encoders other than llama.cpp's, by name, one file each, found by discovery.

What they make are ordinary blocks of the type: only the choice of scales and codes differs.
"""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from recover.errors import QuantError
from recover.quants.base import F32Array, ScalarType, U8Array

DEFAULT = "llama.cpp"
"""The encoders of the types themselves."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Variant:
    """A named way to choose scales and codes. It uses no importance matrix.

    Attributes
    ----------
    name : str
        What it is selected by.
    encoders : mapping of str to Callable
        For each type that it makes, by name: ``quantize(x: float32 (n_rows, ne0),
        raw: uint8 (n_rows * row_bytes,))``. The numbers must be finite.
    """

    name: str
    encoders: Mapping[str, Callable[[F32Array, U8Array], None]]


@cache
def all_variants() -> tuple[Variant, ...]:
    """Every declared variant, by name."""
    found: dict[str, Variant] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_"):
            continue
        for value in vars(import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, Variant) and found.setdefault(value.name, value) is not value:
                raise QuantError(f"two quantizers share the name {value.name}")
    return tuple(found[name] for name in sorted(found))


def quantizer_names(tensor_type: ScalarType) -> tuple[str, ...]:
    """The quantizers that make this type, the default first."""
    return DEFAULT, *(v.name for v in all_variants() if tensor_type.name in v.encoders)


def variant_encoder(name: str, type_name: str) -> Callable[[F32Array, U8Array], None]:
    """The encoder of that name for that type; `QuantError` if there is none."""
    for variant in all_variants():
        if variant.name == name:
            if type_name in variant.encoders:
                return variant.encoders[type_name]
            makes = ", ".join(variant.encoders)
            raise QuantError(f"the quantizer {name} makes {makes}, not {type_name}")
    known = ", ".join((DEFAULT, *(variant.name for variant in all_variants())))
    raise QuantError(f"quantizer {name!r} is unknown; known are {known}")

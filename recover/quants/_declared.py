"""What goes together in the declaration of a type: ``ScalarType(**layout(...), **rounded(16))``."""

from typing import TypedDict

from recover.quants.base import F32Array, integer_levels, rounding_cells


class Layout(TypedDict):
    """A type's name, its number in GGUF files, weights and bytes of a block."""

    name: str
    type_id: int | None
    block_size: int
    type_size: int


class Coded(TypedDict):
    """Levels of the codes, and the edges of their cells: float32 (256,) each."""

    levels: F32Array
    lower_levels: F32Array
    upper_levels: F32Array


def layout(name: str, *, type_id: int | None = None, block_size: int, type_size: int) -> Layout:
    """How the blocks of a type are stored."""
    return Layout(name=name, type_id=type_id, block_size=block_size, type_size=type_size)


def coded(levels: F32Array, edges: tuple[F32Array, F32Array]) -> Coded:
    """What codes stand for, and the lower and upper edges of their cells."""
    return Coded(levels=levels, lower_levels=edges[0], upper_levels=edges[1])


def rounded(n_codes: int, first: int = 0) -> Coded:
    """Codes of the integers from `first` on, to which the encoder rounds, clipping at both ends."""
    return coded(integer_levels(first), rounding_cells(n_codes, first))

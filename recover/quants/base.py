"""What a tensor type is: data that describes its blocks, and the kernels that read and write them.

Every scalar format stores, per block, codes, a scale and perhaps an offset, and means
``scale * levels[code] + offset``. A format is therefore declared as a `ScalarType`: the table of
its levels, the edges of the cells that its encoder assigns to each code, and the kernels `unpack`
and `quantize`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recover.errors import QuantError

GROUP = 16
"""Weights that share one (scale, offset) in unpacked form, whatever the format's sub-block is."""

TILE = 524_288
"""Weights that a thread works on at once: few enough for the cache that the cores share, and so
many that threads seldom meet at the interpreter's lock."""

F32Array = NDArray[np.float32]
U8Array = NDArray[np.uint8]


@dataclass(frozen=True, eq=False, kw_only=True)
class TensorType:
    """A ggml tensor type.

    Attributes
    ----------
    name : str
        As in ggml, for instance ``Q4_K``.
    type_id : int
        The number that GGUF files store (``enum ggml_type``).
    block_size : int
        Weights per block.
    type_size : int
        Bytes per block.
    """

    name: str
    type_id: int
    block_size: int
    type_size: int

    @property
    def bits_per_weight(self) -> float:
        """Average number of bits that one weight takes."""
        return 8 * self.type_size / self.block_size

    def n_bytes(self, n_weights: int) -> int:
        """Bytes that `n_weights` take; they must be whole blocks."""
        n_blocks, rest = divmod(n_weights, self.block_size)
        if rest:
            raise QuantError(
                f"{n_weights} weights are no whole number of {self.name} blocks"
                f" of {self.block_size}"
            )
        return n_blocks * self.type_size


@dataclass(frozen=True, eq=False, kw_only=True)
class FloatType(TensorType):
    """F32, F16 or BF16: one number per weight.

    Attributes
    ----------
    significand_bits : int
        Precision, the implicit bit included.
    decode : Callable
        ``decode(raw: uint8 (n * type_size,), out: float32 (n,))``.
    encode : Callable
        ``encode(x: float32 (n,), raw: uint8 (n * type_size,)) -> int``: rounds to nearest even and
        returns how many results are not finite.
    """

    significand_bits: int
    decode: Callable[[U8Array, F32Array], None]
    encode: Callable[[F32Array, U8Array], int]


@dataclass(frozen=True, eq=False, kw_only=True)
class ScalarType(TensorType):
    """A quantized type whose codes stand for one weight each.

    Attributes
    ----------
    levels : float32 (256,)
        What a code stands for, in units of the scale.
    lower_levels, upper_levels : float32 (256,)
        Edges of the cell of each code in units of the (unrounded) scale: an original weight that
        was given this code lay between them. Infinite where the encoder clips.
    unpack : Callable
        ``unpack(raw: uint8 (n_blocks * type_size,), codes: uint8 (n,), scale: float32 (n / 16,),
        offset: float32 (n / 16,))``. Types without an offset store -0.0, the neutral element of
        addition.
    quantize : Callable
        ``quantize(x: float32 (n_rows, ne0), imatrix: float32 (ne0,) or (0,) for none,
        raw: uint8 (n_rows * row_bytes,))``. The numbers must be finite and `imatrix` not negative.
        The same bytes as `ggml_quantize_chunk` makes on x86-64.
    rounds_scale_last, rounds_offset_last : bool
        Whether the encoder chose the codes with a scale or offset that it rounded to f16 only
        afterwards, so that the stored one is not quite the one that it used.
    d_at : int
        Position in the block of the f16 scale ``d``, if `rounds_scale_last`.
    scale_limit : float
        Codes prove nothing where the scale is as large or larger: there the encoder's arithmetic
        overflows, or the scale was clipped.
    scales_are_coarse : bool
        Whether scales of weights of ordinary size are near the smallest one, so that the errors
        depend on the size of the weights.
    extremes : tuple of pairs of int
        Pairs of codes. Without an importance matrix the encoder fits the scale (and the offset) to
        a weight of each block of 32 that is given one of the two codes, for each of the pairs, and
        that equals its level but for the rounding of scale and offset.
    noise : float
        Mean square error of the decoded value in units of the squared scale, measured.
    relative_mse : float
        Mean square error relative to the mean square of the weights, typical of trained weights,
        measured; ranks the types.
    refits_scale_with_imatrix : bool
        With an importance matrix the encoder changes the scale after it chose the codes, so that
        the codes prove nothing.
    """

    levels: F32Array
    lower_levels: F32Array
    upper_levels: F32Array
    unpack: Callable[[U8Array, U8Array, F32Array, F32Array], None]
    quantize: Callable[[F32Array, F32Array, U8Array], None]
    noise: float
    relative_mse: float
    rounds_scale_last: bool = False
    rounds_offset_last: bool = False
    d_at: int = 0
    scale_limit: float = np.inf
    scales_are_coarse: bool = False
    refits_scale_with_imatrix: bool = False
    extremes: tuple[tuple[int, int], ...] = ()

    @property
    def is_even(self) -> bool:
        """Whether the levels are consecutive integers."""
        return bool(np.all(np.diff(self.levels) == 1))


@dataclass(frozen=True, eq=False, kw_only=True)
class VectorType(TensorType):
    """A quantized type that can only be decoded: its codes stand for several weights at once.

    Attributes
    ----------
    decode : Callable
        ``decode(raw: uint8 (n_blocks * type_size,), out: float32 (n,))``.
    relative_mse : float
        As in `ScalarType`.
    """

    decode: Callable[[U8Array, F32Array], None]
    relative_mse: float


@dataclass(frozen=True, eq=False, kw_only=True)
class OpaqueType(TensorType):
    """A type that is carried along unchanged: integers, double precision."""


def table(values: Any, *, fill: float = 0.0) -> F32Array:
    """A read-only float32 table of 256 entries that begins with `values`."""
    entries = np.full(256, fill, np.float32)
    entries[: len(values)] = values
    entries.flags.writeable = False
    return entries


def integer_levels(first: int = 0) -> F32Array:
    """Levels of an affine format: the integers from `first` on, for unused codes too."""
    return table(np.arange(first, first + 256))


def rounding_cells(n_codes: int, first: int = 0) -> tuple[F32Array, F32Array]:
    """Lower and upper edges where the encoder rounds to nearest and clips at both ends."""
    level = np.arange(first, first + n_codes)
    lower, upper = level - 0.5, level + 0.5
    lower[0], upper[-1] = -np.inf, np.inf
    return table(lower, fill=-np.inf), table(upper, fill=np.inf)

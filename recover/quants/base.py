"""What a tensor type is: data that describes its blocks, and the kernels that read and write them.

Every scalar format stores, per block, codes, a scale and perhaps an offset, and means
``scale * levels[code] + offset``. A format is therefore declared as a `ScalarType`: the table of
its levels, the edges of the cells that its encoder assigns to each code, and the kernels `unpack`
and `quantize`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources.abc import Traversable
from math import prod
from pickle import PicklingError
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recover.errors import QuantError

if TYPE_CHECKING:
    from recover.quants._sub_blocks import SubBlocks

GROUP = 16
"""Weights that share one (scale, offset) in unpacked form, whatever the format's sub-block is."""

TILE = 524_288
"""Weights that a thread works on at once: few enough for the cache that the cores share, and so
many that threads seldom meet at the interpreter's lock."""

F32Array = NDArray[np.float32]
U8Array = NDArray[np.uint8]
I8Array = NDArray[np.int8]
U16Array = NDArray[np.uint16]
Mask = NDArray[np.bool_]


class FromWeight(NamedTuple):
    """A number in a block that the encoder made of one of the block's weights."""

    at: int
    """Position of the number, an f16, in the block."""
    divisor: float
    """The number is the weight over this, rounded to f16."""


class Reencoding(NamedTuple):
    """Which share of the blocks comes back when their decoded weights are encoded again.

    Weights like those of a tensor are drawn from its cells and encoded twice; the share e of them
    that comes back depends on the weights. Of the tensor's own blocks, if ggml made them, the share
    ``e - slope * (1 - e) - margin`` or more does. Measured on trained weights of two models, and on
    random ones with light, heavy and no tails, sparse, of one sign, small, and on grids.
    """

    slope: float
    margin: float
    largest_level: float
    """The largest weight of a block in units of the smallest scale: where that has too few bits,
    blocks are not looked at."""
    weighted: float = 0.0
    """With an importance matrix, which is not known here, at least this times e comes back."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Integers:
    """How a type holds integers times float16 scales, without a change of any value."""

    lowest: int
    highest: int
    """The integers that it has codes for."""
    has_offset: bool = False
    """Whether a float16 is added to the product."""
    has_zero: bool = True
    """Whether it has a code for 0. Blocks of zeros alone need none, as their scale is 0."""
    pack: Callable[[I8Array, U16Array, U16Array, int, U8Array], None]
    """``pack(integers: int8 (n,), d: uint16 (n / group,), m: uint16 (n / group,), group: int, raw:
    uint8 (n_bytes,))``, where `d` are the bits of the scales, each of `group` weights, which are
    whole blocks; `m` are those of the offsets, and not looked at where a type has none."""

    @property
    def n_bits(self) -> int:
        """Bits of a code."""
        return (self.highest - self.lowest).bit_length()

    @property
    def reach(self) -> int:
        """The largest magnitude that is held, of one sign, where scales may be negative."""
        return 1 << (self.n_bits - 1)

    @property
    def is_symmetric(self) -> bool:
        """Whether it holds the same integers of both signs."""
        return self.lowest == -self.highest

    def holds(self, reach: int, largest: int, *, has_zeros: bool = True) -> bool:
        """Whether it holds integers with scales that may be negative.

        Parameters
        ----------
        reach, largest : int
            The largest magnitude; the first is one more if a block has it with both signs.
        has_zeros : bool
            Whether there are zeros beside others.
        """
        if has_zeros and not self.has_zero:
            return False
        return largest <= self.highest if self.is_symmetric else reach <= self.reach


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TensorType:
    """How a tensor's weights are stored: all that is known of it.

    There is one object for each type, which is also what pickling gives back.

    Attributes
    ----------
    name : str
        As in ggml, for instance ``Q4_K``.
    type_id : int or None
        The number that GGUF files store (``enum ggml_type``); None for a type that they cannot
        have.
    block_size : int
        Weights per block.
    type_size : int
        Bytes per block.
    row_header : int
        Bytes in front of the blocks of each row.
    rows_interleaved : int
        Rows whose blocks are interleaved, so that only so many rows together can be found.
    file_type : int or None
        What `general.file_type` says of a file whose weights are made this type: the ``enum
        llama_ftype`` that ``llama-quantize`` takes for the name, which of some types (Q3_K, Q4_K,
        Q5_K) is that of the K_M mix. None if it takes none.
    file_types : mapping of int to str
        Names of all numbers of `general.file_type` that are files of mostly this type; if it is not
        given, `file_type` has the name of the type.
    fallback : str
        Name of the type that is taken for rows that are no whole number of blocks (ggml's
        `tensor_type_fallback`).
    is_native : bool
        Whether who stores weights in the type has a model that was trained for it, so that such
        weights are likely to be the original.
    writer : str
        The program that writes the type, if it is not llama.cpp of today.
    is_alternative : bool
        Whether another type has the same number, and is meant if nothing tells otherwise: the size
        of a tensor, or the other inputs.
    largest_beside : float or None
        Of types with one more scale beside each matrix (see `recover.containers.gguf.side_scales`):
        the largest weight, over that scale, which does not clip the scale of its block. None for
        types that have no such scale.
    """

    name: str
    type_id: int | None = None
    block_size: int
    type_size: int
    row_header: int = 0
    rows_interleaved: int = 1
    file_type: int | None = None
    file_types: Mapping[int, str] = field(default_factory=dict)
    fallback: str = "F16"
    is_native: bool = False
    writer: str = ""
    is_alternative: bool = False
    largest_beside: float | None = None

    def __post_init__(self) -> None:
        names = self.file_types
        if not names and self.file_type is not None:
            names = {self.file_type: self.name}
        object.__setattr__(self, "file_types", MappingProxyType(dict(names)))

    def __reduce__(self) -> tuple[Callable[[str], "TensorType"], tuple[str]]:
        from recover.quants._registry import type_by_name

        if type_by_name(self.name) is not self:
            raise PicklingError(f"{self.name} is not the registered type of that name")
        return type_by_name, (self.name,)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name}>"

    @property
    def bits_per_weight(self) -> float:
        """Average number of bits that one weight takes."""
        return 8 * self.type_size / self.block_size

    @cached_property
    def is_by_rows(self) -> bool:
        """Whether the bytes of weights depend on the rows that they are in."""
        return self.row_header > 0 or self.rows_interleaved > 1

    @cached_property
    def part_size(self) -> int:
        """Bytes of a block that is decoded: the header of its row comes first."""
        return self.row_header + self.type_size

    def tensor_bytes(self, dims: Sequence[int]) -> int:
        """Bytes of a tensor.

        Parameters
        ----------
        dims : sequence of int
            Its sizes, row length first.

        Raises
        ------
        QuantError
            If its rows are no whole number of blocks, or are not as many as are interleaved.
        """
        length, *others = dims
        n_rows = prod(others)
        if not (self.is_by_rows or length % self.block_size):
            return n_rows * (length // self.block_size) * self.type_size
        if n_rows % self.rows_interleaved:
            raise QuantError(
                f"{n_rows} rows cannot be stored as {self.name}, which interleaves"
                f" {self.rows_interleaved}"
            )
        return n_rows * (self.row_header + self.blocks_before(length) * self.type_size)

    def position(self, n_weights: int, row_length: int) -> int:
        """Where in a tensor's bytes the weights begin that follow the first `n_weights`.

        Raises
        ------
        QuantError
            If that is not between two blocks or, for types that are stored by rows, between rows
            that are not interleaved with each other.
        """
        if not self.is_by_rows:
            return self.n_bytes(n_weights)
        n_rows, rest = divmod(n_weights, row_length)
        if rest or n_rows % self.rows_interleaved:
            raise QuantError(
                f"{n_weights} weights are no whole number of {self.rows_interleaved} rows of"
                f" {row_length}, as {self.name} is stored"
            )
        return self.tensor_bytes((row_length, n_rows))

    def n_bytes(self, n_weights: int) -> int:
        """Bytes that `n_weights` take, whatever their rows.

        Raises
        ------
        QuantError
            If they are no whole number of blocks, or their bytes depend on the rows (see
            `tensor_bytes`).
        """
        n_blocks, rest = divmod(n_weights, self.block_size)
        if self.is_by_rows:
            raise QuantError(f"the size of weights as {self.name} depends on their rows")
        if rest:
            raise self._no_blocks(n_weights)
        return n_blocks * self.type_size

    def blocks_before(self, n_weights: int) -> int:
        """The number of blocks of the first `n_weights`; `QuantError` if they are no whole ones."""
        n_blocks, rest = divmod(n_weights, self.block_size)
        if rest:
            raise self._no_blocks(n_weights)
        return n_blocks

    def _no_blocks(self, n_weights: int) -> QuantError:
        what = f"no whole number of {self.name} blocks of {self.block_size}"
        return QuantError(f"{n_weights} weights are {what}")


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class FloatType(TensorType):
    """F32, F16 or BF16: one number per weight."""

    significand_bits: int
    """Precision, the implicit bit included."""
    exponent: int = 0
    """Bits of the exponent in a stored number, all of them 1 in infinities and NaN; 0 if other
    numbers have such bits, too."""
    decode: Callable[[U8Array, F32Array], None]
    """``decode(raw: uint8 (n * type_size,), out: float32 (n,))``."""
    encode: Callable[[F32Array, U8Array], int]
    """``encode(x: float32 (n,), raw: uint8 (n * type_size,)) -> int``: rounds to nearest even and
    returns how many results are not finite."""
    narrow: Callable[[U8Array, F32Array, F32Array], None] | None = None
    """``narrow(raw: uint8 (n * type_size,), lower: float32 (n,), upper: float32 (n,))``: intersects
    bounds with the numbers that are rounded to the stored ones; a NaN proves nothing. None if
    the stored numbers prove nothing."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
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
        Position in the block of the f16 scale ``d``, if `rounds_scale_last` or `lost_spread`.
    zero_scale_tells : bool
        Whether a scale of zero is one that was rounded to it, whatever weighed the weights, so that
        codes prove what they do with scales of up to 2**-25. Otherwise they prove nothing.
    scale_limit : float
        Codes prove nothing where the scale is as large or larger: there the encoder's arithmetic
        overflows, or the scale was clipped.
    scale_steps : int
        The largest integer scale of a sub-block: scales are integers times one of the superblock.
        0 where each sub-block has a float of its own.
    lost_spread : float
        How far weights are from the offset of a sub-block whose integer scale is 0, root mean
        square, in units of the superblock's scale; measured. 0 if nobody knows.
    lost_reach : float
        No such weight is further away, where no importance matrix was used.
    scales_are_coarse : bool
        Whether scales of weights of ordinary size are near the smallest one, so that the errors
        depend on the size of the weights.
    largest_lost : float
        No larger weights are stored as zeros because their scale is too small for the type, by what
        other inputs say of them; f16 scales are 2**-25 times codes and levels then.
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
    marks : Callable or None
        ``marks(blocks: uint8 (n_blocks, type_size)) -> (bool (n_blocks,), bool (n_blocks,))``:
        which blocks have a scale that is neither 0 nor broken, and which have the mark that ggml's
        encoder leaves without an importance matrix (see `recover.inputs.provenance`). None for
        types without a mark.
    marks_hold_with_imatrix : bool
        Whether blocks that were made with an importance matrix have the mark as well.
    cells_need_marks : bool
        Whether the scale of a block is found before its codes, by the rule that leaves the mark: so
        that codes of blocks without it prove nothing. Otherwise the codes are chosen last.
    from_weight : FromWeight or None
        The number in a block that comes from one of its weights, where the codes prove something;
        None if there is none.
    comes_back : bool
        Whether every block that ggml makes without an importance matrix comes back byte for byte
        when its decoded weights are encoded again.
    reencoding : Reencoding or None
        How many blocks do, of a type where not all do; None if nobody has measured it.
    weighs_whole_rows : bool
        Whether the encoder looks at the mean square of the whole row if it has an importance
        matrix; otherwise every block is encoded for itself.
    densities : Traversable or None
        The type's file of densities, for a type of another package (see
        `recover.evidence.densities`).
    integers : Integers or None
        How `recover reblock` stores integers in the type; None if it does not.
    sub_blocks : Callable or None
        ``sub_blocks(blocks: uint8 (n_blocks, type_size)) -> SubBlocks``: what blocks say of their
        sub-blocks (see `recover.quants.SubBlocks`). None where a block has no scale but the one
        that `unpack` gives.
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
    zero_scale_tells: bool = False
    scale_limit: float = np.inf
    scale_steps: int = 0
    lost_spread: float = 0.0
    lost_reach: float = np.inf
    scales_are_coarse: bool = False
    largest_lost: float = 2.0**-12
    refits_scale_with_imatrix: bool = False
    extremes: tuple[tuple[int, int], ...] = ()
    marks: Callable[[U8Array], tuple[Mask, Mask]] | None = None
    marks_hold_with_imatrix: bool = False
    cells_need_marks: bool = False
    from_weight: FromWeight | None = None
    comes_back: bool = False
    reencoding: Reencoding | None = None
    weighs_whole_rows: bool = False
    densities: Traversable | None = None
    integers: Integers | None = None
    sub_blocks: "Callable[[U8Array], SubBlocks] | None" = None

    @property
    def scale_has_sign(self) -> bool:
        """Whether a scale has the sign of the weight that it is fitted to: only one code is it."""
        return len({code for pair in self.extremes for code in pair}) == 1

    @property
    def is_even(self) -> bool:
        """Whether the levels are consecutive integers."""
        return bool(np.all(np.diff(self.levels) == 1))


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class VectorType(TensorType):
    """A quantized type that can only be decoded: its codes stand for several weights at once."""

    decode: Callable[[U8Array, F32Array], None]
    """``decode(raw: uint8 (n_blocks * type_size,), out: float32 (n,))``."""
    relative_mse: float
    """As in `ScalarType`."""
    densities: Traversable | None = None
    integers: Integers | None = None
    """As in `ScalarType`."""
    codebook: Callable[[], F32Array] | None = None
    """``codebook() -> float32 (n_entries, n)``: sizes of so many weights that a code stands for, in
    units of a scale that groups share. None if codes are no such."""
    narrow: Callable[[F32Array, F32Array, F32Array], None] | None = None
    """``narrow(values: float32 (n,), lower: float32 (n,), upper: float32 (n,))``: intersects bounds
    with the cells that decoded weights, whole blocks, are of. None if the codes confine no
    single weight."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class InterleavedType(TensorType):
    """Rows of another type, some of them interleaved with each other.

    The headers of the rows come first. Then, for each block of a row, the blocks of all of them.
    """

    plain: TensorType
    """What the rows are: the same header, and blocks of as many weights."""
    separate: Callable[[U8Array, U8Array], None]
    """``separate(mixed: uint8 (n_blocks * rows_interleaved * type_size,), blocks: uint8
    (rows_interleaved, n_blocks, plain.type_size))``: fills the blocks of each row."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class OpaqueType(TensorType):
    """A type that is carried along unchanged: integers, double precision.

    Attributes
    ----------
    exponent : int
        As in `FloatType`; 0 for integers.
    """

    exponent: int = 0


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

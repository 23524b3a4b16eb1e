"""Where tensors lie in the data, and what their sizes tell.

Types of one number are told apart by the room that a tensor has, up to where the next one begins.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

from recover._text import quoted
from recover.errors import GGUFError, QuantError
from recover.quants import BlockIntervals, TensorType, is_ambiguous, type_by_name, types_by_id
from recover.quants._elsewhere import AMBIGUOUS


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is.

    Attributes
    ----------
    name : str
        For instance ``blk.0.attn_q.weight``.
    dims : tuple of int
        As GGUF stores them: ``dims[0]`` is the row length (ne0).
    type : TensorType
        How the weights are stored.
    offset : int
        Bytes from the start of the data section.
    n_weights : int
        Number of weights.
    """

    name: str
    dims: tuple[int, ...]
    type: TensorType
    offset: int
    n_weights: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # There may be many tensors, and a `cached_property` takes its time.
        told = vars(self)
        told["n_weights"] = prod(self.dims)
        if self.dims[0] % self.type.block_size == 0 and not self.type.is_by_rows:
            told["n_bytes"] = self.type.tensor_bytes(self.dims)

    @cached_property
    def n_bytes(self) -> int:
        """Number of stored bytes; `QuantError` if the rows do not fit the type."""
        return self.type.tensor_bytes(self.dims)


def align(position: int, alignment: int) -> int:
    """The first multiple of `alignment` at or behind `position`."""
    return -(-position // alignment) * alignment


def told_by_size(
    tensors: Sequence[TensorInfo], alignment: int, available: int
) -> tuple[TensorInfo, ...]:
    """The tensors, those whose number means several types with that which fills their room.

    Parameters
    ----------
    tensors : sequence of TensorInfo
        In file order.
    alignment : int
        Of each of them.
    available : int
        Bytes of the data section.

    Raises
    ------
    GGUFError
        If none of the types does.
    """
    rooms = _rooms(tensors, available)
    told = tuple(
        _told(tensor, room, alignment)
        if tensor.type.type_id is not None and is_ambiguous(tensor.type.type_id)
        else tensor
        for tensor, room in zip(tensors, rooms, strict=True)
    )
    return _of_one_writer(told)


def _of_one_writer(tensors: tuple[TensorInfo, ...]) -> tuple[TensorInfo, ...]:
    """The tensors: if the size of one tells an older program, that is the writer of all of them."""
    writers = {tensor.type.writer for tensor in tensors if tensor.type.is_alternative}
    if not writers:
        return tensors
    found = []
    for tensor in tensors:
        kind = tensor.type
        twin = type_by_name(kind.twin) if isinstance(kind, BlockIntervals) and kind.twin else None
        is_old = twin is not None and twin.writer in writers
        found.append(replace(tensor, type=twin) if twin is not None and is_old else tensor)
    return tuple(found)


def _rooms(tensors: Sequence[TensorInfo], available: int) -> list[int]:
    """Bytes from where each tensor begins to where the next one does, or the data end."""
    offsets = sorted({tensor.offset for tensor in tensors})
    following = dict(zip(offsets, [*offsets[1:], available], strict=False))
    return [following[tensor.offset] - tensor.offset for tensor in tensors]


def _told(tensor: TensorInfo, room: int, alignment: int) -> TensorInfo:
    number = tensor.type.type_id
    assert number is not None
    known = [replace(tensor, type=kind) for kind in types_by_id(number)]
    whole = [each for each in known if each.dims[0] % each.type.block_size == 0]
    for each in whole:
        if _takes(each) is not None and 0 <= room - each.n_bytes < alignment:
            return each
    if number not in AMBIGUOUS:
        return whole[0]  # the check of the extents says what is missing, if anything is
    sizes = " or ".join(f"{_takes(each)} as {each.type.name}" for each in whole)
    raise GGUFError(
        f"tensor {quoted(tensor.name)}: tensor type {number} means different types to different"
        f" programs; its {room} bytes are not the {sizes} takes: it is of a program that this one"
        " does not know, or the file is damaged; take another quantization of the model"
    )


def _takes(tensor: TensorInfo) -> int | None:
    """Bytes of a tensor; None if its rows do not fit the type."""
    try:
        return tensor.n_bytes
    except QuantError:
        return None


def check_extents(tensors: Iterable[TensorInfo], alignment: int, available: int) -> None:
    """Refuse tensors that overlap, are not aligned or reach beyond the end of the file."""
    end, previous = 0, None
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset % alignment:
            raise GGUFError(
                f"tensor {quoted(tensor.name)}: offset {tensor.offset} is no multiple of the"
                f" alignment {alignment}"
            )
        if tensor.offset < end and previous is not None:
            _check_headers(previous, tensor.offset - previous.offset, alignment)
            raise GGUFError(f"tensor {quoted(tensor.name)} overlaps tensor {quoted(previous.name)}")
        end, previous = tensor.offset + tensor.n_bytes, tensor
        if end > available:
            _check_headers(tensor, available - tensor.offset, alignment)
            raise GGUFError(
                f"tensor {quoted(tensor.name)} ends {end - available} bytes beyond the end of the"
                " file; the file is truncated, or its header damaged"
            )


def _check_headers(tensor: TensorInfo, room: int, alignment: int) -> None:
    """Name the cause if exactly the headers of a tensor's rows have no room."""
    kind = tensor.type
    n_rows = prod(tensor.dims[1:])
    short = tensor.n_bytes - n_rows * kind.row_header
    if kind.row_header and 0 <= room - short < alignment:
        raise GGUFError(
            f"tensor {quoted(tensor.name)} is cut off: each of its {n_rows} rows of {kind.name} has"
            f" a header of {kind.row_header} bytes, for which there is no room. A script that knows"
            f" no such headers has rewritten the file ({kind.writer}'s gguf-py before September"
            " 2026, for instance); its last rows are lost; take the file that it was made of"
        )

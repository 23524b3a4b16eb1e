"""Which tensors of several models belong together, and which of them says most."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from recover.containers.model import StoredTensor
from recover.quants import (
    TILE,
    FloatType,
    InterleavedType,
    IntervalType,
    OpaqueType,
    ScalarType,
    TensorType,
    U8Array,
    VectorType,
)

_N_COMPARED = 4096  # bytes that decide on the order of inputs of one type


@lru_cache(maxsize=4096)
def typical_error(tensor_type: TensorType) -> float:
    """Relative mean square error to expect of a type; ranks what is finest."""
    match tensor_type:
        case FloatType():
            return float(2.0 ** (-2 * tensor_type.significand_bits))
        case ScalarType() | IntervalType() | VectorType():
            return tensor_type.relative_mse
        case InterleavedType():
            return typical_error(tensor_type.plain)
        case _:
            return 0.0


def by_fineness(tensors: Sequence[StoredTensor], chosen: Iterable[int]) -> list[int]:
    """Indices of tensors, finest first.

    Among floats of one type those that use more of its bits (BF16 numbers in an F32 tensor end in
    16 zeros), then the bytes decide: the order of the inputs is of no consequence. They are looked
    at only where the types do not tell.
    """
    errors = {i: typical_error(tensors[i].type) for i in chosen}
    if len(set(errors.values())) == len(errors):
        return sorted(errors, key=errors.__getitem__)

    def key(i: int) -> tuple[float, int, bytes, int]:
        start = _first_bytes(tensors[i])
        kind = tensors[i].type
        last_bit = _last_bit(start, kind) if isinstance(kind, FloatType) else 0
        scales = tensors[i].scales
        stored = start.tobytes() + (b"" if scales is None else scales.tobytes())
        return errors[i], last_bit, stored, i

    return sorted(errors, key=key)


def _first_bytes(tensor: StoredTensor) -> U8Array:
    """The first `_N_COMPARED` stored bytes; all if there are fewer."""
    n_weights = -(-_N_COMPARED // tensor.type.part_size) * tensor.type.block_size
    return tensor.part(0, min(n_weights, tensor.n_weights))[:_N_COMPARED]


def _last_bit(raw: U8Array, kind: FloatType) -> int:
    """Number of the lowest bit that any of some numbers has set; of zeros, the number of bits."""
    words = raw.view(f"<u{kind.type_size}")
    bits = int(np.bitwise_or.reduce(words))
    return (bits & -bits).bit_length() - 1 if bits else 8 * kind.type_size


def contradicts(other: StoredTensor, finest: StoredTensor) -> bool:
    """Whether a tensor with other bytes says something else than a finer one, rounding aside."""
    if isinstance(finest.type, OpaqueType) or other.type is finest.type:
        return True
    if not isinstance(other.type, FloatType):
        return False
    precision = 2.0**-other.type.significand_bits
    for start in range(0, finest.n_weights, TILE):
        end = min(start + TILE, finest.n_weights)
        rounded, exact = (each.read(start, end) for each in (other, finest))
        if not np.allclose(rounded, exact, rtol=precision, atol=2.0**-25, equal_nan=True):
            return True
    return False


def find_duplicates(tensors: Sequence[StoredTensor]) -> tuple[int, ...]:
    """For each tensor the index of the first one of the same type with the same bytes.

    Where scales are beside any of them, with the same weights.
    """
    if len({tensor.type for tensor in tensors}) == len(tensors):
        return tuple(range(len(tensors)))
    duplicate_of: list[int] = []
    for i, tensor in enumerate(tensors):
        same = (j for j in dict.fromkeys(duplicate_of) if _same(tensors[j], tensor))
        duplicate_of.append(next(same, i))
    return tuple(duplicate_of)


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors hold the same; stops at the first range that differs.

    Where there are no scales the bytes are compared. Otherwise the numbers: a scale may be beside
    one, in blocks of another.
    """
    if one.type is not other.type or one.n_weights != other.n_weights:
        return False
    is_scaled = one.scales is not None or other.scales is not None
    start, end = 0, 4096
    while start < one.n_weights:
        end = min(end, one.n_weights)
        if is_scaled:
            same = np.array_equal(one.read(start, end), other.read(start, end))
        else:
            same = np.array_equal(one.part(start, end), other.part(start, end))
        if not same:
            return False
        start, end = end, end + TILE
    return True

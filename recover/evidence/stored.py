"""What files say of a tile beyond its evidence, for estimators that look at whole superblocks."""

from collections.abc import Sequence
from typing import cast

from recover.containers.model import StoredTensor
from recover.quants import (
    BlockIntervals,
    IntervalTensor,
    IntervalType,
    ScalarType,
    SubBlocks,
    TensorType,
    U8Array,
)


class StoredTile:
    """The stored bytes of weights in each input, and what they say of sub-blocks.

    Nothing is read before it is asked for, so that estimators which need none of it pay nothing.

    Parameters
    ----------
    tensors : sequence of StoredTensor or IntervalTensor
        One per input, in the order of the evidence.
    start, end : int
        The weights.
    """

    def __init__(
        self, tensors: Sequence[StoredTensor | IntervalTensor] = (), start: int = 0, end: int = 0
    ) -> None:
        self._tensors, self._start, self._end = tuple(tensors), start, end

    def __len__(self) -> int:
        """Number of inputs; 0 where nobody tells of them."""
        return len(self._tensors)

    def raw(self, k: int) -> U8Array | None:
        """The stored bytes of input `k`, whole blocks, each with the header of its row in front.

        None of an input that has no run of bytes: a matrix of a folder, whose codes and scales are
        several arrays.
        """
        tensor = self._tensors[k]
        if not _has_blocks(tensor.type):
            return None
        return cast(StoredTensor, tensor).part(self._start, self._end)

    def sub_blocks(self, k: int) -> SubBlocks | None:
        """What input `k` says of its sub-blocks, without scales beside the tensor.

        None where a block has no scale but the one that the evidence has.
        """
        kind, raw = self._tensors[k].type, self.raw(k)
        if raw is None or not isinstance(kind, ScalarType) or kind.sub_blocks is None:
            return None
        return kind.sub_blocks(raw.reshape(-1, kind.type_size))

    def part(self, start: int, end: int) -> "StoredTile":
        """Of weights `start` to `end` of the tile."""
        return StoredTile(self._tensors, self._start + start, self._start + end)


def _has_blocks(kind: TensorType) -> bool:
    return not isinstance(kind, IntervalType) or isinstance(kind, BlockIntervals)

"""Stacks: small tensors that are alike, one behind the other, so that one tile holds many of them.

What is done to a tile takes some time even if there is next to nothing in it. Where tensors have
one size and one kind (the same is done to them, with inputs of the same types) they are taken
together; only what is summed up is kept apart, tensor by tensor.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence

from recover.containers.model import StoredTensor
from recover.containers.views import Span, View
from recover.quants import TILE, F32Array, IntervalType, dequantize

SUPERBLOCK = 256

LARGEST = TILE // 2
"""Most weights of a tensor that another one may lie behind."""


def stacks(tensors: Iterable[tuple[int, int, Hashable]]) -> Iterator[tuple[int, ...]]:
    """Which tensors are taken together.

    Parameters
    ----------
    tensors : iterable of (int, int, hashable)
        Number of each, its weights, and its kind; None if it is like no other.

    Yields
    ------
    tuple of int
        Numbers of tensors of one size and kind, in their order, and of at most `TILE` weights; or
        of one tensor of any size.
    """
    growing: dict[Hashable, list[int]] = {}
    for number, n_weights, kind in tensors:
        if kind is None or not 0 < n_weights <= LARGEST:
            yield (number,)
            continue
        key = kind, n_weights
        stack = growing.setdefault(key, [])
        stack.append(number)
        if (len(stack) + 1) * n_weights > TILE:
            yield tuple(growing.pop(key))
    yield from map(tuple, growing.values())


def can_be_stacked(tensor: StoredTensor, *, is_copied: bool = False) -> bool:
    """Whether others may lie behind a tensor: its bytes say all, and superblocks are whole.

    Those that are copied may have any size.
    """
    is_whole = is_copied or tensor.n_weights % SUPERBLOCK == 0
    is_plain = tensor.scales is None and not tensor.is_original
    return is_whole and is_plain and not isinstance(tensor.type, IntervalType)


class Stack(View):
    """Tensors that can be stacked, one behind the other: decoded at once."""

    def read(self, start: int, end: int, out: F32Array | None = None) -> F32Array:
        """See `recover.containers.model.StoredTensor.read`."""
        return dequantize(self.part(start, end), self.type, out)


def stack_of(
    tensors: Sequence[StoredTensor], runs: Sequence[tuple[int, int]] | None = None
) -> StoredTensor:
    """Tensors of one size and type, which can be stacked, one behind the other.

    Parameters
    ----------
    tensors : sequence of StoredTensor
        One alone may be any.
    runs : sequence of (int, int), optional
        First and last weights, whole superblocks, of what is taken of each; default: all.
    """
    if len(tensors) == 1 and runs is None:
        return tensors[0]
    runs = [(0, tensors[0].n_weights)] if runs is None else runs
    spans = tuple(Span(each, start, end) for each in tensors for start, end in runs)
    return Stack("", (sum(span.end - span.start for span in spans),), spans)

"""Parts of the work: which tensors each of several processes takes that share it."""

import heapq
import re
from collections.abc import Sequence
from typing import NamedTuple, Self

from recover.errors import UsageError
from recover.execution.work import Unit

_TEXT = re.compile(r"(\d{1,9})/(\d{1,9})")
MOST = 65_536
"""Parts that a work may have."""

_OVERHEAD = 1 << 14  # weights that take as long as a tensor without any


class Shard(NamedTuple):
    """One of the parts of a work."""

    number: int
    """Counted from 1."""
    n: int
    """How many there are."""

    def __str__(self) -> str:
        return f"{self.number}/{self.n}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``I/N``.

        Raises
        ------
        UsageError
            If it is no such text, or there is no such part.
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise UsageError(f"{text!r} is no part of a whole, like 1/3")
        number, n = map(int, found.groups())
        if not 1 <= n <= MOST:
            raise UsageError(f"{text!r}: there can be 1 to {MOST:,} parts, not {n:,}")
        if not 1 <= number <= n:
            raise UsageError(f"{text!r}: parts are counted from 1 to {n}, and {number} is none")
        return cls(number, n)


def shares(units: Sequence[Unit], n: int) -> list[list[int]]:
    """Which tensors each of `n` processes takes: about as many weights for all of them.

    It depends on nothing but the tensors. Those whose bytes are woven into each other are taken by
    one process: nobody else writes between them.

    Returns
    -------
    list of list of int
        The indices of each, in order; none where there are more processes than tensors.
    """
    groups = _woven_together(units)
    costs = [sum(units[i].n_weights + _OVERHEAD for i in group) for group in groups]
    order = sorted(range(len(groups)), key=lambda g: (-costs[g], groups[g]))
    heap = [(0, number) for number in range(n)]
    found: list[list[int]] = [[] for _ in range(n)]
    for g in order:
        cost, number = heapq.heappop(heap)
        found[number] += groups[g]
        heapq.heappush(heap, (cost + costs[g], number))
    return [sorted(each) for each in found]


def _woven_together(units: Sequence[Unit]) -> list[list[int]]:
    """Groups of tensors whose extents in a file overlap; those of one alone have one."""
    first = list(range(len(units)))

    def root(i: int) -> int:
        while first[i] != i:
            first[i] = first[first[i]]
            i = first[i]
        return i

    extents = sorted(
        (*extent, i)
        for i, unit in enumerate(units)
        for stretch in unit.written
        for extent in stretch.extents()
    )
    file, end, before = -1, 0, 0
    for its_file, start, stop, i in extents:
        if its_file == file and start < end:
            low, high = sorted((root(before), root(i)))
            first[high] = low
        if its_file != file or stop > end:
            file, end, before = its_file, stop, i
    groups: dict[int, list[int]] = {}
    for i in range(len(units)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())

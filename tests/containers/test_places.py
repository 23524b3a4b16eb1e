"""Weights come to the places that an array with strides gives them, tile by tile, in any order."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from recover.containers.places import Axis, Place, pieces_of, put, within
from recover.quants import type_by_name

CASES: dict[str, tuple[list[tuple[int, int]], int]] = {
    "rows of heads": ([(4, 8 * 24), (4, 24), (2, 4 * 24), (24, 1)], 0),
    "numbers of heads": ([(4, 8), (4, 1), (2, 4)], 0),
    "transposed": ([(3, 70), (7, 1), (10, 7)], 0),
    "woven": ([(3, 2 * 70), (7, 2), (10, 14)], 1),
    "woven vectors": ([(3, 14), (7, 2)], 1),
    "blocks between others": ([(3, 100), (70, 1)], 30),
    "keys of heads": ([(3, 11 * 5), (5, 1), (6, 5)], 0),
}


class Memory:
    """A file in memory."""

    def __init__(self, n_bytes: int) -> None:
        self.data = np.full(n_bytes, 0xEE, np.uint8)
        self.n_calls = 0

    def write_at(self, position: int, data: bytes | memoryview, n_pieces: int = 1) -> None:
        raw = np.frombuffer(data, np.uint8)
        self.data[position : position + raw.size] = raw
        self.n_calls += 1

    def weave_at(self, position: int, data: memoryview, size: int, step: int) -> None:
        rows = np.frombuffer(data, np.uint8).reshape(-1, size)
        for i, row in enumerate(rows):
            self.data[position + i * step : position + i * step + size] = row
        self.n_calls += 1


def expected(axes: Sequence[tuple[int, int]], offset: int, n: int) -> dict[int, int]:
    """By number of an item in the file, the weight there."""
    shape = [size for size, _ in axes]
    found = {}
    for number in range(n):
        index = np.unravel_index(number, shape)
        found[offset + sum(int(i) * stride for i, (_, stride) in zip(index, axes, strict=True))] = (
            number
        )
    assert len(found) == n
    return found


@pytest.mark.parametrize("kind", ["F32", "BF16"])
@pytest.mark.parametrize("step", [1, 5, 7, 10, 24, 33, 64, 1000])
@pytest.mark.parametrize("case", CASES)
def test_weights_are_where_they_belong(case: str, step: int, kind: str) -> None:
    axes, offset = CASES[case]
    float_type = type_by_name(kind)
    size, first = float_type.type_size, 11  # the first weight of the place
    n = math.prod(each for each, _ in axes)
    wanted = expected(axes, offset, n)
    own = tuple(Axis(each, stride * size) for each, stride in axes)
    place = Place(0, 3 + offset * size, first, first + n, own)
    memory = Memory(3 + (max(wanted) + 9) * size)
    weights = np.arange(first + n + 5, dtype=f"<u{size}")
    starts = list(range(0, weights.size, step))
    np.random.default_rng(0).shuffle(starts)
    for start in starts:
        end = min(start + step, weights.size)
        for each, low, high in within((place,), start, end):
            data = weights[low:high].view(np.uint8)
            put(pieces_of(each, float_type, low, high), data, float_type, memory)
    items = memory.data[3:].view(f"<u{size}")
    for at, number in wanted.items():
        assert items[at] == number + first
    others = np.delete(items, list(wanted))
    assert (others == int.from_bytes(b"\xee" * size, "little")).all()
    low, high = place.extent(float_type)
    assert low == 3 + min(wanted) * size
    assert high == 3 + (max(wanted) + 1) * size


def test_rows_of_heads_are_few_pieces() -> None:
    """A tile of whole heads is one run of the file."""
    bf16 = type_by_name("BF16")
    axes = (Axis(8, 128 * 512 * 2), Axis(64, 512 * 2), Axis(2, 64 * 512 * 2), Axis(512, 2))
    place = Place(0, 64, 0, 8 * 128 * 512, axes)
    assert len(pieces_of(place, bf16, 0, 2 * 128 * 512).pieces) == 1
    assert len(pieces_of(place, bf16, 0, 64 * 512).pieces) == 2
